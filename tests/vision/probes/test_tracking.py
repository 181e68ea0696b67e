"""Label propagation: identical features copy, labels follow what moves, floors on the real clip are the known ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tenfold.errors import DataError, UsageError
from tenfold.images.frames import open_frames
from tenfold.vision.probes.correspond import raw_patches
from tenfold.vision.probes.tracking import (
    choose_temperature,
    propagate_labels,
    propagation_miou,
    to_pixels,
    tracking_floors,
)
from vision.dense_inputs import cut


def labelled(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that are unlike each other in every cell, and one-hot labels."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randn(6, 9, 64, generator=generator)
    return cells, F.one_hot(torch.randint(0, 3, (6, 9), generator=generator), 3).float()


def test_a_still_clip_copies_its_labels() -> None:
    cells, first = labelled()
    soft = propagate_labels([cells] * 10, first, temperature=0.02)
    assert len(soft) == 10
    assert all(labels.argmax(2).equal(first.argmax(2)) for labels in soft)
    torch.testing.assert_close(soft[-1].sum(2), torch.ones(6, 9))


def test_labels_follow_a_shift_within_the_window_and_not_beyond() -> None:
    cells, first = labelled()
    moved = [cells.roll(t, dims=1) for t in range(4)]
    soft = propagate_labels(moved, first, window=3, neighbors=1)
    for t in (1, 2, 3):
        assert soft[t][:, t:].argmax(2).equal(first.argmax(2).roll(t, dims=1)[:, t:])
    far = propagate_labels([cells, cells.roll(4, dims=1)], first, window=3, neighbors=1)[1]
    assert not far[:, 4:].argmax(2).equal(first.argmax(2).roll(4, dims=1)[:, 4:])


def test_the_window_and_the_votes_are_those_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    frames = [torch.randn(4, 5, 8, generator=generator) for _ in range(2)]
    first = torch.rand(4, 5, 2, generator=generator)
    ours = propagate_labels(frames, first, window=1, neighbors=3, temperature=0.3)[1]
    for y in range(4):
        for x in range(5):
            near = [(i, j) for i in range(4) for j in range(5) if abs(i - y) <= 1 and abs(j - x) <= 1]
            cosine = torch.stack([torch.cosine_similarity(frames[1][y, x], frames[0][i, j], dim=0) for i, j in near])
            best = cosine.topk(3)
            weight = (best.values / 0.3).exp()
            wanted = sum(w * first[near[int(k)]] for w, k in zip(weight, best.indices)) / weight.sum()
            torch.testing.assert_close(ours[y, x], wanted, atol=1e-5, rtol=1e-4)


def test_one_frame_is_refused_in_both_places(test_data: Path, tmp_path: Path) -> None:
    cells, first = labelled()
    with pytest.raises(UsageError, match="at least 2 frames"):
        propagate_labels([cells], first)
    frames = open_frames(cut(test_data / "vision/camvid_val.parquet", tmp_path / "c.parquet", slice(0, 1), 48, 36))
    with pytest.raises(DataError, match=r"c\.parquet: a clip needs at least 2 frames"):
        frames.clips(2)


def test_clips_do_not_cross_from_one_recording_to_another(test_data: Path) -> None:
    frames = open_frames(test_data / "vision/camvid_train.parquet", limit=140)
    for clip in frames.clips(10):
        assert len({frames.names[i].partition("_")[0] for i in clip}) == 1


def test_floors_of_the_clip_are_the_known_ones(test_data: Path) -> None:
    frames = open_frames(test_data / "vision/camvid_val.parquet")
    floors = tracking_floors(frames, frames.clips(10))
    assert floors["copy the first frame"] == pytest.approx(53.0, abs=0.5)
    assert floors["DIS optical flow"] == pytest.approx(79.8, abs=1.0)


def test_perfect_features_carry_perfect_labels(test_data: Path, tmp_path: Path) -> None:
    frames = open_frames(cut(test_data / "vision/camvid_val.parquet", tmp_path / "c.parquet", slice(0, 6), 96, 72))
    planted = [F.one_hot(mask, 12).float() for mask in frames.masks]
    assert propagation_miou(frames, planted, frames.clips(6), 0.05) > 97
    soft = propagate_labels(planted[:2], planted[0][..., :11])
    assert to_pixels(soft[1], 72, 96).shape == (72, 96)


def test_the_temperature_is_one_of_those_offered_and_the_best(test_data: Path, tmp_path: Path) -> None:
    frames = open_frames(cut(test_data / "vision/camvid_val.parquet", tmp_path / "c.parquet", slice(0, 6), 96, 72))
    cells = [raw_patches(image, 16, 8) for image in frames.images]
    clips = frames.clips(3)
    chosen = choose_temperature(frames, cells, clips, (0.02, 0.2))
    scores = {t: propagation_miou(frames, cells, clips, t) for t in (0.02, 0.2)}
    assert scores[chosen] == max(scores.values())

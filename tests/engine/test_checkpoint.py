"""Checkpoints come back bit for bit with the random state; whatever happens to one, only a whole one is believed."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pytest
import torch

from tenfold.engine.checkpoint import CheckpointStore, newest_state, read_model
from tenfold.engine.parallel import Place
from tenfold.errors import CheckpointError, StorageError

ALONE = Place(0, 1, torch.device("cpu"))


def test_tensors_state_and_random_numbers_come_back_as_they_were(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ALONE, "x")
    saved = {"model.w": torch.randn(5, 3), "model.half": torch.randn(4).bfloat16(), "steps": torch.arange(3)}
    path = store.save(7, saved, {"loader": {"position": [1, 2]}, "note": "é"})
    drawn = torch.rand(4)
    assert store.newest() == (7, path)
    assert sorted(store.wanted(path)) == sorted(saved)
    found = {name: torch.zeros_like(value) for name, value in saved.items()}
    state = store.load(path, found)
    assert all(found[name].equal(value) for name, value in saved.items())
    assert state == {"step": 7, "loader": {"position": [1, 2]}, "note": "é"}
    assert torch.rand(4).equal(drawn)


def test_another_run_s_model_and_state_are_read_without_its_optimizer(tmp_path: Path) -> None:
    store, weight = CheckpointStore(tmp_path / "run", ALONE, "another configuration"), torch.randn(3, 2)
    for step in (1, 2):
        store.save(step, {"model.w": weight * step, "optimizer.w": torch.ones(3, 2)}, {"note": step})
    assert read_model(tmp_path / "run").keys() == {"w"}
    assert read_model(tmp_path / "run")["w"].equal(2 * weight)
    assert newest_state(tmp_path / "run") == {"step": 2, "note": 2}
    (tmp_path / "empty").mkdir()
    assert newest_state(tmp_path / "empty") is None
    for folder in ("empty", "absent"):
        with pytest.raises(CheckpointError, match=f"{folder} holds no whole checkpoint"):
            read_model(tmp_path / folder)


def test_the_same_step_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ALONE, "x")
    for value in (1.0, 2.0):
        store.save(3, {"w": torch.full((2,), value)}, {})
    tensors = {"w": torch.zeros(2)}
    store.load(tmp_path / "step-3", tensors)
    assert tensors["w"].tolist() == [2.0, 2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_only_what_killed_writers_left_is_cleared(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ALONE, "x")
    store.save(1, {"w": torch.ones(2)}, {})
    for name in (".tmp-2-99", ".old-step-1-99"):
        (tmp_path / name / "inner").mkdir(parents=True)
    for name in (".tmp-99-metrics.jsonl", "metrics.jsonl", ".lock"):
        (tmp_path / name).write_text("")
    (tmp_path / "step-half").mkdir()  # no step of ours
    store.clear_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "metrics.jsonl", "step-1", "step-half"]
    assert store.newest_whole() == "step-1"


def test_a_folder_that_cannot_be_written_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(StorageError, match="could not write"):
        CheckpointStore(tmp_path / "file", ALONE, "x").save(1, {"w": torch.ones(2)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_manifest_that_was_edited_is_not_believed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ALONE, "x")
    manifest = store.save(1, {"w": torch.ones(2)}, {}) / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content["body"]["files"].pop("state.json")
    manifest.write_text(json.dumps(content))
    assert store.damage(tmp_path / "step-1") == "manifest.json does not match its own digest"
    for rubbish in ("[]", "{", ""):
        manifest.write_text(rubbish)
        assert store.damage(tmp_path / "step-1") == "manifest.json is not readable"
    manifest.unlink()
    assert store.damage(tmp_path / "step-1") == "manifest.json is missing"
    assert store.newest() is None


def test_a_flipped_bit_in_any_file_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, ALONE, "x", keep=3)
    for step in (1, 2):
        store.save(step, {"w": torch.randn(40, 40) + step, "b": torch.arange(7)}, {"note": "n" * 50})
    files = sorted(p for p in (tmp_path / "step-2").iterdir())
    assert len(files) == 4
    dice = random.Random(0)
    for trial in range(100):
        file = files[trial % len(files)]
        data = bytearray(file.read_bytes())
        place = dice.randrange(len(data))
        data[place] ^= 1 << dice.randrange(8)
        original = file.read_bytes()
        file.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="tenfold"):
            assert store.newest() == (1, tmp_path / "step-1")
        assert [file.name in record.getMessage() for record in caplog.records] == [True]
        file.write_bytes(original)
    assert store.newest() == (2, tmp_path / "step-2")


def test_a_cut_or_missing_file_is_damage_too(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ALONE, "x")
    store.save(1, {"w": torch.ones(3)}, {})
    path = tmp_path / "step-1"
    state = (path / "state.json").read_bytes()
    (path / "state.json").write_bytes(state[:-1])
    assert "state.json" in str(store.damage(path))
    (path / "state.json").unlink()
    assert "state.json is missing" in str(store.damage(path))
    assert store.newest() is None


def test_a_checkpoint_of_another_configuration_or_model_is_refused(tmp_path: Path) -> None:
    CheckpointStore(tmp_path, ALONE, "x").save(1, {"w": torch.ones(3), "old": torch.ones(1)}, {})
    with pytest.raises(CheckpointError, match="another configuration"):
        CheckpointStore(tmp_path, ALONE, "y").newest()
    store = CheckpointStore(tmp_path, ALONE, "x")
    with pytest.raises(CheckpointError) as caught:
        store.load(tmp_path / "step-1", {"w": torch.ones(4), "new": torch.ones(1)})
    for words in ("missing new", "unexpected old", "w is (3,), the model has (4,)"):
        assert words in str(caught.value)


def test_the_newest_two_are_never_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ALONE, "x", keep=1)
    for step in (3, 7, 20, 100):
        store.save(step, {"w": torch.ones(3)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-100", "step-20"]

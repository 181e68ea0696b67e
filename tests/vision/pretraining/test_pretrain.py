"""The stages of DINOv2 and DINOv3 as tasks: any number of ranks gives the same losses, any stop the same bits, and the
later stages start where the earlier ended."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs import Job, rows, train
from tenfold.engine.checkpoint import read_model
from tenfold.engine.conformance import check_task
from tenfold.engine.parallel import Collectives
from tenfold.engine.schedule import Schedule, constant
from tenfold.engine.task import Phase, Shard
from tenfold.errors import CheckpointError, UsageError
from tenfold.vision.pretraining.gram import GramConfig
from tenfold.vision.pretraining.pretrain import PretrainRecipe
from tenfold.vision.recipes import dinov2, dinov3, dinov3_highres, dinov3_mini
from vision.recipe_flags import SMALL, flags


@pytest.fixture(scope="module")
def data(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photographs as files."""
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("photos")
    batch = next(pq.ParquetFile(test_data / "vision/imagenette160_val.parquet").iter_batches(batch_size=40))
    for i, image in enumerate(batch["image"]):
        (folder / f"{i:02}.webp").write_bytes(image.as_py())
    return folder


@pytest.fixture(scope="module")
def stage1(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage1")
    train(folder, "dinov3", *SMALL, "--data", data, "--trainer.steps", 5, "--out", folder / "run")
    return folder / "run"


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_with_unequal_masks_give_the_steps_of_one_process(
    stage1: Path, data: Path, tmp_path: Path, parallel: str
) -> None:
    words = ["dinov3", *SMALL, "--data", data, "--trainer.steps", 5, "--out", tmp_path / "run"]
    train(tmp_path, *words, "--trainer.parallel", parallel, ranks=2)
    assert {"dino_global", "dino_local", "koleo", "ibot", "grad_norm"} <= set(rows(stage1)[0])
    for two, one in zip(rows(tmp_path / "run"), rows(stage1), strict=True):
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-5 * 4 ** two["step"], abs=1e-6), (two["step"], name)
    ours, alone = load_file(tmp_path / "run/final.safetensors"), load_file(stage1 / "final.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_one_whole_step_with_unequal_masks_is_that_of_one_process(stage1: Path, data: Path, tmp_path: Path) -> None:
    """All losses, layer-wise rates, clipping per module, EMA. The ranks' mask counts differ, which the first draw shows."""
    common = ["dinov3-gram", *SMALL, "--data", data, "--start", stage1, "--gram.weight.peak", 2, "--trainer.steps", 1]
    common += ["--optim.layer-decay", 0.9, "--optim.clip", 0.5, "--objective.freeze-prototypes", 0]
    runs = {ranks: tmp_path / str(ranks) for ranks in (1, 2)}
    for ranks, run in runs.items():
        train(tmp_path, *common, "--out", run, ranks=ranks)
    one, two = (rows(run)[0] for run in runs.values())
    assert {"dino_global", "dino_local", "koleo", "ibot", "gram"} <= set(one)
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-5), name
    assert one["grad_norm"] > 0.5, "nothing was clipped"
    alone, together, before = (read_model(run) for run in (*runs.values(), stage1))
    moved = 0
    for name, value in alone.items():
        # AdamW's first step divides a gradient by its own size, so rounding decides where it is nearly nothing.
        assert (together[name] - value).norm() <= 1e-5 * value.norm() + 1e-6, name
        moved += name in before and not value.equal(before[name])
    assert moved > 40
    torch.manual_seed(0)  # as the trainer does before the first step
    task = dataclasses.replace(small(dinov3(), data), batch=4).make_task()
    counts = []
    for rank in (0, 1):
        task.ranks = Collectives(rank, 2)
        torch.manual_seed(0)
        counts.append(int(task.masks(torch.zeros(2, 2, 3, 64, 64)).sum()))
    assert counts[0] != counts[1]


def test_the_gram_stage_starts_with_the_teacher_and_is_resumed_to_the_same_bits(
    stage1: Path, data: Path, tmp_path: Path
) -> None:
    common = [
        "dinov3-gram",
        *SMALL,
        *flags(
            {
                "data": data,
                "start": stage1,
                "trainer.steps": 6,
                "gram.refresh-every": 2,
                "gram.weight.decay": 3,
                "trainer.checkpoint-every": 3,
            }
        ),
    ]
    train(tmp_path, *common, "--out", tmp_path / "straight")
    job = Job(["train", *map(str, common), "--out", str(tmp_path / "stopped")], tmp_path, 1)
    end = time.monotonic() + 60
    while not (tmp_path / "stopped/step-3").exists() and time.monotonic() < end:
        time.sleep(0.01)
    job.signal(signal.SIGKILL)
    job.wait()
    train(tmp_path, "--resume", tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")
    first = rows(tmp_path / "straight")[0]
    assert 0 < first["gram"] < 1
    start, end_state = read_model(stage1), read_model(tmp_path / "straight")
    name = "backbone.blocks.0.ffn.up.weight"
    # Refreshed after steps 2, 4 and 6: the Gram teacher is the EMA teacher of the last refresh.
    assert end_state[f"gram_teacher.{name.removeprefix('backbone.')}"].equal(end_state[f"teacher.{name}"])
    assert not end_state[f"teacher.{name}"].equal(start[f"teacher.{name}"])


def test_the_high_resolution_stage_draws_its_sizes_by_batch(stage1: Path, data: Path, tmp_path: Path) -> None:
    mixes = [64, 32, 96, 0.5, 96, 48, 0, 0.5]
    words = ["dinov3-highres", *SMALL, "--data", data, "--start", stage1, "--trainer.steps", 4]
    train(tmp_path, *words, "--resolutions", *mixes, "--out", tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 4
    assert all(row["gram"] > 0 for row in rows(tmp_path / "run")[1:])


def test_the_sizes_that_are_drawn_are_those_of_the_mixes_as_often_as_they_say(data: Path) -> None:
    """On every rank alike; the count is judged by three standard deviations of its distribution."""
    mixes, batches = ((64, 32, 96, 0.75), (96, 48, 0, 0.25)), 60
    recipe = dataclasses.replace(small(dinov3_highres(), data), resolutions=mixes)

    def sizes(shard: Shard) -> list[tuple[int, ...]]:
        names = ("global_crops", "local_crops", "gram_crops")
        drawn = itertools.islice(recipe.make_task().batches(shard), batches)
        return [tuple(batch[name].shape[-1] if name in batch else 0 for name in names) for batch in drawn]

    drawn = sizes(Shard())
    assert set(drawn) == {(64, 32, 96), (96, 48, 0)}
    assert abs(drawn.count((64, 32, 96)) - 0.75 * batches) <= 3 * (batches * 0.75 * 0.25) ** 0.5
    assert sizes(Shard(1, 2)) == drawn


def test_a_start_that_does_not_fit_lists_what_differs(stage1: Path, data: Path, tmp_path: Path) -> None:
    words = ["dinov3-gram", *SMALL, "--data", data, "--start", stage1, "--out", tmp_path / "run"]
    said = train(tmp_path, *words, "--ibot.prototypes", 30, code=4)
    assert "student.ibot_head.prototypes.weight is (24, 16), this model has (30, 16)" in said
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        read_model(tmp_path / "nothing")
    with pytest.raises(UsageError, match="--start RUN"):
        PretrainRecipe(gram=GramConfig(weight=constant(1.0)))


def small(recipe: PretrainRecipe, data: Path) -> PretrainRecipe:
    model = dataclasses.replace(recipe.model, dim=48, depth=2, heads=2, hidden=64, drop_path=0.0)
    head = dataclasses.replace(recipe.dino, hidden=16, bottleneck=8, prototypes=12)
    crops = dataclasses.replace(
        recipe.crops, global_size=4 * model.patch_size, local_size=2 * model.patch_size, local_crops=2
    )
    objective = dataclasses.replace(recipe.objective, freeze_prototypes=0)
    return dataclasses.replace(
        recipe,
        data=data,
        model=model,
        dino=head,
        ibot=head,
        crops=crops,
        batch=4,
        source_side=64,
        objective=objective,
        trainer=dataclasses.replace(recipe.trainer, steps=8, workers=0),
    )


@pytest.mark.parametrize("build", [dinov3_mini, dinov3, dinov2])
def test_every_recipe_keeps_the_contract_of_a_task(build: Any, data: Path) -> None:
    check_task(small(build(), data))


def test_prototypes_stand_still_while_they_are_frozen(data: Path) -> None:
    recipe = small(dinov3(), data)
    recipe = dataclasses.replace(
        recipe, objective=dataclasses.replace(recipe.objective, freeze_prototypes=3, momentum=Schedule("constant", 0.9))
    )
    task = recipe.make_task()
    task.hparams.update({name: s.at(0, 8) for name, s in task.schedules.items()})
    torch.manual_seed(0)
    model = task.build()
    batch = next(iter(task.batches(Shard())))
    for step, still in ((2, True), (3, False)):
        model.zero_grad()
        task.training_step(model, batch, Phase())["loss"].backward()
        task.after_backward(model, Phase(), step)
        gradient = model.get_parameter("student.dino_head.prototypes.weight").grad
        assert gradient is not None
        assert bool(gradient.eq(0).all()) == still


def test_masks_are_the_same_for_any_number_of_ranks(data: Path) -> None:
    recipe = small(dinov3(), data)
    parts = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        task = recipe.make_task()
        task.ranks = Collectives(rank, world)
        torch.manual_seed(5)
        parts.append(task.masks(torch.zeros(2, 8 // world, 3, 64, 64)).unflatten(0, (2, 8 // world)))
    assert torch.cat(parts[1:], dim=1).equal(parts[0])
    assert parts[0].any()

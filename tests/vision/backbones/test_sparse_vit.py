"""The sparse feed-forward network in a vision transformer: it trains, switches, loads, and is refused where it cannot go."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tenfold.engine.task import Phase, Shard
from tenfold.errors import FieldError, WeightsError
from tenfold.export.weights import convert, load, save_own
from tenfold.nn.ffn import SquaredReLUFFN
from tenfold.nn.sparse_training import sparse_layers
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.pretraining.pretrain import PretrainTask
from tenfold.vision.pretraining.self_distillation import SelfDistillation
from tenfold.vision.recipes import dinov3_mini_24

TINY = VitConfig(16, 2, 2, patch_size=8, ffn="relu2", hidden=32, sparsity="2:4")


@pytest.mark.samples
def test_the_student_switches_and_the_teacher_stays_dense() -> None:
    recipe = dinov3_mini_24()
    recipe = dataclasses.replace(
        recipe,
        trainer=dataclasses.replace(recipe.trainer, steps=4),
        batch=4,
        sparsity=dataclasses.replace(recipe.sparsity, warmup_steps=1, max_dropped=1.0),
    )
    task = PretrainTask(recipe)
    task.hparams.update(teacher_temperature=0.04, momentum=0.9, local_weight=1.0)
    torch.manual_seed(0)
    model = task.build().train()
    assert isinstance(model, SelfDistillation)
    batches = iter(task.batches(Shard()))
    modes = []
    for step in range(2):
        modes.append({layer.mode for layer in sparse_layers(model.student).values()})
        task.training_step(model, next(batches), Phase())["loss"].backward()
        task.after_step(model, step)
    assert modes == [{"dense"}, {"sparse24"}]
    assert {layer.mode for layer in sparse_layers(model.teacher).values()} == {"dense"}
    assert all(0 < s["features"] < 1 for s in task.state_dict()["sparsity"]["stats"].values())
    grads = [p.grad for name, p in model.student.named_parameters() if "ffn" in name]
    assert all(g is not None and g.isfinite().all() for g in grads)


def test_it_loads_infers_and_is_not_written_as_another_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(TINY).eval()
    save_own(tmp_path / "vit.safetensors", model.state_dict(), "vit", TINY)
    again, image = load(tmp_path / "vit.safetensors"), torch.randn(1, 3, 32, 32)
    assert isinstance(again, VisionTransformer)
    assert isinstance(again.blocks[0].get_submodule("ffn"), SquaredReLUFFN)
    with torch.inference_mode():
        expected = model(image).patch_tokens
        assert torch.equal(again(image).patch_tokens, expected)
        assert torch.allclose(again.for_inference()(image).patch_tokens, expected, atol=1e-6)
    with pytest.raises(WeightsError, match="Squared-ReLU"):
        convert(tmp_path / "vit.safetensors", tmp_path / "hf", to="hf")
    with pytest.raises(FieldError, match="relu2"):
        VitConfig(sparsity="2:4")

"""Every registered backbone keeps the protocol: shapes, features, gradients, weights files, pretraining, distillation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tenfold
from tenfold.cli import main
from tenfold.config import from_dict, to_dict
from tenfold.data.tensors import save_own
from tenfold.engine.recipe import TrainerConfig
from tenfold.engine.schedule import OptimConfig
from tenfold.errors import UsageError
from tenfold.registry import backbones
from tenfold.training import reopen, run_recipe
from tenfold.vision.backbones.backbone import Backbone, BackboneConfig, model_of
from tenfold.vision.backbones.convnext import ConvNextConfig
from tenfold.vision.backbones.vit import VitConfig
from tenfold.vision.pretraining.crops import MultiCropConfig
from tenfold.vision.pretraining.distill import SIZES, DistillRecipe
from tenfold.vision.pretraining.heads import HeadConfig
from tenfold.vision.pretraining.objectives import ObjectiveConfig
from tenfold.vision.pretraining.pretrain import PretrainRecipe
from vision.recipe_flags import flags

# Small sizes for tests; a backbone that is not here is tested in the size of its defaults.
SMALL: dict[str, BackboneConfig] = {
    "vit": VitConfig(16, 2, 2, patch_size=16, registers=1),
    "convnext": ConvNextConfig((1, 1, 2, 1), (8, 12, 16, 20)),
}
CONVNEXT = {
    "model.depths": (1, 1, 2, 1),
    "model.dims": (8, 12, 16, 20),
    "objective.ibot": 0,
    "dino.hidden": 16,
    "dino.bottleneck": 8,
    "dino.prototypes": 12,
    "crops.global-size": 64,
    "crops.local-size": 32,
    "crops.local-crops": 1,
    "batch": 4,
    "source-side": 64,
    "trainer.steps": 1,
    "trainer.device": "cpu",
    "trainer.precision": "fp32",
    "trainer.workers": 0,
}
EACH = pytest.mark.parametrize("kind", [entry.name for entry in backbones])


def small(kind: str) -> BackboneConfig:
    return SMALL[kind] if kind in SMALL else backbones.load(kind)()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((80, 80)).save(folder / f"{i}.png")
    return folder


def recipe_of(model: BackboneConfig, data: Path) -> PretrainRecipe:
    head = HeadConfig(16, 8, 12)
    return PretrainRecipe(
        trainer=TrainerConfig(steps=2, device="cpu", log_every=1),
        optim=OptimConfig(lr=1e-3, layer_decay=0.9),
        data=data,
        batch=4,
        crops=MultiCropConfig(local_crops=1, global_size=64, local_size=32),
        objective=ObjectiveConfig(ibot=1.0 if model.takes_masks else 0.0),
        model=model,
        dino=head,
        ibot=head,
    )


@EACH
def test_outputs_have_the_shapes_of_the_protocol(kind: str) -> None:
    config = small(kind)
    model = config.build().eval()
    side = 64 // config.patch_size
    large, local = model.forward_crops([torch.randn(2, 3, 64, 64), torch.randn(4, 3, 32, 32)])
    assert large.cls_token.shape == model.feature(large).shape == (2, config.dim)
    assert large.patch_tokens.shape == (2, side, side, config.dim)
    assert local.cls_token.shape == (4, config.dim)
    for patches, cls in model.get_intermediate_layers(torch.randn(2, 3, 64, 64), n=2, return_class_token=True):
        assert patches.ndim == 3
        assert len(patches) == len(cls) == 2
    (planes,) = model.get_intermediate_layers(torch.randn(2, 3, 64, 64), reshape=True)
    assert isinstance(planes, torch.Tensor)
    assert planes.shape[:2] == (2, config.dim)
    assert (config.kind, len(config.mean), len(config.std)) == (kind, 3, 3)


@EACH
def test_every_parameter_that_trains_without_masks_has_a_gradient_and_a_layer(kind: str) -> None:
    config = small(kind)
    model = config.build().train()
    model.train_without_masks()
    output = model(torch.randn(2, 3, 64, 64))
    (output.cls_token.square().sum() + output.register_tokens.sum() + output.patch_tokens.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        layer = config.layer_of(f"student.backbone.{name}")
        assert layer == config.layer_of(name)
        assert layer is None or 0 <= layer[0] < layer[1] == config.depth + 1


@EACH
@torch.inference_mode()
def test_features_survive_a_weights_file_and_inference(kind: str, tmp_path: Path) -> None:
    config, images = small(kind), torch.randn(2, 3, 64, 64)
    model = config.build().eval()
    path = save_own(tmp_path / "own.safetensors", model.state_dict(), kind, config)
    again = model_of(path)
    assert again.config == config
    expected = model(images)
    assert again(images).patch_tokens.equal(expected.patch_tokens)
    fast = model.for_inference()(images)
    torch.testing.assert_close(fast.cls_token, expected.cls_token, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.patch_tokens, expected.patch_tokens, rtol=1e-4, atol=1e-5)


@EACH
def test_pretrained_and_distilled_into(kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(kind)
    recipe = recipe_of(config, data)
    metrics = run_recipe("dinov3", recipe, tmp_path / "run")
    assert np.isfinite(metrics["loss"])
    assert reopen(tmp_path / "run") == ("dinov3", recipe)
    trained, start = tenfold.load(tmp_path / "run"), config.build()
    assert isinstance(trained, Backbone)
    assert trained.config == config
    assert any(not value.equal(trained.state_dict()[name]) for name, value in start.state_dict().items())

    monkeypatch.setitem(SIZES, "small", config)  # a size more of the table
    student = DistillRecipe(
        trainer=recipe.trainer,
        data=data,
        batch=4,
        crops=recipe.crops,
        objective=dataclasses.replace(recipe.objective, ibot=1.0 if config.takes_masks else 0.0),
        teacher=tmp_path / "run",
        students=("small",),
    )
    assert np.isfinite(run_recipe("dinov3-distill", student, tmp_path / "student")["loss"])
    assert model_of(tmp_path / "student/final-small.safetensors").config.kind == kind


def test_a_configuration_says_its_kind_unless_it_is_a_vision_transformer(data: Path) -> None:
    """Run folders of versions that had one kind lack it."""
    plain, other = (to_dict(recipe_of(small(kind), data)) for kind in ("vit", "convnext"))
    assert "kind" not in plain["model"]
    assert other["model"]["kind"] == "convnext"
    assert from_dict(PretrainRecipe, json.loads(json.dumps(other))).model == SMALL["convnext"]
    other["model"]["kind"] = "convnxt"
    with pytest.raises(UsageError, match="convnext"):
        from_dict(PretrainRecipe, other)


def test_a_backbone_without_a_mask_token_refuses_masked_patches(data: Path) -> None:
    recipe = dataclasses.replace(recipe_of(SMALL["convnext"], data), objective=ObjectiveConfig(ibot=1.0))
    with pytest.raises(UsageError, match=r"objective\.ibot = 1\.0: allowed 0 with a convnext"):
        recipe.make_task()


def test_the_command_line_takes_the_kind_and_the_fields_of_its_configuration(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "dinov3", "--model.kind", "convnext", *flags(CONVNEXT), "--data", str(data)]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert model_of(tmp_path / "run").config == ConvNextConfig((1, 1, 2, 1), (8, 12, 16, 20))
    assert main(["train", "dinov3", "--model.kind", "convnxt"]) == 2
    assert "convnext" in capsys.readouterr().err
    assert main(["train", "dinov3", "--model.kind=convnext", "--model.dpths", "3"]) == 2
    assert "Did you mean --model.depths?" in capsys.readouterr().err

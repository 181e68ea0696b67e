"""Every published layout of DINOv3's ConvNeXt comes back bit for bit, and nothing that does not fit is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from tenfold.data.tensors import read_safetensors, write_safetensors
from tenfold.errors import WeightsError
from tenfold.export.reading import Source
from tenfold.export.weights import Weights, convert, load, read
from tenfold.vision.backbones.convnext import CONVNEXT_CONFIGS, ConvNeXt, ConvNextConfig
from tenfold.vision.backbones.convnext_weights import OFFICIAL, infer, split


def official(name: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file as released, two blocks a stage and narrow."""
    dims = CONVNEXT_CONFIGS[name].dims[0] // 16
    config = ConvNextConfig((2, 2, 2, 2), (dims, 2 * dims, 4 * dims, 8 * dims))
    torch.manual_seed(0)
    state = {key: torch.randn_like(tensor) for key, tensor in ConvNeXt(config).state_dict().items()}
    tensors = split(Weights(config, state), OFFICIAL)
    path = folder / f"{name}.pth"
    torch.save({key: tensor.clone() for key, tensor in tensors.items()}, path)
    return path, tensors


def assert_same_bits(path: Path, expected: dict[str, Tensor]) -> None:
    found = torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("through", ["own", "hf", "timm"])
@pytest.mark.parametrize("name", CONVNEXT_CONFIGS)
def test_official_files_come_back_with_the_same_bits(name: str, through: str, tmp_path: Path) -> None:
    path, tensors = official(name, tmp_path)
    middle = convert(path, tmp_path / ("own.safetensors" if through == "own" else through), to=through)
    assert_same_bits(convert(middle, tmp_path / "back.pth", to="official"), tensors)


@pytest.mark.parametrize("layout", ["hf", "timm"])
def test_folders_are_read_without_our_side_file(layout: str, tmp_path: Path) -> None:
    path, tensors = official("dinov3-convnext-t", tmp_path)
    folder = convert(path, tmp_path / layout, to=layout)
    (folder / "tenfold.safetensors").unlink()
    assert read(folder)[1].config == read(path)[1].config
    assert_same_bits(convert(folder, tmp_path / "back.pth", to="official"), tensors)


def test_older_and_newer_hugging_face_names_are_read(tmp_path: Path) -> None:
    path, tensors = official("dinov3-convnext-s", tmp_path)
    folder = convert(path, tmp_path / "hf", to="hf")
    newer = AutoModel.from_pretrained(folder).state_dict()
    stored, _ = read_safetensors(folder / "model.safetensors")
    assert newer.keys() == stored.keys()
    assert all(key.startswith(("model.stages.", "layer_norm.")) for key in newer)
    write_safetensors(folder / "model.safetensors", {k.removeprefix("model."): t for k, t in stored.items()})
    assert_same_bits(convert(folder, tmp_path / "back.pth", to="official"), tensors)


def test_training_checkpoints_give_the_plain_file(tmp_path: Path) -> None:
    _, tensors = official("dinov3-convnext-t", tmp_path)
    teacher = {f"backbone.{key}": t for key, t in tensors.items()} | {"dino_head.mlp.0.weight": torch.ones(2, 2)}
    torch.save({"teacher": teacher, "iteration": 7}, tmp_path / "training.pth")
    assert_same_bits(convert(tmp_path / "training.pth", tmp_path / "back.pth", to="official"), tensors)


def test_the_tiny_one_has_182_keys_and_every_size_is_read_off_the_shapes() -> None:
    for name, config in CONVNEXT_CONFIGS.items():
        with torch.device("meta"):
            tensors = split(Weights(config, ConvNeXt(config).state_dict()), OFFICIAL)
        assert infer(tensors, OFFICIAL, Source(Path(f"{name}.pth"), tensors)) == config
        if name.endswith("-t"):
            assert len(tensors) == 182


def test_the_two_names_of_the_final_norm_must_agree_and_one_is_enough(tmp_path: Path) -> None:
    path, tensors = official("dinov3-convnext-t", tmp_path)
    for kept in ("norm.", "norms.3."):
        other = "norms.3." if kept == "norm." else "norm."
        torch.save({key: t for key, t in tensors.items() if not key.startswith(other)}, path)
        assert torch.equal(load(path).norm.weight, tensors["norm.weight"])  # type: ignore[union-attr]
    torch.save(tensors | {"norms.3.bias": tensors["norm.bias"] + 1}, path)
    with pytest.raises(WeightsError, match=r"norms\.3\.bias is not equal to norm\.bias"):
        load(path)


def test_missing_and_extra_keys_are_all_listed(tmp_path: Path) -> None:
    path, tensors = official("dinov3-convnext-t", tmp_path)
    broken = dict(tensors)
    broken["stages.1.1.pwconv.weight"] = broken.pop("stages.1.1.pwconv1.weight")
    broken["stages.0.0.gamma"] = torch.ones(3)
    del broken["downsample_layers.2.0.bias"]
    torch.save(broken, path)
    with pytest.raises(WeightsError) as error:
        load(path)
    message = str(error.value)
    assert "2 missing:" in message
    assert "downsample_layers.2.0.bias" in message
    assert "stages.1.1.pwconv.weight  (nearest: stages.1.1.pwconv1.weight)" in message
    assert "stages.0.0.gamma  (has (3,), needs (6,))" in message


def test_what_official_files_cannot_say_is_refused(tmp_path: Path) -> None:
    path, _ = official("dinov3-convnext-t", tmp_path)
    weights = read(path)[1]
    from tenfold.data.tensors import save_own

    save_own(tmp_path / "own.safetensors", weights.state, "convnext", replace(weights.config, patch_size=16))
    with pytest.raises(WeightsError, match="patch_size"):
        convert(tmp_path / "own.safetensors", tmp_path / "back.pth", to="official")
    assert not (tmp_path / "back.pth").exists()

"""Every published layout of a vision transformer comes back bit for bit, and nothing that does not fit is loaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from tenfold.data.tensors import read_safetensors, save_own, write_safetensors
from tenfold.errors import WeightsError
from tenfold.export.reading import Source
from tenfold.export.weights import Weights, convert, load, read
from tenfold.vision.backbones.spellings import OFFICIAL_V2, OFFICIAL_V3
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer, VitConfig
from tenfold.vision.backbones.weights import SATELLITE_MEAN, SATELLITE_STD, infer, split

SAT = {"mean": SATELLITE_MEAN, "std": SATELLITE_STD}
RELEASED = {name: config for name, config in VIT_CONFIGS.items() if name.startswith("dinov")}
LAYOUTS = RELEASED | {
    "dinov3-l-sat493m": replace(VIT_CONFIGS["dinov3-l"], local_cls_norm=True, **SAT),
    "dinov3-7b-sat493m": replace(VIT_CONFIGS["dinov3-7b"], **SAT),
    "dinov3-s-without-registers": replace(VIT_CONFIGS["dinov3-s"], registers=0),
}


def narrow(config: VitConfig) -> VitConfig:
    """Two blocks of two heads: every branch of the layout, none of its size."""
    hidden = config.hidden and (344 if config.positions != "rope" else 320)
    return replace(config, depth=2, dim=128, heads=2, hidden=hidden, grid=5)


def random_weights(config: VitConfig) -> Weights:
    torch.manual_seed(0)
    model = VisionTransformer(config)
    state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    if model.rope is not None:
        state["rope.periods"] = model.rope.periods.bfloat16()
    return Weights(config, state)


def official(name: str, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A file as released, with a bias of k that the mask hides but a round trip must keep."""
    weights = random_weights(narrow(LAYOUTS[name]))
    spelling = OFFICIAL_V3 if weights.config.positions == "rope" else OFFICIAL_V2
    tensors, _ = split(weights, spelling)
    path = folder / f"{name}.pth"
    torch.save({key: tensor.clone() for key, tensor in tensors.items()}, path)
    return path, tensors


def assert_same_bits(path: Path, expected: dict[str, Tensor]) -> None:
    found = torch.load(path, weights_only=True)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("through", ["own", "hf", "timm"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_official_files_come_back_with_the_same_bits(name: str, through: str, tmp_path: Path) -> None:
    path, tensors = official(name, tmp_path)
    middle = convert(path, tmp_path / ("own.safetensors" if through == "own" else through), to=through)
    assert_same_bits(convert(middle, tmp_path / "back" / path.name, to="official"), tensors)


@pytest.mark.parametrize("name", ["dinov2-s", "dinov2-g-reg", "dinov3-s", "dinov3-s+", "dinov3-7b"])
def test_transformers_names_in_memory_are_read_as_well(name: str, tmp_path: Path) -> None:
    path, tensors = official(name, tmp_path)
    folder = convert(path, tmp_path / "hf", to="hf")
    state = AutoModel.from_pretrained(folder).state_dict()
    assert any(".attention.q_proj." in key for key in state)
    write_safetensors(folder / "model.safetensors", state)
    assert_same_bits(convert(folder, tmp_path / "back" / path.name, to="official"), tensors)


@pytest.mark.parametrize("name", ["dinov2-s", "dinov2-g-reg", "dinov3-s", "dinov3-7b"])
def test_files_without_our_side_file_are_read_too(name: str, tmp_path: Path) -> None:
    path, _ = official(name, tmp_path)
    for layout in ("hf", "timm"):
        folder = convert(path, tmp_path / layout, to=layout)
        (folder / "tenfold.safetensors").unlink()
        (_, weights), (_, whole) = read(folder), read(path)
        same = replace(whole.config, local_cls_norm=False)
        assert weights.config == (same if layout == "hf" or "7b" not in name else replace(same, grid=37))
        a, b = weights.state["blocks.1.attention.qkv.weight"], whole.state["blocks.1.attention.qkv.weight"]
        assert torch.equal(a, b)


def test_block_chunks_and_training_checkpoints_give_the_plain_file(tmp_path: Path) -> None:
    _, tensors = official("dinov2-s", tmp_path)
    chunked = {
        key.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): t for key, t in tensors.items()
    }
    torch.save(chunked, tmp_path / "chunked.pth")
    heads = {"dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.last_layer.weight_g": torch.ones(2, 1)}
    training = {"teacher": {f"backbone.{key}": t for key, t in chunked.items()} | heads, "iteration": 7}
    torch.save(training, tmp_path / "training.pth")
    for file in ("chunked.pth", "training.pth"):
        assert_same_bits(convert(tmp_path / file, tmp_path / "back.pth", to="official"), tensors)


@pytest.mark.parametrize(
    ("name", "keys"), [("dinov2-s", 175), ("dinov2-s-reg", 176), ("dinov3-s", 188), ("dinov3-s+", 212)]
)
def test_official_files_have_the_released_number_of_keys(name: str, keys: int) -> None:
    spelling = OFFICIAL_V3 if "v3" in name else OFFICIAL_V2
    assert len(split(_meta(VIT_CONFIGS[name]), spelling)[0]) == keys


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_and_rules_are_read_off_the_shapes_of_every_released_model(name: str) -> None:
    config = LAYOUTS[name]
    spelling = OFFICIAL_V3 if config.positions == "rope" else OFFICIAL_V2
    tensors, _ = split(_meta(config), spelling)
    assert infer(tensors, spelling, Source(Path(f"{name}.pth"), tensors)) == config


def _meta(config: VitConfig) -> Weights:
    with torch.device("meta"):
        return Weights(config, VisionTransformer(config).state_dict())


def test_one_wrong_tensor_is_listed_and_does_not_change_the_sizes(tmp_path: Path) -> None:
    path, tensors = official("dinov3-s", tmp_path)
    broken = dict(tensors)
    broken["blocks.1.attn.prj.weight"] = broken.pop("blocks.1.attn.proj.weight")
    broken["blocks.0.norm1.weight"] = torch.ones(127)
    broken["cls_token"] = torch.ones(1, 1, 64)
    torch.save(broken, path)
    with pytest.raises(WeightsError) as error:
        load(path)
    message = str(error.value)
    assert "1 missing:\n    blocks.1.attn.proj.weight  (nearest: blocks.1.attn.prj.weight)" in message
    assert "1 unexpected:\n    blocks.1.attn.prj.weight  (nearest: blocks.1.attn.proj.weight)" in message
    assert "blocks.0.norm1.weight  (has (127,), needs (128,))" in message
    assert "cls_token  (has (1, 1, 64), needs (1, 1, 128))" in message


def test_a_changed_bias_mask_is_refused(tmp_path: Path) -> None:
    path, tensors = official("dinov3-s", tmp_path)
    tensors["blocks.1.attn.qkv.bias_mask"] = torch.ones(384)
    torch.save(tensors, path)
    with pytest.raises(WeightsError, match="bias_mask"):
        load(path)


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ({"stem": "conv", "patch_size": 8}, "hf", "convolutional stem"),
        ({"layer_scale": None}, "timm", "no LayerScale"),
        ({"norm_eps": 1e-6}, "official", "norm_eps"),
        ({"norm_eps": 1e-6}, "timm", "norm_eps"),
        ({"mask_k_bias": False}, "timm", "not zero"),
        ({"mean": (0.5, 0.5, 0.5)}, "official", "mean"),
        ({"mean": SATELLITE_MEAN}, "official", "sat493m"),
    ],
)
def test_a_layout_that_would_change_the_model_is_refused(change: dict, to: str, message: str, tmp_path: Path) -> None:
    weights = random_weights(replace(narrow(VIT_CONFIGS["dinov3-s"]), **change))
    save_own(tmp_path / "own.safetensors", weights.state, "vit", weights.config)
    with pytest.raises(WeightsError, match=message):
        convert(tmp_path / "own.safetensors", tmp_path / "out", to=to)
    assert [p.name for p in tmp_path.iterdir()] == ["own.safetensors"]


def test_pixel_statistics_travel_to_hugging_face_and_back(tmp_path: Path) -> None:
    path, _ = official("dinov3-l-sat493m", tmp_path)
    folder = convert(path, tmp_path / "hf", to="hf")
    (folder / "tenfold.safetensors").unlink()
    assert read(folder)[1].config.mean == SATELLITE_MEAN


def test_half_precision_stays_half_precision(tmp_path: Path) -> None:
    weights = random_weights(narrow(VIT_CONFIGS["dinov3-s"]))
    save_own(tmp_path / "a.safetensors", {k: v.bfloat16() for k, v in weights.state.items()}, "vit", weights.config)
    folder = convert(tmp_path / "a.safetensors", tmp_path / "hf", to="hf")
    stored, _ = read_safetensors(folder / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    model = load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training


def test_the_loaded_model_outlives_its_file(tmp_path: Path) -> None:
    path, _ = official("dinov3-s", tmp_path)
    model = load(path)
    images = torch.randn(1, 3, 64, 64)
    before = model(images).cls_token
    shutil.move(path, tmp_path / "moved.pth")
    assert torch.equal(model(images).cls_token, before)

"""Loading is strict, says what is wrong with which file, and leaves nothing half-written."""

from __future__ import annotations

import builtins
import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tenfold
from tenfold.data import tensors as tensor_files
from tenfold.data.tensors import read_safetensors, save_own
from tenfold.errors import StorageError, UsageError, WeightsError
from tenfold.export.weights import convert, load
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig

TINY = VitConfig(32, 2, 2, registers=1)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return save_own(tmp_path / "own.safetensors", VisionTransformer(TINY).state_dict(), "vit", TINY)


def test_convert_as_a_person_types_it_lists_every_wrong_key_and_leaves_with_4(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    config = VitConfig(64, 2, 1, registers=1, norm_eps=1e-5, mask_k_bias=True)
    save_own(tmp_path / "b.safetensors", VisionTransformer(config).state_dict(), "vit", config)
    convert(tmp_path / "b.safetensors", good, to="official")
    tensors = torch.load(good, weights_only=True)
    tensors["blocks.1.mlp.fc1.wieght"] = tensors.pop("blocks.1.mlp.fc1.weight")  # one missing, one extra
    tensors["norm.bias"] = torch.zeros(65)  # one misshaped
    torch.save(tensors, good)
    words = [sys.executable, "-m", "tenfold", "convert", str(good), str(tmp_path / "out"), "--to", "hf"]
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 4
    assert "blocks.1.mlp.fc1.weight  (nearest: blocks.1.mlp.fc1.wieght)" in result.stderr
    assert "blocks.1.mlp.fc1.wieght  (nearest: blocks.1.mlp.fc1.weight)" in result.stderr
    assert "norm.bias  (has (65,), needs (64,))" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_our_own_layout_keeps_weights_and_configuration(own: Path) -> None:
    model = tenfold.load(own)
    assert isinstance(model, VisionTransformer)
    assert model.config == TINY
    assert not model.training


def test_configuration_fields_can_be_changed_while_loading(own: Path) -> None:
    assert load(own, drop_path=0.25).config.drop_path == 0.25  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="drop_path"):
        load(own, drop_pat=0.25)
    with pytest.raises(WeightsError, match="missing"):
        load(own, depth=3)


def test_a_run_folder_loads_its_final_weights(tmp_path: Path, own: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(WeightsError, match=r"not finished.*--resume"):
        load(run)
    own.rename(run / "final.safetensors")
    assert isinstance(load(run), VisionTransformer)


def shards(folder: Path) -> dict[str, str]:
    config = LlamaConfig(vocabulary=17, dim=16, hidden=24, depth=2, heads=2, kv_heads=1)
    save_own(folder / "own.safetensors", Llama(config).state_dict(), "llama", config)
    convert(folder / "own.safetensors", folder / "hf", to="hf")
    tensors, _ = read_safetensors(folder / "hf/model.safetensors")
    (folder / "hf/model.safetensors").unlink()
    table = {name: f"model-{i % 2 + 1:05d}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for file in set(table.values()):
        save_file({n: t for n, t in tensors.items() if table[n] == file}, folder / "hf" / file)
    (folder / "hf/model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    return table


def test_sharded_folders_load_whole(tmp_path: Path) -> None:
    shards(tmp_path)
    expected, _ = read_safetensors(tmp_path / "own.safetensors")
    state = load(tmp_path / "hf").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_a_broken_index_names_the_shard(tmp_path: Path) -> None:
    table = shards(tmp_path)
    index = tmp_path / "hf/model.safetensors.index.json"
    for shard in ("../own.safetensors", "/etc/passwd", "..", "sub/x.safetensors"):
        index.write_text(json.dumps({"weight_map": table | {"lm_head.weight": shard}}))
        with pytest.raises(WeightsError, match="not the name of a weights file"):
            load(tmp_path / "hf")
    index.write_text(json.dumps({"weight_map": table | {"lm_head.weight": "gone.safetensors"}}))
    with pytest.raises(WeightsError, match=r"gone\.safetensors is missing"):
        load(tmp_path / "hf")
    index.write_text(json.dumps({"weight_map": table | {"more.weight": table["lm_head.weight"]}}))
    with pytest.raises(WeightsError, match=r"not in their shards: more\.weight"):
        load(tmp_path / "hf")


def test_unknown_weights_are_refused_with_the_known_layouts(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"Known: vit hf, .*llama hf, .*a\.weight"):
        load(tmp_path / "x.safetensors")


def test_an_absent_file_names_the_nearest_one(tmp_path: Path, own: Path) -> None:
    with pytest.raises(WeightsError, match=r"Did you mean .*own\.safetensors"):
        load(tmp_path / "onw.safetensors")


def test_an_unknown_layout_names_the_allowed_ones(tmp_path: Path, own: Path) -> None:
    with pytest.raises(UsageError, match="Allowed: hf, official, own, timm"):
        convert(own, tmp_path / "x", to="offical")


def test_an_existing_folder_is_not_replaced(tmp_path: Path, own: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists"):
        convert(own, tmp_path / "out", to="hf")


@pytest.mark.parametrize("metadata", ["{", '{"kind": "vit"}', '{"kind": "vitt", "config": {}}', "[" * 100000])
def test_damaged_metadata_is_a_weights_error(metadata: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"tenfold": metadata})
    with pytest.raises(WeightsError, match="metadata"):
        load(tmp_path / "x.safetensors")


def test_a_wrong_configuration_field_names_the_nearest(tmp_path: Path) -> None:
    text = json.dumps({"kind": "vit", "config": {"dimm": 3}})
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"tenfold": text})
    with pytest.raises(WeightsError, match=r"dimm.*dim"):
        load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("to", ["own", "hf", "official"])
def test_a_full_disk_keeps_what_was_there(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = VitConfig(64, 2, 1, registers=1, norm_eps=1e-5, mask_k_bias=True)
    source = save_own(tmp_path / "a.safetensors", VisionTransformer(config).state_dict(), "vit", config)
    target = tmp_path / "target"
    if to != "hf":
        target.write_text("before")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files, "write_safetensors", full)
    monkeypatch.setattr("tenfold.vision.backbones.weights.write_safetensors", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="no space left") as error:
        convert(source, target, to=to)
    assert error.value.exit_code == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", *(["target"] if to != "hf" else [])]
    assert to == "hf" or target.read_text() == "before"


def test_a_hub_id_without_the_hub_package_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: object, **more: object) -> object:
        if name.startswith("huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        load("facebook/dinov2-small")


def test_a_mistyped_path_does_not_go_to_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="no such file"):
        load("runs/mini")

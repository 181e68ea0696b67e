"""A vision transformer with a memory layer: it trains, keeps its table once, and computes the same when prepared."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tenfold.cli import main
from tenfold.errors import UsageError
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig

CONFIG = VitConfig(32, 3, 2, patch_size=8, memory_layers=(1,), memory_side=16)


def test_features_of_the_prepared_model_are_those_of_the_model() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(CONFIG).eval()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(
            model.for_inference()(images).patch_tokens, model(images).patch_tokens, rtol=1e-4, atol=1e-4
        )
    assert sum("memory" in name for name in model.state_dict()) == 1
    teacher: Any = copy.deepcopy(model)
    assert teacher.blocks[1].ffn.table is teacher.memory


def test_a_block_beyond_the_depth_is_refused() -> None:
    with pytest.raises(UsageError, match="0 to 2"):
        VitConfig(32, 3, 2, memory_layers=(3,))


def test_self_supervised_training_moves_the_rows_that_images_read(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--data", str(test_data / "vision/imagenette160_val.parquet"), "--batch", "4", "--val-rows", "20"]
    words += [
        "--dino.prototypes",
        "16",
        "--trainer.steps",
        "2",
        "--trainer.precision",
        "fp32",
        "--trainer.device",
        "cpu",
    ]
    assert main(["train", "dinov3-mini-memory", "--out", str(run), *words]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    saved = [name for name in load_file(run / "final.safetensors") if name.endswith("memory.values")]
    assert len(saved) == 1
    (checkpoint,) = [p for p in run.glob("step-2/*.safetensors") if "optim" in " ".join(load_file(p))]
    state = load_file(checkpoint)
    (name,) = [n for n in state if n.startswith("optim.") and n.endswith("memory.values.count")]
    assert 0 < int((state[name] > 0).sum()) < state[name].numel()

"""`tenfold language sparsity`: every layer with its shares and the decision of training, and 2:4 packed activations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from language.lm_runs import train
from tenfold.cli import main


@pytest.fixture(scope="module")
def shakespeare(test_data: Path) -> Path:
    return test_data / "text/tinyshakespeare.txt.gz"


@pytest.fixture(scope="module")
def run(shakespeare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lm") / "run"
    assert train("lm-relu2-24", out, shakespeare, "--trainer.steps", 12, "--sparsity.max-dropped", 1) == 0
    return out


def test_a_model_without_squared_relu_and_a_text_too_short_are_refused(
    run: Path, shakespeare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gated = tmp_path / "gated"
    assert train("lm-swiglu-dense", gated, shakespeare, "--trainer.steps", 1) == 0
    assert main(["language", "sparsity", str(gated)]) == 2
    assert "2:4 sparsity is for Squared-ReLU networks" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("short")
    assert main(["language", "sparsity", str(run), "--text", str(tmp_path / "short.txt")]) == 2
    assert "at least the context of 32 are needed" in capsys.readouterr().err


def test_the_sparsity_command_names_every_layer_and_the_decision_of_training(
    shakespeare: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["language", "sparsity", str(run), "--tokens", "256", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [row["layer"] for row in table] == ["blocks.0.ffn", "blocks.1.ffn"]
    assert all(row["2:4 safe"] == "yes" and row["in training"] == "sparse" for row in table)
    for layout, most in (("sm80", 0.0), ("sm90_16bit", 0.0), ("sm90_fp8", 0.05)):
        words = ["--tokens", "256", "--json", "--pack", str(tmp_path / f"{layout}.safetensors"), "--layout", layout]
        assert main(["language", "sparsity", str(run), *words]) == 0
        rows = json.loads(capsys.readouterr().out)
        tensors = load_file(tmp_path / f"{layout}.safetensors")
        for row in rows:
            assert row["largest error"] <= most
            assert row["bytes"] == sum(t.nbytes for n, t in tensors.items() if n.startswith(row["layer"]))
            assert row["bytes"] < (0.6 if most == 0 else 0.5) * row["dense bf16 bytes"]
    assert main(["language", "sparsity", str(run), "--pack", str(tmp_path / "p"), "--layout", "sm70"]) == 2
    assert "Did you mean 'sm80'?" in capsys.readouterr().err
    strict = tmp_path / "strict"
    assert train("lm-relu2-24", strict, shakespeare, "--trainer.steps", 4, "--sparsity.max-dropped", 0) == 0
    capsys.readouterr()
    assert main(["language", "sparsity", str(strict), "--tokens", "256", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert all(row["2:4 safe"].startswith("no") and "mass at step" in row["in training"] for row in table)
    assert main(["language", "sparsity", str(strict), "--pack", str(tmp_path / "none")]) == 2
    assert "safe in none of its layers" in capsys.readouterr().err

"""Commands that belong to no wing: lists as text and JSON, weights converted, and wrong options refused before any work."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch

from tenfold.cli import main
from tenfold.commands import BENCHES, Bench, bench_options
from tenfold.data.sample_table import SAMPLES
from tenfold.data.tensors import read_safetensors, save_own
from tenfold.errors import UsageError
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama
from tenfold.systems import SYSTEMS


def test_systems_are_listed_with_their_state_and_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["systems"]) == 0
    text = capsys.readouterr().out
    assert main(["systems", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(SYSTEMS)
    for row in rows:
        assert f"{row['number']:>2}  {row['state']:<8} {row['name']}" in text
        assert all(f"$ {command}" in text for command in row["commands"])


def test_samples_are_listed_with_size_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(SAMPLES)
    for sample, line in zip(SAMPLES, lines):
        assert line.split()[:3] == [sample.name, f"{sample.size / 1e6:.1f}", "MB"]
        assert sample.licence in line
    assert main(["samples", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [sample.name for sample in SAMPLES]


def test_one_unknown_sample_fetches_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))
    assert main(["samples", "clip-bpe", "smolm2"]) == 2
    assert "Did you mean 'smollm2'?" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_converted_weights_come_back_bit_for_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = LlamaConfig(vocabulary=17, dim=16, hidden=24, depth=2, heads=2, kv_heads=1)
    own = save_own(tmp_path / "own.safetensors", Llama(config).state_dict(), "llama", config)
    assert main(["convert", str(own), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "hf")
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "again.safetensors")]) == 0
    before, after = read_safetensors(own), read_safetensors(tmp_path / "again.safetensors")
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])


def test_options_go_to_the_benchmarks_that_have_them() -> None:
    assert bench_options("speculative", Bench(peers="hf,openvino", each=2)) == {"peers": ("hf", "openvino"), "each": 2}
    assert bench_options("ffn", Bench()) == {}
    with pytest.raises(UsageError, match="--peers: not an option of the benchmark ffn"):
        bench_options("ffn", Bench(peers="hf"))
    with pytest.raises(UsageError, match=r"--threads -1: allowed are whole numbers >= 1"):
        bench_options("speculative", Bench(threads=-1))


def test_every_benchmark_runs_without_an_option_and_has_no_other_than_those_of_the_command() -> None:
    known = {field.name for field in dataclasses.fields(Bench)}
    for benchmark in BENCHES:
        for option in inspect.signature(BENCHES.load(benchmark.name)).parameters.values():
            assert option.default is not option.empty, f"{benchmark.name} needs {option.name}"
            assert option.name in known | {"rounds"}


def test_a_tour_of_no_minutes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tour", "--out", str(tmp_path / "tour"), "--minutes", "0"]) == 2
    assert "--minutes 0.0: allowed is a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "tour").exists()

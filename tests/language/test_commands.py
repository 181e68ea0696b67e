"""`tenfold language generate | chat` as a person runs them, on a tiny model in a GGUF file."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest

from gguf_files import fields, write
from language.engine_models import tiny_llama
from tenfold.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = fields()
    target = tiny_llama(len(words["tokenizer.ggml.tokens"]), dim=64, hidden=96)  # type: ignore[arg-type]
    return str(write(tmp_path_factory.mktemp("model") / "tiny.gguf", target, tokenizer=words))


def test_an_answer_streams_to_standard_output_with_its_cost_below(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", model, "--max-tokens", "20", "--weights", "fp32"]
    assert main(["language", "generate", "ab ab ab", *words, "--drafter", "none"]) == 0
    plain = capsys.readouterr()
    assert main(["language", "generate", "ab ab ab", *words, "--drafter", "ngram"]) == 0
    quick = capsys.readouterr()
    cost = re.compile(r"\n(\d+) tokens in (\d+) passes: TPC ([\d.]+), [\d.]+ tokens/s; weights read at [\d.]+ GB/s")
    assert plain.out[: cost.search(plain.out).start()] == quick.out[: cost.search(quick.out).start()]  # type: ignore[union-attr]
    assert cost.search(plain.out)[3] == "1.00"  # type: ignore[index]
    assert "weights in fp32" in quick.err
    assert "drafter ngram" in quick.err


def test_a_file_of_prompts_gives_a_line_of_json_each(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "ab"}\n{"turns": ["cd"]}\n')
    words = ["--model", model, "--max-tokens", "6", "--weights", "fp32", "--temperature", "1", "--seed", "3"]
    assert main(["language", "generate", "x", "--prompts", str(file), *words, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["x", "ab", "cd"]
    assert all(row["tokens"] <= 6 and row["passes"] >= 1 for row in rows)
    assert main(["language", "generate", "x", "--raw", "--regex", "(ab){2}", *words]) == 0
    assert capsys.readouterr().out.startswith("abab\n")


def test_a_conversation_goes_on_until_an_empty_line(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\ncd\n\nnot asked\n"))
    words = ["--model", model, "--max-tokens", "5", "--weights", "fp32", "--seed", "1", "--system", "s"]
    assert main(["language", "chat", *words]) == 0
    assert capsys.readouterr().err.count("tokens/s") == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no prompt"),
        (["a", "--temperature", "-1"], 2, "temperature = -1.0"),
        (["a", "--model", "smollm2-135m"], 2, "Did you mean 'smollm2-135m-instruct'"),
        (["a", "--model", "{m}", "--drafter", "nowhere"], 2, "Allowed: auto, ngram, none, or a path"),
        (["a", "--model", "{m}", "--drafter", "{m}"], 4, "not a drafter"),
        (["a", "--model", "{m}", "--weights", "int4"], 2, "are F32"),
        (["a", "--model", "{cut}"], 4, "cut"),
        (["a", "--model", "{m}", "--regex", "("], 2, "cannot be used"),
        (["a" * 300, "--model", "{m}"], 2, "does not fit"),
        (["--prompts", "{missing}"], 3, "cannot be read"),
    ],
)
def test_a_mistake_is_one_message_and_an_exit_code(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(Path(model).read_bytes()[:-100])
    places = {"{m}": model, "{cut}": str(cut), "{missing}": str(tmp_path / "missing.jsonl")}
    assert main(["language", "generate", *[places.get(word, word) for word in words]]) == code
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said

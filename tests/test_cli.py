"""The command line as a person meets it: real processes, exit codes, messages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tenfold.cli import VERBS, main
from tenfold.registry import Entry


def tenfold(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tenfold", *args], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("vision match", "WEIGHTS LEFT RIGHT"),
        ("eval attentive", "WEIGHTS"),
        ("vision pca", "WEIGHTS IMAGES [IMAGES ...]"),
    ],
)
def test_help_calls_words_by_their_names(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main([*command.split(), "--help"]) == 0
        assert f" {words}" in capsys.readouterr().out.splitlines()[0]


def test_help_lists_every_command_that_exists() -> None:
    result = tenfold("--help")
    assert result.returncode == 0
    for entry in VERBS:
        assert entry.name in result.stdout


@pytest.mark.parametrize("entry", list(VERBS), ids=lambda e: e.name)
def test_every_command_explains_itself(entry: Entry, capsys: pytest.CaptureFixture[str]) -> None:
    name = entry.name
    assert main([*name.split(), "--help"]) == 0
    assert f"tenfold {name.split()[0]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["trian"], "Did you mean 'train'"),
        (["vision", "embd"], "Did you mean 'embed'"),
        (["train", "dinov3-mimi"], "Did you mean 'dinov3-mini'"),
        (["systems", "--jsn"], "--json"),
        (["convert", "a"], "destination"),
        (["convert", "a", "b", "--to", "hff"], "official"),
        (["--json"], "comes before any command"),
        (["bench", "vitt"], "Did you mean 'vit'"),
        (["bench", "ffn", "--threads", "2"], "--threads: not an option of the benchmark ffn"),
        (["bench", "speculative", "--each", "0"], "--each 0: allowed are whole numbers >= 1"),
    ],
)
def test_a_wrong_word_leaves_with_2_and_names_the_right_one(args: list[str], said: str) -> None:
    result = tenfold(*args)
    assert result.returncode == 2
    assert said in result.stderr.replace("│", "").replace("\n", " ") or said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_reader_that_closes_early_is_no_error() -> None:
    result = subprocess.run(
        f"{sys.executable} -m tenfold systems | head -1", shell=True, capture_output=True, text=True, check=False
    )
    assert result.stderr == ""

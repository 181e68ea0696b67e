"""Every command of docs/serving.md runs, on a tiny model."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path

import httpx
import pytest

from gguf_files import fields, write
from language.engine_models import tiny_llama
from language.servers import Server
from needed import package
from pages import commands
from tenfold.cli import main

PAGE = Path(__file__).resolve().parents[3] / "docs/serving.md"
TOKEN = "a secret of this page"
LINES = commands(PAGE.read_text())
SERVE = [words for words in LINES if words[:2] == ["serve", "language"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = fields()
    target = tiny_llama(len(words["tokenizer.ggml.tokens"]), dim=64, hidden=96, context=300)  # type: ignore[arg-type]
    return write(tmp_path_factory.mktemp("page") / "tiny.gguf", target, quantised=True, tokenizer=words)


def test_the_commands_at_the_terminal(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text(json.dumps({"enum": ["Orwell", "Austen"]}))
    ours = [words for words in LINES if words[0] == "language"]
    assert {tuple(words[:2]) for words in ours} == {("language", "generate"), ("language", "chat")}
    for words in ours:
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\n"))
        assert main([*words, "--model", str(model), "--max-tokens", "12", "--drafter", "ngram"]) == 0
        said = capsys.readouterr().out
        assert said.strip()
        if "--schema" in words:
            assert json.loads(said.splitlines()[0]) in ("Orwell", "Austen")
    assert len(ours) + len(SERVE) == len([words for words in LINES if words[0] != "train"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Serve's own models
def test_the_servers_start_answer_and_end(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_PREFILL_TOKEN", TOKEN)
    prefill: list[Server] = []
    running = []
    for words in SERVE:
        given = words[2:]
        at = given.index("--port")
        del given[at : at + 2]
        if "--prefill-url" in given:
            given[given.index("--prefill-url") + 1] = prefill[0].url
        if "--replicas" in given:
            package("ray.serve")
        server = Server(model, *given)
        running.append(server)
        assert httpx.get(f"{server.url}/health", timeout=30).json() == {"status": "ok"}
        if "prefill" in given:
            prefill.append(server)
            continue
        found = httpx.post(f"{server.url}/v1/completions", json={"prompt": "the ", "max_tokens": 5}, timeout=60)
        assert found.status_code == 200
    assert len(running) == len(SERVE) >= 4
    assert prefill[0].metric("prefill_prompts_total") == 1
    for server in running:
        server.process.send_signal(signal.SIGTERM)
    assert [server.process.wait(timeout=60) for server in running] == [0] * len(running)

"""`tenfold serve language`: flags that do not go together are refused, secrets and names come from where they should."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from language.small_pair import small_pair
from tenfold.cli import main
from tenfold.errors import UsageError
from tenfold.language.serve_commands import ServeLanguage, check, limits_of, make_app, model_name, token_of

SECRET = "a secret of this test"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ServeLanguage(replicas=0), "--replicas 0: allowed are whole numbers >= 1"),
        (ServeLanguage(prefill_timeout=0.0), "allowed is a time in seconds above 0"),
        (ServeLanguage(role="decode"), "--role decode and --prefill-url belong together"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_a_model_is_loaded(options: ServeLanguage, message: str) -> None:
    check(ServeLanguage())
    with pytest.raises(UsageError, match=message):
        check(options)


def test_a_file_s_secret_goes_before_the_variable_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_PREFILL_TOKEN", SECRET)
    (tmp_path / "secret").write_text("  another secret here\n")
    assert token_of(ServeLanguage()) == SECRET
    assert token_of(ServeLanguage(token_file=tmp_path / "secret")) == "another secret here"


def test_a_model_is_called_by_its_name_or_its_file_s(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").touch()
    assert model_name(ServeLanguage(model=str(tmp_path / "tiny.gguf"))) == "tiny"
    assert model_name(ServeLanguage(model="smollm2-135m-instruct")) == "smollm2-135m-instruct"


def test_replicas_run_more_and_let_no_more_wait() -> None:
    one, three = (limits_of(ServeLanguage(batch=4, waiting=9), replicas) for replicas in (1, 3))
    assert (one.running, three.running) == (8, 24)
    assert one.waiting == three.waiting == 9


def test_each_role_has_its_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENFOLD_PREFILL_TOKEN", SECRET)
    model, drafter = small_pair(tmp_path)
    options = {"model": str(model), "drafter": str(drafter), "weights": "fp32", "cache_tokens": 256}
    with TestClient(make_app(ServeLanguage(**options))) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert client.post("/v1/prefill").status_code == 404
    with TestClient(make_app(ServeLanguage(**options, role="prefill"))) as client:
        assert client.post("/v1/prefill").status_code == 401
        assert client.get("/v1/models").status_code == 404


def test_flags_that_do_not_go_together_say_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("TENFOLD_PREFILL_TOKEN", "TENFOLD_HANDOVER_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "short").write_text("abc\n")
    for words, message in (
        (["--role", "decode"], "--prefill-url belong together"),
        (["--prefill-url", "http://127.0.0.1:1"], "--prefill-url belong together"),
        (["--role", "prefill"], "Set TENFOLD_PREFILL_TOKEN to the same secret"),
        (["--role", "prefill", "--token-file", str(tmp_path / "short")], "has 3 characters"),
        (["--role", "prefill", "--token-file", str(tmp_path / "none")], "cannot be read"),
    ):
        assert main(["serve", "language", *words]) == 2
        assert message in capsys.readouterr().err

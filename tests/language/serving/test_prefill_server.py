"""The server that only computes prompts: pages for whoever has the secret and the same model, a status for everyone else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
from starlette.testclient import TestClient

from language.small_pair import small_pair
from tenfold.errors import UsageError
from tenfold.language.decoding.engine import LLM
from tenfold.language.serving.prefill_server import make_prefill_app
from tenfold.language.serving.prefill_transfer import DIGEST, PATH, TOKEN, Identity, unpack

PROMPT = [3, 1, 4, 1, 5, 9]
SECRET = "a secret of this test"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(*small_pair(tmp_path_factory.mktemp("pair")), weights="fp32", cache_tokens=256)


@pytest.fixture(scope="module")
def client(llm: LLM) -> Iterator[TestClient]:
    with TestClient(make_prefill_app(llm, SECRET)) as opened:
        yield opened


def test_the_pages_of_a_prompt_fill_another_engine(client: TestClient, llm: LLM) -> None:
    identity = Identity.of(llm)
    answer = client.post(PATH, json={"tokens": PROMPT, "identity": asdict(identity)}, headers={TOKEN: SECRET})
    assert answer.status_code == 200
    pages = unpack(answer.content, answer.headers[DIGEST], identity, PROMPT, llm.engine.runner)
    assert sum(page.target[0].shape[2] for page in pages.values()) == len(PROMPT) - 1
    metrics = client.get("/metrics").text
    assert 'tenfold_prefill_prompts_total{result="sent"} 1.0' in metrics
    assert f"tenfold_prompt_tokens_total {len(PROMPT)}.0" in metrics


@pytest.mark.parametrize(
    ("token", "tokens", "other", "status"),
    [
        (None, PROMPT, False, 401),
        (SECRET + "x", PROMPT, False, 401),
        (SECRET + "x", [], True, 401),  # before anything of the body is looked at
        (SECRET, [5], False, 400),
        (SECRET, ["a", "b"], False, 400),
        (SECRET, [10**6, 1], False, 400),
        (SECRET, PROMPT, True, 409),
    ],
)
def test_everyone_else_gets_a_status_and_no_pages(
    token: str | None, tokens: list, other: bool, status: int, client: TestClient, llm: LLM
) -> None:
    identity = replace(Identity.of(llm), target="another") if other else Identity.of(llm)
    headers = {} if token is None else {TOKEN: token}
    answer = client.post(PATH, json={"tokens": tokens, "identity": asdict(identity)}, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_secret_that_is_none_starts_no_server(llm: LLM) -> None:
    with pytest.raises(UsageError, match="has 3 characters"):
        make_prefill_app(llm, "abc")

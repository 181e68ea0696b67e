"""`tenfold serve language`: an OpenAI-compatible server in one process, as replicas, or with disaggregated prefill."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tenfold.errors import UsageError
from tenfold.kernels.formats import FormatChoice

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tenfold.serve.limits import Limits


@dataclass(frozen=True)
class ServeLanguage:
    """An OpenAI-compatible server: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics.

    $ tenfold serve language --port 8000
    $ curl localhost:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}' \\
        -H 'Content-Type: application/json'

    SIGTERM ends it: what runs is finished (for `drain` seconds at most), what comes is refused with 503.
    Two processes with one secret (in TENFOLD_PREFILL_TOKEN, or a file) share the work: one computes prompts, one answers.

    $ tenfold serve language --role prefill --port 8001
    $ tenfold serve language --role decode --port 8000 --prefill-url http://127.0.0.1:8001
    """

    model: str = "smollm2-135m-instruct"  # a name (the sample is fetched once), a GGUF file, or a folder
    drafter: str = "auto"  # auto | ngram | none | a drafter's file
    weights: FormatChoice = "auto"  # weight format that decodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes a free one
    batch: int = 8  # requests decoded together
    dispatch: Path | None = None  # table of `tenfold language tree`: which tree for which batch
    waiting: int = 64  # requests that may wait; more are refused with 429
    cache_tokens: int = 16384  # positions of the KV cache, for all requests together
    drain: float = 8.0  # seconds
    role: Literal["both", "prefill", "decode"] = "both"  # disaggregated prefill: what this process does of a request
    prefill_url: str | None = None  # for --role decode: where prompts are computed
    prefill_timeout: float = (
        8.0  # seconds for a prompt over there at most (2 and 4 per 1,000 tokens); then it is computed here
    )
    replicas: int = 1  # processes with the whole model, behind one address; more than one needs the extra [cluster]
    token_file: Path | None = None  # the secret of the two processes, instead of TENFOLD_PREFILL_TOKEN


def serve_language(options: ServeLanguage) -> int:
    from tenfold.serve.protocol import serve

    check(options)
    if options.replicas == 1:
        return serve(make_app(options), options.host, options.port)

    from tenfold.language.decoding.engine import locate
    from tenfold.serve.replicas import replicated

    located = replace(options, model=str(locate(options.model).resolve()))  # fetched once, not by every replica
    limits = limits_of(options, options.replicas)
    build = partial(make_app, located, model_name(options))
    with replicated("tenfold language", build, options.replicas, limits) as app:
        return serve(app, options.host, options.port)


def check(options: ServeLanguage) -> None:
    """Raises UsageError for flags that do not go together, before a model is loaded."""
    if (options.role == "decode") != (options.prefill_url is not None):
        raise UsageError("--role decode and --prefill-url belong together: give both, or neither.")
    if options.replicas < 1:
        raise UsageError(f"--replicas {options.replicas}: allowed are whole numbers >= 1.")
    if options.prefill_timeout <= 0:
        raise UsageError(f"--prefill-timeout {options.prefill_timeout}: allowed is a time in seconds above 0.")
    if options.role != "both":
        token_of(options)


def make_app(options: ServeLanguage, name: str | None = None) -> FastAPI:
    """The application of this role, with its model loaded. name: what clients call it."""
    from tenfold.language.decoding.engine import LLM
    from tenfold.language.serving.prefill_client import Prefill
    from tenfold.language.serving.prefill_server import make_prefill_app
    from tenfold.language.serving.routes import make_language_app

    limits = limits_of(options)
    llm = LLM(
        options.model,
        drafter=options.drafter,
        weights=options.weights,
        device=options.device,
        max_batch=options.batch,
        cache_tokens=options.cache_tokens,
    )
    if options.dispatch is not None:
        from tenfold.language.tuning.tree_search import dispatch

        dispatch(llm, options.dispatch)
    for note in llm.notes:
        print(note, file=sys.stderr)
    if options.role == "prefill":
        return make_prefill_app(llm, token_of(options), limits)
    prefill = None
    if options.prefill_url is not None:
        prefill = Prefill(options.prefill_url, token_of(options), options.prefill_timeout)
    return make_language_app(llm, name or model_name(options), limits, prefill)


def model_name(options: ServeLanguage) -> str:
    """What clients call the model: its name, or the file's."""
    return options.model if not Path(options.model).exists() else Path(options.model).stem


def limits_of(options: ServeLanguage, replicas: int = 1) -> Limits:
    from tenfold.serve.limits import Limits

    return Limits(running=2 * options.batch * replicas, waiting=options.waiting, drain=options.drain)


def token_of(options: ServeLanguage) -> str:
    """The secret of the two processes. Raises UsageError where there is none."""
    from tenfold.language.serving.prefill_transfer import check_token, token_from_environment

    if options.token_file is None:
        return check_token(token_from_environment())
    try:
        return check_token(options.token_file.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--token-file {options.token_file}: cannot be read ({error}).") from error

"""Disaggregated prefill: prompts are computed in one process and answered in another; the KV cache travels as safetensors.

    TENFOLD_PREFILL_TOKEN=... tenfold serve language --role prefill --port 8001
    TENFOLD_PREFILL_TOKEN=... tenfold serve language --role decode --port 8000 --prefill-url http://127.0.0.1:8001

    body = pack(pages, identity);  pages = unpack(body, digest(body), identity, prompt)

What travels for a prompt of L tokens are rows 0 .. L-2 of the target's and the drafter's KV cache in pages, each named
by the hash of all tokens up to its end, and the target's feature of every page's last row. The last token is left to the
decoder, whose first pass checks it together with its tree: so the answer is that of one process to the last token, sampled
or not. A page that does not come, or does not come whole and from the same model, is computed by the decoder.

    L layers   G key/value heads   T rows   D head width   F width of the drafter's features
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tenfold.errors import TenfoldError, UsageError
from tenfold.language.decoding.prefix_cache import page_ids
from tenfold.language.decoding.request import Page
from tenfold.language.decoding.runner import Runner

if TYPE_CHECKING:
    from tenfold.language.decoding.engine import LLM

PATH, FORMER_PATH = "/v1/prefill", "/v1/handover"
TOKEN, DIGEST = "x-tenfold-token", "x-tenfold-sha256"  # header fields: the shared secret, SHA-256 of the body
TOKEN_VARIABLE, FORMER_VARIABLE = "TENFOLD_PREFILL_TOKEN", "TENFOLD_HANDOVER_TOKEN"
SHORTEST = 16  # characters of a token

Reason = Literal["unreachable", "refused", "other model", "damaged", "too large"]


class TransferError(TenfoldError):
    """Pages that did not come or cannot be used. `reason` is one of a few words, for counting."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.reason, str(self))


@dataclass(frozen=True)
class Identity:
    """What two processes must have in common for the pages of one to be those of the other: fingerprints of target and
    drafter, the number format of the weights, and the rows of a page."""

    target: str
    drafter: str
    weights: str
    page: int

    @staticmethod
    def of(llm: LLM) -> Identity:
        return Identity(
            llm.fingerprint,
            "none" if llm.drafter is None else llm.drafter.fingerprint(),
            llm.format,
            llm.engine.runner.pages.size,
        )

    def check(self, other: Mapping[str, Any]) -> None:
        """Raises TransferError when the other process runs something else."""
        own = asdict(self)
        wrong = [
            f"{name} {value!r} here, {other.get(name)!r} there"
            for name, value in own.items()
            if other.get(name) != value
        ]
        if wrong:
            raise TransferError("other model", f"the two processes run different models: {'; '.join(wrong)}.")


def token_from_environment() -> str:
    """The shared secret in TENFOLD_PREFILL_TOKEN, or (with a warning) in the variable of the last version; "" without one."""
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token and (token := os.environ.get(FORMER_VARIABLE, "")):
        say_once(f"{FORMER_VARIABLE} is now {TOKEN_VARIABLE}; the former name ends with the next version.")
    return token


@cache
def say_once(sentence: str) -> None:
    """Prints a warning to standard error, the first time only."""
    print(f"tenfold: {sentence}", file=sys.stderr)


def check_token(token: str) -> str:
    """The token itself. Raises UsageError for one that is too short to be a secret."""
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable():
        raise UsageError(
            f"the prefill token has {len(token)} characters: at least {SHORTEST} printable ASCII characters are needed. "
            f"Set {TOKEN_VARIABLE} to the same secret in both processes, or give both --token-file FILE."
        )
    return token


def same_token(given: str | None, token: str) -> bool:
    """In a time that does not tell how much of it was right."""
    return hmac.compare_digest((given or "").encode("utf-8", "replace"), token.encode())


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def pack(pages: Mapping[bytes, Page], identity: Identity) -> bytes:
    """The pages of one prompt as a safetensors file."""
    from safetensors.torch import save

    each = list(pages.values())
    tensors = {}
    for name, part in (("keys", 0), ("values", 1)):
        tensors[f"target.{name}"] = torch.cat([page.target[part] for page in each], 2).contiguous()
        rows = [page.drafter[part] for page in each if page.drafter is not None]
        if rows:
            tensors[f"drafter.{name}"] = torch.cat(rows, 2).contiguous()
    features = [page.feature for page in each if page.feature is not None]
    if features:
        tensors["features"] = torch.stack(features)
    about = {"identity": json.dumps(asdict(identity)), "pages": json.dumps([key.hex() for key in pages])}
    return save(tensors, about)


def unpack(
    body: bytes, sha256: str | None, identity: Identity, prompt: Sequence[int], runner: Runner
) -> dict[bytes, Page]:
    """The pages of `prompt` out of what `pack` has made. Raises TransferError for a body that is not whole, of another
    model or of another prompt; nothing of it is used then."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not hmac.compare_digest((sha256 or "").encode("utf-8", "replace"), digest(body).encode()):
        raise TransferError("damaged", f"the SHA-256 of {len(body):,} bytes of pages is not the one announced.")
    try:
        length = int.from_bytes(body[:8], "little")
        about = json.loads(body[8 : 8 + length])["__metadata__"]
        theirs, ids = json.loads(about["identity"]), json.loads(about["pages"])
        tensors = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TransferError("damaged", f"pages that cannot be read ({error!s}).") from error
    identity.check(theirs if isinstance(theirs, dict) else {})
    keys = page_ids(prompt[:-1], identity.page)
    if ids != [key.hex() for key in keys]:
        raise TransferError("damaged", "pages of another prompt.")
    expected = expected_tensors(runner, len(prompt) - 1, len(keys))
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    if found != expected:
        raise TransferError("damaged", f"pages of the shapes {found}, where {expected} are needed.")
    return _split(tensors, keys, identity.page)


def expected_tensors(runner: Runner, rows: int, pages: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of everything that is transferred for so many rows."""
    result = {}
    for name, pool in (("target", runner.cache), ("drafter", runner.draft_cache)):
        if pool is not None:
            layers, groups, _, width = pool.keys.shape
            for part in ("keys", "values"):
                result[f"{name}.{part}"] = ((layers, groups, rows, width), pool.keys.dtype)
    kind = runner.drafter.features if runner.drafter else "none"
    if kind != "none":
        assert runner.drafter is not None
        times = len(runner.drafter.aux_layers) if kind == "aux" else 1
        result["features"] = ((pages, times * runner.model.config.dim), runner.model.embedding.weight.dtype)
    return result


def most_bytes(runner: Runner, prompt: int) -> int:
    """What a body for a prompt of so many tokens can have at most."""
    pages = -(-prompt // runner.pages.size)
    expected = expected_tensors(runner, prompt - 1, pages)
    return (
        sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in expected.values()) + 128 * pages + (64 << 10)
    )


def _split(tensors: dict[str, Tensor], keys: list[bytes], size: int) -> dict[bytes, Page]:
    pages = {}
    for i, key in enumerate(keys):
        cut = slice(i * size, (i + 1) * size)
        pair = {name: tensors[name][:, :, cut] for name in tensors if name != "features"}
        drafter = (pair["drafter.keys"], pair["drafter.values"]) if "drafter.keys" in pair else None
        feature = tensors["features"][i] if "features" in tensors else None
        pages[key] = Page((pair["target.keys"], pair["target.values"]), drafter, feature)
    return pages

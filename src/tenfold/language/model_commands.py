"""`tenfold language sparsity`: zeros of every layer, where 2:4 activation sparsity is safe, and 2:4 packed activations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from tenfold.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from tenfold.language.models.language_model import LanguageModel


@dataclass(frozen=True)
class Sparsity:
    """Zeros and dropped activation mass of every Squared-ReLU layer, on held-back text.

    $ tenfold language sparsity runs/lm-relu2-24
    $ tenfold language sparsity runs/lm-relu2-24 --text FILE
    $ tenfold language sparsity runs/lm-relu2-24 --pack packed.safetensors --layout sm80

    dropped: the share of relu(x)^2 that keeping 2 of 4 would lose, along the features of a token (the forward product) and
    along tokens (weight gradients): as they come, shuffled, and with the fullest features dense. A layer is refused where
    the first exceeds what the run allows; the decisions of training are shown beside.
    --pack writes the hidden units of the layers where 2:4 is safe as sparse matrix units read them, and says how many bytes
    they have and whether they unpack to the same numbers. Training on a GPU does not multiply them yet.
    """

    run: tyro.conf.Positional[Path]  # a run folder, or a weights file of one
    text: Path | None = None  # text to measure on; None is held-back documents of the standard library
    tokens: int = 4096  # how many
    pack: Path | None = None  # file for the 2:4 packed activations of these tokens (.safetensors)
    layout: str = "sm80"  # of --pack: sm80 (16 bits), sm90_16bit, sm90_fp8
    device: Literal["auto", "cpu", "cuda"] = "auto"  # of --pack: a GPU packs in one Triton kernel
    json: bool = False  # print as JSON


def sparsity(options: Sparsity) -> None:
    import numpy as np
    import torch

    from tenfold.engine.report import table_markdown
    from tenfold.language.models.language_model import measure_layers
    from tenfold.language.models.text import read_documents, split
    from tenfold.language.pretraining.evaluate_text import open_model
    from tenfold.nn.pack24 import MULTIPLES

    if options.layout not in MULTIPLES:
        raise unknown_name("2:4 layout", options.layout, MULTIPLES)
    model: LanguageModel = open_model(options.run)
    if model.config.activation != "relu2" or model.config.experts:
        raise UsageError(f"{options.run}: 2:4 sparsity is for Squared-ReLU networks; this model has none (lm-relu2-*).")
    documents = split(read_documents(None))[1] if options.text is None else read_documents(options.text)
    length = model.config.context
    rows = max(1, options.tokens // length)
    tokens = model.vocabulary.join(documents)[: rows * length].astype(np.int64)
    rows = len(tokens) // length
    if rows == 0:
        raise UsageError(
            f"--text {options.text} has {len(tokens)} tokens; at least the context of {length} are needed."
        )
    batch = torch.from_numpy(tokens[: rows * length]).view(rows, length)
    found = measure_layers(model, batch)
    decided = _decisions(options.run)
    allowed = model.settings.sparsity.max_dropped
    table = []
    for name, shares in found.items():
        safe = "yes" if shares["features"] <= allowed else f"no: {shares['features']:.3f} > {allowed}"
        row: dict[str, Any] = {
            "layer": name,
            **{key: round(value, 4) for key, value in shares.items()},
            "2:4 safe": safe,
        }
        if decided is not None:
            row["in training"] = decided.get(name, "sparse")
        table.append(row)
    if options.pack is not None:
        _pack(options, model, batch, table)
    print(json.dumps(table, indent=2) if options.json else table_markdown(table))


def _pack(options: Sparsity, model: LanguageModel, tokens: Tensor, table: list[dict[str, Any]]) -> None:
    """Writes the file, and adds what it holds to the rows of the table."""
    from tenfold.kernels.machine import choose_device
    from tenfold.language.models.packed_activations import figures, pack_layers, save

    assert options.pack is not None
    kept = [row["layer"] for row in table if row["2:4 safe"] == "yes" and row.get("in training", "sparse") == "sparse"]
    if not kept:
        raise UsageError(f"{options.run}: 2:4 is safe in none of its layers, so there is nothing to pack.")
    device = choose_device(options.device)
    packed = pack_layers(model.to(device), tokens.to(device), options.layout, kept)
    for row in table:
        held = packed.get(row["layer"])
        row |= figures(*held) if held else {"bytes": 0, "dense bf16 bytes": 0, "largest error": 0.0}
    save(options.pack, {name: one for name, (one, _) in packed.items()})


def _decisions(run: Path) -> dict[str, str] | None:
    """Why layers of a run stayed dense, from its newest checkpoint; None for a run without 2:4 sparsity, or a mere file."""
    from tenfold.engine.checkpoint import newest_state

    state = newest_state(run) if run.is_dir() else None
    sparsity = (state or {}).get("task", {}).get("sparsity")
    return {name: f"dense: {why}" for name, why in sparsity["refused"].items()} if sparsity else None

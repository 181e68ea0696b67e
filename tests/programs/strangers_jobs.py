"""What a stranger does with a scratch copy of tenfold that has a toy backbone, weight format, loss and HTTP route.

python strangers_jobs.py FOLDER        prints one JSON object with what each did
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import typing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

import tenfold
from gguf_files import fields, write
from language.engine_models import tiny_llama
from tenfold.engine.recipe import TrainerConfig
from tenfold.language import LLM, SamplingParams
from tenfold.language.serving.routes import make_language_app
from tenfold.registry import backbones
from tenfold.training import run_recipe
from tenfold.vision.pretraining.crops import MultiCropConfig
from tenfold.vision.pretraining.heads import HeadConfig
from tenfold.vision.pretraining.objectives import ObjectiveConfig
from tenfold.vision.pretraining.pretrain import PretrainRecipe


def train_the_backbone(folder: Path) -> dict[str, Any]:
    """Five steps on noise photographs, with the toy loss, then loaded from the run."""
    pool = folder / "pool"
    pool.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), np.uint8)).save(pool / f"{i}.png")
    model = backbones.load("toy")()
    recipe = PretrainRecipe(
        trainer=TrainerConfig(steps=5, device="cpu", log_every=1),
        data=pool,
        batch=4,
        crops=MultiCropConfig(local_crops=1, global_size=64, local_size=32),
        objective=ObjectiveConfig(ibot=0.0),
        model=model,
        dino=HeadConfig(16, 8, 12),
        ibot=HeadConfig(16, 8, 12),
    )
    torch.manual_seed(0)
    before = model.build().state_dict()
    metrics = run_recipe("dinov3", recipe, folder / "run")
    loaded = tenfold.load(folder / "run")
    rows = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    after = loaded.state_dict()
    return {
        "steps": metrics["steps"],
        "type": type(loaded).__name__,
        "config": dataclasses.asdict(typing.cast(Any, loaded).config),
        "moved": any(not torch.equal(before[name], after[name]) for name in before),
        "losses": sorted(name for name in rows[-1] if name in ("dino_global", "koleo", "toy")),
    }


def decode_in_the_format(folder: Path) -> dict[str, Any]:
    words = fields()
    model = tiny_llama(len(typing.cast(list, words["tokenizer.ggml.tokens"])), dim=64, hidden=96)
    path = write(folder / "tiny.gguf", model, tokenizer=words)
    llm = LLM(path, "ngram", weights="toy")
    (result,) = llm.generate([[5, 6, 7, 5, 6]], SamplingParams(max_tokens=8))
    maps = [m for m in llm.model.modules() if type(m).__name__ == "ToyLinear"]
    return {"format": llm.format, "tokens": len(result.token_ids), "maps": len(maps)}


def ask_the_route(folder: Path) -> dict[str, Any]:
    llm = LLM(folder / "tiny.gguf", "ngram", weights="fp32")

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=make_language_app(llm, "tiny"))
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as client:
            return await client.get("/v1/toy", params={"text": "ab"})

    answer = asyncio.run(ask())
    return {"status": answer.status_code, "tokens": answer.json(), "expected": llm.tokenizer.encode("ab")}


if __name__ == "__main__":
    scratch = Path(sys.argv[1])
    done = {"source": tenfold.__file__, "backbone": train_the_backbone(scratch)}
    done["format"] = decode_in_the_format(scratch)
    done["route"] = ask_the_route(scratch)
    print(json.dumps(done))

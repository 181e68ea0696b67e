"""SmolLM2 from its GGUF file gives transformers' logits and ids on real prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tenfold
from tenfold.language.models.tokenizer import Stream, load_tokenizer

pytestmark = pytest.mark.samples


def texts(folder: Path) -> list[str]:
    files = sorted((folder / "text/prompts").glob("*.jsonl"))
    return [turn for file in files for line in file.read_text().splitlines() for turn in json.loads(line)["turns"]]


def test_ids_equal_transformers_on_all_prompts_and_decode_to_the_text(smollm2: Path, test_data: Path) -> None:
    ours = load_tokenizer(smollm2)
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    # transformers' reader of GGUF leaves out that smollm cuts every digit alone, which changes "  40%".
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    prompts = texts(test_data)
    assert len(prompts) == 400
    for text in prompts:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == text
        chat = [{"role": "user", "content": text}]
        assert ours.render(chat) == theirs.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    for text in prompts[::20]:
        stream = Stream(ours)
        assert "".join([*map(stream.add, ours.encode(text)), stream.end()]) == text
    assert (ours.bos, ours.eos, sorted(ours.stop_ids)) == (1, 2, [0, 2])


@pytest.mark.slow
@torch.inference_mode()
def test_logits_equal_transformers_on_real_prompts(smollm2: Path, test_data: Path) -> None:
    ours = tenfold.load(smollm2)
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(smollm2)
    for text in texts(test_data)[::50]:
        ids = torch.tensor([tokenizer.chat([{"role": "user", "content": text}])])
        a, b = ours(ids).logits, theirs(ids).logits
        assert (a - b).abs().max() <= 1e-3
        assert torch.equal(a.argmax(-1), b.argmax(-1))

"""A language model: a Llama with its vocabulary, text in and text out. It is what `tenfold train lm-*` delivers.

    lm = tenfold.load("runs/lm-relu2-24")
    lm.generate("def main(", max_new_tokens=40)              the continuation, greedily
    set_mode(lm, "gather")                                   decode reads only the rows of `down` that are not zero

Speculative decoding and batches of requests are decoding/engine.py; this is plain decoding with a KV cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.export.weights import Family
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama
from tenfold.language.models.text import END, check_vocabulary, open_vocabulary
from tenfold.nn.ffn import SquaredReLUFFN
from tenfold.nn.sparse24 import Sparsity24, dropped_mass


@dataclass(frozen=True)
class LanguageModelConfig:
    """`vocabulary` is the text that text.open_vocabulary reads: "bytes", or a BPE in the tokenizers package's JSON."""

    model: LlamaConfig = field(default_factory=LlamaConfig)
    vocabulary: str = "bytes"
    sparsity: Sparsity24 = field(default_factory=Sparsity24)  # as it was trained, for mode sparse24


class LanguageModel(Llama):
    """A Llama, whose parameters keep their names, with the vocabulary that its configuration holds."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config.model)
        self.settings = config
        self.vocabulary = open_vocabulary(config.vocabulary)
        check_vocabulary(self.vocabulary, config.model.vocabulary)
        for module in self.modules():
            if isinstance(module, SquaredReLUFFN) and module.sparsity is not None:
                module.sparsity = config.sparsity

    @torch.inference_mode()
    def generate(
        self, prompt: str, max_new_tokens: int = 64, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> str:
        """The text that follows `prompt`: the likeliest token each time, or with a temperature above 0 one drawn."""
        if max_new_tokens < 1 or temperature < 0:
            raise UsageError(f"max_new_tokens = {max_new_tokens}, temperature = {temperature}: allowed >= 1, >= 0.")
        device = self.embedding.weight.device
        tokens = torch.tensor([self.vocabulary.encode(prompt) or [END]], device=device)
        cache = self.new_cache(batch=1, capacity=tokens.shape[1] + max_new_tokens)
        found: list[int] = []
        while len(found) < max_new_tokens:
            logits = self(tokens, cache=cache, logit_rows=torch.tensor([tokens.shape[1] - 1], device=device)).logits[0]
            token = self._pick(logits[: self.vocabulary.size], temperature, generator)
            if token == END:
                break
            found.append(token)
            tokens = torch.tensor([[token]], device=device)
        return self.vocabulary.decode(found)

    def _pick(self, logits: Tensor, temperature: float, generator: torch.Generator | None) -> int:
        if temperature == 0:
            return int(logits.argmax())
        chances = (logits.float() / temperature).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=generator))


def set_mode(model: nn.Module, mode: str) -> None:
    """The mode of every Squared-ReLU network of a model. Raises UsageError when it has none."""
    layers = [module for module in model.modules() if isinstance(module, SquaredReLUFFN)]
    if not layers:
        raise UsageError(f"mode {mode!r} is for Squared-ReLU networks (activation relu2), and this model has none.")
    for layer in layers:
        layer.mode = mode


@torch.no_grad()
def measure_layers(model: Llama, tokens: Tensor) -> dict[str, dict[str, float]]:
    """Shares of zeros and of mass that 2:4 would drop, by layer, on tokens (B, N). Each layer's `zeros` is set to what was
    found, which tells mode gather how many tokens at once are worth it."""
    found: dict[str, dict[str, float]] = {}

    def seen(name: str, layer: SquaredReLUFFN, y1: Tensor) -> None:
        shares = dropped_mass(y1, (layer.sparsity or Sparsity24()).dense_fraction)
        found[name] = {key: float(value) for key, value in shares._asdict().items()}

    visit_hidden_units(model, tokens, seen)
    for name, shares in found.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, SquaredReLUFFN)
        layer.zeros = shares["zeros"]
    return found


@torch.no_grad()
def visit_hidden_units(model: Llama, tokens: Tensor, seen: Callable[[str, SquaredReLUFFN, Tensor], None]) -> None:
    """Calls `seen` with y1 = x W_up (B N, h) of every Squared-ReLU layer on tokens (B, N), all of them dense."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SquaredReLUFFN)}

    def watch(name: str, layer: SquaredReLUFFN):
        def hook(_module: nn.Module, _inputs: object, y1: Tensor) -> None:
            seen(name, layer, y1.flatten(0, -2))

        return layer.up.register_forward_hook(hook)

    modes = {name: layer.mode for name, layer in layers.items()}
    handles = [watch(name, layer) for name, layer in layers.items()]
    try:
        for layer in layers.values():
            layer.mode = "dense"
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.mode = modes[name]


FAMILY = Family("language-model", LanguageModelConfig, LanguageModel, ())

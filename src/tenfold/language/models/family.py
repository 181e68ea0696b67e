"""Weights layouts of a Llama that `tenfold.load` and `convert` know: Hugging Face, GGUF and the released memory layers.

    tenfold.load(PATH)                                     by whichever layout recognises its keys
    tenfold convert PATH OUT --to hf

A new layout is a module with a LAYOUT, and one entry here.
"""

from __future__ import annotations

from tenfold.export.weights import Family
from tenfold.language.models import gguf_weights, memory_weights, weights
from tenfold.language.models.config import LlamaConfig
from tenfold.language.models.llama import Llama

FAMILY = Family("llama", LlamaConfig, Llama, (weights.LAYOUT, gguf_weights.LAYOUT, memory_weights.LAYOUT))

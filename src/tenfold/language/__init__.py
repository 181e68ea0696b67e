"""Language: Llama, speculative decoding (EAGLE), an engine with a server, 2:4 sparsity and memory layers.

Public names, imported when they are used; docs/api.md has a line and an example for each. Rooms may move; these stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.registry import public_names

if TYPE_CHECKING:
    from tenfold.language.decoding.engine import LLM as LLM
    from tenfold.language.drafting.protocol import Draft as Draft
    from tenfold.language.drafting.protocol import Drafter as Drafter
    from tenfold.language.drafting.speculation import Speculation as Speculation
    from tenfold.language.drafting.tree import Tree as Tree
    from tenfold.language.models.config import LlamaConfig as LlamaConfig
    from tenfold.language.models.language_model import LanguageModel as LanguageModel
    from tenfold.language.models.language_model import measure_layers as measure_layers
    from tenfold.language.models.language_model import set_mode as set_mode
    from tenfold.language.models.llama import Llama as Llama
    from tenfold.language.sampling.sampling import SamplingParams as SamplingParams

__all__ = [
    "LLM",
    "Draft",
    "Drafter",
    "LanguageModel",
    "Llama",
    "LlamaConfig",
    "SamplingParams",
    "Speculation",
    "Tree",
    "measure_layers",
    "set_mode",
]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "tenfold.language.decoding.engine": "LLM",
        "tenfold.language.drafting.protocol": "Draft Drafter",
        "tenfold.language.drafting.speculation": "Speculation",
        "tenfold.language.drafting.tree": "Tree",
        "tenfold.language.models.config": "LlamaConfig",
        "tenfold.language.models.language_model": "LanguageModel measure_layers set_mode",
        "tenfold.language.models.llama": "Llama",
        "tenfold.language.sampling.sampling": "SamplingParams",
    },
)

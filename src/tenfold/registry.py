"""Registries of recipes, weights, backbones and commands: `"module:attribute"` references, imported only when used.

The command line lists verbs, recipes and systems from here without importing torch.

    recipes = Registry("recipe")
    recipes.add("dinov3-mini", "tenfold.vision.recipes:dinov3_mini", "self-supervised training on a laptop CPU")
    recipes.load("dinov3-mini")()
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tenfold.errors import nearest, unknown_name


@dataclass(frozen=True)
class Entry:
    """One name. `target` is `"module:attribute"`; `summary` is the line that `--help` prints."""

    name: str
    target: str
    summary: str = ""

    def load(self) -> Any:
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Registry:
    """An ordered set of names of one kind (`kind` is the noun that errors use)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}
        self._aliases: dict[str, str] = {}

    def add(self, name: str, target: str, summary: str = "") -> None:
        assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
        assert ":" in target, f"{target!r} is not 'module:attribute'"
        self._entries[name] = Entry(name, target, summary)

    def alias(self, old: str, new: str) -> None:
        """Keeps a name of an earlier version: it loads what `new` does, and no list shows it."""
        assert old not in self, f"{self.kind} {old!r} is registered twice"
        assert new in self._entries, f"{old!r} would be another name of {new!r}, which is not registered"
        self._aliases[old] = new

    def current(self, name: str) -> str:
        """The name itself, or for an alias the name of today, which is then said on standard error."""
        if name in self._aliases:
            print(f"tenfold: the {self.kind} {name} is called {self._aliases[name]} now.", file=sys.stderr)
        return self._aliases.get(name, name)

    def entry(self, name: str) -> Entry:
        """Raises UsageError with the nearest name when `name` is unknown."""
        name = self._aliases.get(name, name)
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def load(self, name: str) -> Any:
        return self.entry(name).load()

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._aliases


def public_names(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names are imported when they are used.

    names: {"tenfold.vision.probes.probe": "knn_classify linear_probe"}, the module that has each.
    """
    where = {name: module for module, several in names.items() for name in several.split()}

    def find(name: str) -> Any:
        if name not in where:
            close = nearest(name, where)
            hint = f" (did you mean {close!r}?)" if close else ""
            raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")
        return getattr(importlib.import_module(where[name]), name)

    return find, lambda: sorted(where)


recipes = Registry("recipe")
recipes.add("dinov3-mini", "tenfold.vision.recipes:dinov3_mini", "self-supervised training on a laptop CPU")
for _name, _summary in [
    ("dinov3-mini-memory", "dinov3-mini with a memory layer in the middle"),
    ("dinov3-mini-24", "dinov3-mini with 2:4 sparse feed-forward networks"),
    ("dinov3-imagenette", "ViT-S/16 on one GPU in half an hour"),
    ("dinov3", "DINOv3 stage 1, --size t to 7b"),
    ("dinov3-gram", "DINOv3 stage 2: Gram anchoring, from --start RUN"),
    ("dinov3-highres", "DINOv3 stage 3: mixed high resolutions, from --start RUN"),
    ("dinov3-distill", "a --teacher RUN into several --students at once"),
    ("dinov3-text", "images and texts in one space: --backbone W --captions FILE"),
    ("dinov2", "DINOv2, --size s to g"),
]:
    recipes.add(_name, f"tenfold.vision.recipes:{_name.replace('-', '_')}", _summary)
recipes.alias("dinov3-vits", "dinov3")
recipes.alias("dinov2-vits", "dinov2")
for _name, _summary in [
    ("lm-swiglu-dense", "a language model with gated networks, --size tiny to base"),
    ("lm-relu2-dense", "with Squared-ReLU networks"),
    ("lm-relu2-24", "with 2:4 activation sparsity after a dense warm-up"),
    ("lm-moe-top1", "with eight experts, one for each token"),
    ("lm-memory-plus", "with Memory+ layers and one shared table"),
    ("lm-memory-pkm", "with product-key memory"),
    ("lm-memory-peer", "with thousands of one-unit experts"),
]:
    recipes.add(_name, f"tenfold.language.recipes:{_name.replace('-', '_')}", _summary)
for _name, _summary in [
    ("eagle3-smollm2", "a drafter for SmolLM2 on its own answers, two hours of one core"),
    ("eagle3-smollm2-2layer", "the same with two layers"),
    ("eagle1-smollm2", "EAGLE-1 for SmolLM2"),
    ("eagle3-smoke", "the machinery of drafters in seconds, on a random target"),
]:
    recipes.add(_name, f"tenfold.language.distillation.recipes:{_name.replace('-', '_')}", _summary)

# Image backbones, by the kind of their configuration: one file and one line each (vision/backbones/backbone.py).
backbones = Registry("backbone")
backbones.add("vit", "tenfold.vision.backbones.vit:VitConfig", "vision transformers: DINOv2, DINOv3")
backbones.add("convnext", "tenfold.vision.backbones.convnext:ConvNextConfig", "the ConvNeXt of DINOv3")

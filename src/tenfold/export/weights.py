"""Weights in and out: any known layout is recognised by its keys, read strictly, and written back bit for bit.

    model = tenfold.load("dinov3_vits16_pretrain_lvd1689m-08c60483.pth")      # or a folder, a run, a hub id
    tenfold.load(path, rope_periods="exact", drop_path=0.1)                   # with fields of its configuration changed
    convert("dinov3_vits16.pth", "OUT", to="hf")

A wing offers a `Family`: its model class and the layouts of others that it knows. It is registered here by name and
imported only when a file has to be recognised, so this module knows no wing. Between two layouts weights are a `Weights`:
our parameter names and our configuration.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from tenfold.config import from_dict
from tenfold.data.atomic import aside
from tenfold.data.tensors import OWN_KEY, save_own
from tenfold.errors import UsageError, WeightsError, unknown_name
from tenfold.export.gguf import GGUFFile
from tenfold.export.keymap import check_names
from tenfold.export.reading import SIDE, Source, open_source
from tenfold.nn.outline import outline
from tenfold.registry import Registry, backbones

__all__ = ["Family", "Layout", "Weights", "config_of", "convert", "families", "load", "read", "save_own"]

C = TypeVar("C")

families = Registry("kind of model")
families.add("vit", "tenfold.vision.backbones.weights:FAMILY", "vision transformers: DINOv2, DINOv3")
families.add("convnext", "tenfold.vision.backbones.convnext_weights:FAMILY", "the ConvNeXt of DINOv3")
families.add("text-aligned", "tenfold.vision.text.weights:ALIGNED", "dino.txt: images and texts in one space")
families.add("sentence-encoder", "tenfold.vision.text.weights:SENTENCE", "sentence encoders: MiniLM")
families.add("drafter", "tenfold.language.drafting.weights:FAMILY", "drafters: EAGLE-1, EAGLE-3")
families.add(
    "language-model", "tenfold.language.models.language_model:FAMILY", "Llamas with their vocabulary, from tenfold"
)
families.add("llama", "tenfold.language.models.family:FAMILY", "Llama")


@dataclass(frozen=True)
class Weights:
    """Parameters and buffers under our names, with the configuration that they belong to."""

    config: Any
    state: Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Somebody's way to name and store weights. `write` gets a path that does not exist yet: a file or a folder."""

    name: str
    recognises: Callable[[Source], bool]
    read: Callable[[Source], Weights]
    write: Callable[[Weights, Path], None]


@dataclass(frozen=True)
class Family:
    """What a wing offers: `build(config)` makes the model whose `state_dict` the layouts map to. `own` reads and writes our
    own layout where that is not simply our parameter names: (configuration, source) -> Weights, Weights -> tensors."""

    kind: str
    config: type
    build: Callable[[Any], nn.Module]
    layouts: tuple[Layout, ...]
    own: tuple[Callable[[Any, Source], Weights], Callable[[Weights], dict[str, Tensor]]] | None = None


def family_of(kind: str) -> Family:
    """The family registered under this kind; that of a backbone without one has tenfold's own layout only. Raises UsageError
    for an unknown kind."""
    if kind in backbones and kind not in families:
        config = backbones.load(kind)
        return Family(kind, config, config.build, ())
    return families.load(kind)


def load(source: str | Path, **changes: Any) -> nn.Module:
    """The model in `source`, in evaluation mode, in the number format of its file. Parameters are mapped, not copied.

    source: a weights file, Hugging Face folder, run folder, or hub id ("facebook/dinov2-small").
    changes: fields of the model's configuration to set to something else than the file says.
    Raises WeightsError (exit code 4) with every missing, unexpected or misshaped key.
    """
    family, weights = read(source, changes)
    if changes:
        names = [field.name for field in dataclasses.fields(weights.config)]
        for name in changes:
            if name not in names:
                raise unknown_name(f"field of {type(weights.config).__name__}", name, names)
        weights = Weights(dataclasses.replace(weights.config, **changes), weights.state)
    model = _empty(family, weights.config)
    _check(model, weights, source)
    model.load_state_dict(weights.state, assign=True)
    return model.eval()


def convert(source: str | Path, destination: str | Path, to: str = "own", **hints: Any) -> Path:
    """Writes the weights of `source` in the layout `to`: "own", or one that the family of the model has.

    hints: fields of the configuration that the source leaves open or says in words of two meanings.

    Returns `destination`, which appears only when it is complete. What a layout has no place for travels beside it in
    `tenfold.safetensors`; a layout that would change what the model computes is refused (WeightsError).
    """
    destination = Path(destination)
    if destination.is_dir():
        raise UsageError(f"{destination} is a folder that exists. Remove it, or name another destination.")
    family, weights = read(source, hints)
    if hints:
        unknown = set(hints) - {field.name for field in dataclasses.fields(weights.config)}
        if unknown:
            raise UsageError(f"{source}: a {family.kind} has no {', '.join(sorted(unknown))} to be given.")
        weights = Weights(dataclasses.replace(weights.config, **hints), weights.state)
    if to == "own":
        state = weights.state if family.own is None else family.own[1](weights)
        return save_own(destination, state, family.kind, weights.config)
    layouts = {layout.name: layout for layout in family.layouts}
    if to not in layouts:
        raise unknown_name(f"layout of {family.kind}", to, [*layouts, "own"])
    with aside(destination) as temporary:
        layouts[to].write(weights, temporary)
    return destination


def read(source: str | Path, hints: Mapping[str, Any] | None = None) -> tuple[Family, Weights]:
    """The family and the weights, checked against the model that their configuration describes."""
    opened = dataclasses.replace(open_source(source), hints=dict(hints or {}))
    if OWN_KEY in opened.metadata:
        family, config = own_config(opened.path, opened.metadata[OWN_KEY])
        weights = Weights(config, dict(opened.tensors)) if family.own is None else family.own[0](config, opened)
    else:
        family, layout = _recognised(opened)
        weights = layout.read(opened)
    _check(_empty(family, weights.config), weights, source)
    return family, weights


def own_config(path: Path, text: str) -> tuple[Family, Any]:
    """Family and configuration from the metadata of a file of ours."""
    try:
        values = json.loads(text)
        family = family_of(values["kind"])
        return family, from_dict(family.config, values["config"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # a UsageError is a ValueError
        raise WeightsError(f"{path}: its tenfold metadata cannot be used ({error}).") from error


def config_of(source: Source, infer: Callable[[], C], what: str) -> C:
    """The configuration of a foreign layout: from tenfold's side file where there is one, else what `infer` makes of names
    and shapes."""
    if OWN_KEY in source.side_metadata:
        return own_config(source.path / SIDE, source.side_metadata[OWN_KEY])[1]
    try:
        return infer()
    except UsageError as error:  # shapes that no model has
        raise WeightsError(f"{source.path}: the shapes of its tensors fit no {what} ({error})") from error


def _recognised(source: Source) -> tuple[Family, Layout]:
    known = []
    if isinstance(source.tensors, GGUFFile):  # by names and shapes, before anything is dequantised
        source = dataclasses.replace(source, tensors=source.tensors.outline())
    for entry in families:
        family: Family = entry.load()
        for layout in family.layouts:
            if layout.recognises(source):
                return family, layout
            known.append(f"{family.kind} {layout.name}")
    keys = sorted(source.tensors)
    raise WeightsError(
        f"{source.path}: the layout of these weights is not known. Known: {', '.join(dict.fromkeys(known))}, and "
        f"tenfold's own. It holds {len(keys)} tensors: {', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''}."
    )


def _empty(family: Family, config: Any) -> nn.Module:
    with outline():
        return family.build(config)


def _check(model: nn.Module, weights: Weights, where: object) -> None:
    check_names({name: tuple(t.shape) for name, t in model.state_dict().items()}, weights.state, where)
    own = model.state_dict()
    whole = [n for n, t in weights.state.items() if own[n].is_floating_point() and not t.is_floating_point()]
    if whole:
        raise WeightsError(f"{where}: not floating-point numbers: {', '.join(sorted(whole)[:8])}.")

"""Registry of the ten systems, one for each paper, with the true state of each. `state` is what a user can do today.

    works     every command of the row runs on the user's own files
    partial   what `note` says works; the rest does not exist yet
    planned   nothing of it can be run

The README's table is made from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class System:
    """One row. `commands` are the ones that exist."""

    number: int
    name: str
    wing: str
    state: Literal["works", "partial", "planned"]
    note: str
    commands: tuple[str, ...] = ()


SYSTEMS: tuple[System, ...] = (
    System(
        1,
        "DINOv3: self-supervised vision",
        "vision",
        "partial",
        "ViT and ConvNeXt backbones, dino.txt, released weights both ways, features, matches, tracks, segments, zero-shot; "
        "pretraining, Gram and high-resolution stages, distillation, text alignment; small weights of our own ship; not yet "
        "runs at scale",
        (
            "tenfold train dinov3",
            "tenfold train dinov3-mini",
            "tenfold train dinov3",
            "tenfold train dinov3-gram",
            "tenfold train dinov3-distill",
            "tenfold train dinov3-text",
            "tenfold vision embed",
            "tenfold vision match",
            "tenfold vision zeroshot",
            "tenfold convert",
        ),
    ),
    System(
        2,
        "EAGLE speculative decoding for Llama",
        "language",
        "partial",
        "a drafter trained for SmolLM2 ships; EAGLE heads with fixed and dynamic trees, prompt lookup and both together, "
        "rejection sampling, an engine with continuous batching and grammars, an OpenAI-compatible server with replicas and "
        "disaggregated prefill; the paths for a GPU are written and have not been run",
        (
            "tenfold language generate",
            "tenfold language chat",
            "tenfold serve language",
            "tenfold language tree",
            "tenfold train eagle3-smollm2",
            "tenfold eval speculative",
        ),
    ),
    System(
        3,
        "2:4 activation sparsity with Squared-ReLU",
        "language",
        "partial",
        "training with the switch from dense to sparse, exact batch-1 decoding that reads only active rows, packing in three "
        "layouts (`language sparsity --pack`) that training does not multiply yet; the GPU kernels are written and not run",
        ("tenfold train lm-relu2-24", "tenfold eval text", "tenfold language sparsity", "tenfold bench ffn"),
    ),
    System(
        4,
        "Memory layers at scale",
        "language",
        "partial",
        "memory layers, row gradients and RowAdamW, tables split over ranks, recall of generated and real facts; the GPU "
        "kernels are written and have not been run",
        ("tenfold train lm-memory-plus", "tenfold eval facts", "tenfold language memory", "tenfold bench memory"),
    ),
    System(5, "Sub-metre canopy height maps", "canopy", "planned", "nothing yet"),
    System(
        6,
        "DINOv2: curated data and self-supervised training",
        "vision",
        "partial",
        "the losses and training task, backbones, released weights both ways, features, and the curation pipeline "
        "at the size of one machine; not yet trained at the papers' scale",
        ("tenfold train dinov2", "tenfold vision curate", "tenfold vision embed", "tenfold convert"),
    ),
    System(7, "Frontalizer: frontally-viewed face embedding", "faces", "planned", "nothing yet"),
    System(8, "VoxPopuli: speech corpus pipeline and baselines", "speech", "planned", "nothing yet"),
    System(9, "Low-bandwidth video chat from facial landmarks", "faces", "planned", "nothing yet"),
    System(10, "Population-based training of SpecAugment and dropout", "speech", "planned", "nothing yet"),
)


def systems() -> list[dict[str, Any]]:
    """The table as plain values, in the order of the papers' list."""
    return [asdict(system) for system in SYSTEMS]

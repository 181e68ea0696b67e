"""The training recipes of the vision wing, each a plain function that returns its configuration.

`dinov3-mini` was tuned on a laptop CPU (docs/LOG.md has what did not work); the `dinov2-*` recipe carries the published
numbers of the released code.
"""

from __future__ import annotations

from tenfold.engine.config import OptimConfig, TrainerConfig
from tenfold.engine.schedule import Schedule
from tenfold.vision.crops import MultiCropConfig
from tenfold.vision.heads import HeadConfig
from tenfold.vision.pretrain import ObjectiveConfig, PretrainRecipe
from tenfold.vision.vit import VIT_CONFIGS


def dinov3_mini() -> PretrainRecipe:
    """1.9 M parameters on 48-pixel crops: real self-supervised training in minutes on a laptop CPU.

    Departures from the papers, each because the papers' choice did not learn at this scale: batch norm in the head, the
    mean of the patch tokens as the feature, few unit-length prototypes with sharp targets, no iBOT.
    """
    return PretrainRecipe(
        trainer=TrainerConfig(steps=1311, precision="auto", checkpoint_every=200, validate_every=218, log_every=10),
        optim=OptimConfig(
            lr=1.5e-3,
            weight_decay=0.04,
            clip=3.0,
            schedule=Schedule(kind="cosine", warmup=0.05, final=0.02),
        ),
        batch=64,
        source_side=64,
        model=VIT_CONFIGS["mini"],
        crops=MultiCropConfig(
            local_crops=4,
            global_size=48,
            local_size=24,
            global_scale=(0.25, 1.0),
            local_scale=(0.05, 0.25),
            solarize=0.0,
            blur=(0.3, 0.3, 0.0),
        ),
        dino=HeadConfig(hidden=512, bottleneck=64, prototypes=256, batch_norm=True, unit_prototypes=True),
        objective=ObjectiveConfig(
            ibot=0.0,
            koleo=0.1,
            teacher_temperature=Schedule("constant", peak=0.035, start=0.025, warmup=1 / 3),
            momentum=Schedule("cosine", peak=0.97, final=1.0),
            pool="patch-mean",
        ),
    )


def dinov2_vits() -> PretrainRecipe:
    """DINOv2's objective on ViT-S/14: DINO, iBOT with its own head, KoLeo on two global and eight local crops."""
    return PretrainRecipe(
        trainer=TrainerConfig(steps=125_000, precision="auto", checkpoint_every=2500, validate_every=12_500, workers=8),
        optim=OptimConfig(
            lr=2e-4 * (1024 / 1024) ** 0.5,
            weight_decay=0.04,
            weight_decay_end=0.2,
            clip=3.0,
            clip_per_module=True,
            schedule=Schedule(kind="cosine", warmup=0.08, final=1e-6 / 2e-4),
        ),
        batch=1024,
        source_side=256,
        model=VIT_CONFIGS["dinov2-s"],
        crops=MultiCropConfig(global_size=224, local_size=98),
        dino=HeadConfig(hidden=2048, bottleneck=384, prototypes=131_072, unit_prototypes=True),
        ibot=HeadConfig(hidden=2048, bottleneck=256, prototypes=131_072, unit_prototypes=True),
        objective=ObjectiveConfig(
            momentum=Schedule("cosine", peak=0.994, final=1.0),
            teacher_temperature=Schedule("constant", peak=0.07, start=0.04, warmup=0.24),
            freeze_prototypes=0.01,
        ),
    )

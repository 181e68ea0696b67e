"""The training recipes of the vision wing, each a plain function that returns its configuration.

`dinov3-mini` was tuned on a laptop CPU (docs/LOG.md has what did not work); the others carry the numbers of the papers
and released configurations, which no machine of ours has run to the end. Lengths are shares of `trainer.steps`, so a short
run keeps the shape of a long one.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from tenfold.engine.recipe import TrainerConfig
from tenfold.engine.schedule import OptimConfig, Schedule, constant
from tenfold.vision.backbones.vit import VIT_CONFIGS, VitConfig
from tenfold.vision.pretraining.crops import MultiCropConfig
from tenfold.vision.pretraining.distill import DistillRecipe
from tenfold.vision.pretraining.gram import GramConfig
from tenfold.vision.pretraining.heads import HeadConfig
from tenfold.vision.pretraining.objectives import ObjectiveConfig
from tenfold.vision.pretraining.pretrain import PretrainRecipe
from tenfold.vision.text.align import TextAlignRecipe


def dinov3_mini() -> PretrainRecipe:
    """1.9 M parameters on 48-pixel crops: real self-supervised training in twenty minutes on a laptop CPU.

    Departures from the papers, each because the papers' choice did not learn at this scale: batch norm in the head, the
    mean of the patch tokens as the feature, few unit-length prototypes with sharp targets, no iBOT.
    """
    return PretrainRecipe(
        trainer=TrainerConfig(steps=2000, precision="auto", checkpoint_every=200, validate_every=250, log_every=10),
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
        ),
    )


def dinov3_mini_memory() -> PretrainRecipe:
    """`dinov3-mini` with one block's network replaced by a lookup in a table (docs/memory.md): that images learn with it
    too. Nothing is claimed of the result."""
    recipe = dinov3_mini()
    model = dataclasses.replace(recipe.model, memory_layers=(recipe.model.depth // 2,), memory_side=64)
    return dataclasses.replace(recipe, model=model)


def dinov3_mini_24() -> PretrainRecipe:
    """dinov3-mini with Squared-ReLU networks that train with 2:4 activation sparsity after a dense tenth (arXiv
    2503.16672): the block of the language models in a vision transformer."""
    recipe = dinov3_mini()
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, ffn="relu2", sparsity="2:4"))


Size = Literal["s", "b", "l", "g"]
DROP_PATH = {"s": 0.1, "b": 0.1, "l": 0.3, "g": 0.4}


def dinov2(size: Size = "s") -> PretrainRecipe:
    """DINOv2's objective, patch 14: DINO, iBOT with its own head, KoLeo on two global and eight local crops.

    Numbers of the released ViT-L/14 configuration. Its learning rate is 2e-4 * sqrt(batch / 1024): change `optim.lr`
    together with `batch`.
    """
    batch = 1024
    return PretrainRecipe(
        trainer=_large_run(625_000),
        optim=OptimConfig(
            lr=2e-4 * (batch / 1024) ** 0.5,
            weight_decay=0.04,
            weight_decay_end=0.2,
            clip=3.0,
            clip_per_module=True,
            schedule=Schedule(kind="cosine", warmup=80 / 500, final=1e-6 / 2e-4),
        ),
        batch=batch,
        source_side=None,
        patch_embed_rate=0.2,
        model=dataclasses.replace(VIT_CONFIGS[f"dinov2-{size}"], drop_path=DROP_PATH[size]),
        crops=MultiCropConfig(global_size=224, local_size=98),
        dino=HeadConfig(hidden=2048, bottleneck=384, prototypes=131_072, unit_prototypes=True),
        ibot=HeadConfig(hidden=2048, bottleneck=256, prototypes=131_072, unit_prototypes=True),
        objective=ObjectiveConfig(
            momentum=Schedule("cosine", peak=0.994, final=1.0),
            teacher_temperature=Schedule("constant", peak=0.07, start=0.04, warmup=30 / 500),
            freeze_prototypes=1 / 500,
        ),
    )


def dinov3(size: Literal["t", "s", "s+", "b", "l", "l+", "h+", "7b"] = "s") -> PretrainRecipe:
    """DINOv3 stage 1 with the numbers of the released ImageNet configuration (ViT-L/16: k-NN 82.0 to 82.2 there).

    Its learning rate is 4 * 1e-3 * sqrt(batch / 1024): change `optim.lr` together with `batch`. Registers and rescaled
    positions are those of the released models.
    """
    batch = 1024
    model = VIT_CONFIGS["tiny" if size == "t" else f"dinov3-{size}"]
    return PretrainRecipe(
        trainer=_large_run(125_000),
        optim=OptimConfig(
            lr=4e-3 * (batch / 1024) ** 0.5,
            weight_decay=0.04,
            weight_decay_end=0.4,
            layer_decay=0.9,
            clip=3.0,
            clip_per_module=True,
            schedule=Schedule(kind="cosine", warmup=10 / 100, final=1e-6 / 4e-3),
        ),
        batch=batch,
        source_side=None,
        patch_embed_rate=0.2,
        model=dataclasses.replace(model, drop_path=0.1 if size in ("t", "s", "s+", "b") else 0.3),
        crops=MultiCropConfig(global_size=224, local_size=96),
        dino=HeadConfig(hidden=2048, bottleneck=256, prototypes=65_536),
        ibot=HeadConfig(hidden=2048, bottleneck=256, prototypes=65_536),
        objective=ObjectiveConfig(
            momentum=Schedule("cosine", peak=0.992, final=1.0),
            teacher_temperature=Schedule("constant", peak=0.07, start=0.04, warmup=30 / 100),
            freeze_prototypes=1 / 100,
        ),
    )


def dinov3_gram(size: Literal["t", "s", "s+", "b", "l", "l+", "h+", "7b"] = "s") -> PretrainRecipe:
    """DINOv3 stage 2, Gram anchoring: continues `--start RUN`, a run of `dinov3` with the same `--size`."""
    stage1 = dinov3(size)
    return dataclasses.replace(
        stage1,
        trainer=dataclasses.replace(stage1.trainer, steps=20_000),
        optim=dataclasses.replace(
            stage1.optim,
            schedule=Schedule(kind="constant", peak=0.6, warmup=0.0),
            weight_decay_end=None,
            layer_decay=0.98,
        ),
        gram=GramConfig(weight=Schedule("cosine", peak=0.0, final=2.0, decay=1000)),
        start=Path("runs/dinov3"),
        objective=dataclasses.replace(
            stage1.objective,
            momentum=constant(0.999),
            teacher_temperature=constant(0.07),
            local=Schedule("cosine", peak=1.0, final=0.5, decay=1000),
            freeze_prototypes=0,
        ),
    )


def dinov3_highres(size: Literal["t", "s", "s+", "b", "l", "l+", "h+", "7b"] = "s") -> PretrainRecipe:
    """DINOv3 stage 3, mixed high resolutions with Gram from crops of larger images: continues `--start RUN`."""
    stage2 = dinov3_gram(size)
    mixes = (
        (512, 112, 768, 0.3),
        (768, 112, 1152, 0.3),
        (768, 168, 1152, 0.3),
        (768, 224, 1152, 0.05),
        (768, 336, 1152, 0.05),
    )
    return dataclasses.replace(
        stage2,
        trainer=dataclasses.replace(stage2.trainer, steps=10_000),
        optim=dataclasses.replace(stage2.optim, schedule=Schedule(kind="constant", peak=0.25, warmup=1.0)),
        batch=256,
        start=Path("runs/dinov3-gram"),
        gram=GramConfig(weight=constant(1.5)),
        resolutions=mixes,
        objective=dataclasses.replace(stage2.objective, local=constant(0.5)),
    )


def dinov3_distill() -> DistillRecipe:
    """DINOv3's distillation of a frozen teacher into several students: no masks, no stochastic depth, the EMA of each."""
    return DistillRecipe(
        trainer=_large_run(125_000),
        optim=OptimConfig(
            lr=2e-4,
            weight_decay=0.04,
            layer_decay=0.99,
            clip=3.0,
            clip_per_module=True,
            schedule=Schedule(kind="cosine", warmup=0.1, final=1e-2),
        ),
        batch=1024,
        source_side=None,
        crops=MultiCropConfig(global_size=224, local_size=96, flip=0.0),
        objective=ObjectiveConfig(
            momentum=Schedule("cosine", peak=0.994, final=1.0),
            teacher_temperature=Schedule("constant", peak=0.07, start=0.04, warmup=0.1),
        ),
    )


def dinov3_imagenette() -> PretrainRecipe:
    """ViT-S/16 on the ten classes of imagenette, on one GPU in half an hour: images are decoded once into memory."""
    return PretrainRecipe(
        trainer=TrainerConfig(
            steps=12_000, precision="auto", checkpoint_every=1000, validate_every=1000, log_every=20, workers=8
        ),
        optim=OptimConfig(
            lr=1e-3,
            weight_decay=0.04,
            weight_decay_end=0.4,
            clip=3.0,
            clip_per_module=True,
            schedule=Schedule(kind="cosine", warmup=0.1, final=1e-3),
        ),
        batch=512,
        source_side=160,
        patch_embed_rate=0.2,
        model=VitConfig(384, 12, 6, registers=4, drop_path=0.1, rope_rescale=2.0, image_size=160),
        crops=MultiCropConfig(global_size=160, local_size=64, blur="paper"),
        dino=HeadConfig(hidden=2048, bottleneck=256, prototypes=16_384),
        ibot=HeadConfig(hidden=2048, bottleneck=256, prototypes=16_384),
        objective=ObjectiveConfig(
            momentum=Schedule("cosine", peak=0.992, final=1.0),
            teacher_temperature=Schedule("constant", peak=0.07, start=0.04, warmup=0.3),
            freeze_prototypes=0.01,
        ),
    )


def dinov3_text() -> TextAlignRecipe:
    """dino.txt's numbers: a head of two blocks over a frozen backbone, 50,000 steps. With `--text-tower clip` the published
    text tower is trained from nothing, which takes very many pairs; the default keeps a trained sentence encoder."""
    return TextAlignRecipe(
        trainer=TrainerConfig(
            steps=50_000, precision="auto", checkpoint_every=2500, validate_every=5000, log_every=20, workers=8
        ),
        optim=OptimConfig(
            lr=7e-4,
            weight_decay=1e-4,
            betas=(0.9, 0.99),
            schedule=Schedule(kind="cosine", warmup=2000 / 50_000, final=0.0),
        ),
    )


def _large_run(steps: int) -> TrainerConfig:
    return TrainerConfig(
        steps=steps, precision="auto", checkpoint_every=2500, validate_every=12_500, log_every=20, workers=8
    )

"""Self-supervised pretraining of DINOv2 and DINOv3 stage 1: one Task, configured by its recipes.

    crops ──► student (masked) ──► CLS or mean patch ──► DINO head ──► logits ─┐
      │                       └──► masked patches ────► iBOT head ──► logits ─┤ cross-entropy
      └─────► teacher (EMA) ──► heads ──► Sinkhorn-Knopp over the global batch ┘   + KoLeo on the features

Papers: DINOv2 (arXiv 2304.07193, section 4), DINOv3 (arXiv 2508.10104, section 3). With two global and eight local
crops the DINO term is 2/18 of the global pairs and 16/18 of the local ones, as in the released code.

    B batch of this rank   G global crops   L local crops   P patches   D feature width
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.engine.config import Recipe, require
from tenfold.engine.parallel import Collectives
from tenfold.engine.schedule import Schedule, length
from tenfold.engine.task import Batches, Phase, Shard, Task, unwrap
from tenfold.vision.crops import MultiCropConfig, normalize
from tenfold.vision.heads import BatchStatistics, HeadConfig, PrototypeHead
from tenfold.vision.masking import block_masks
from tenfold.vision.objectives import dino_loss, ibot_loss, koleo_loss, sinkhorn_knopp, softmax_center
from tenfold.vision.photographs import Photographs, open_photographs
from tenfold.vision.vit import VisionOutput, VisionTransformer, VitConfig


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and temperatures of the losses. `pool` is the feature that feeds the DINO head, KoLeo and k-NN."""

    ibot: float = 1.0
    koleo: float = 0.1
    local: float = 1.0
    centering: Literal["sinkhorn", "softmax"] = (
        "sinkhorn"  # softmax: of logits less their running mean, DINOv2's other way
    )
    student_temperature: float = 0.1
    teacher_temperature: Schedule = field(default_factory=lambda: Schedule("constant", 0.07, start=0.04, warmup=0.3))
    momentum: Schedule = field(default_factory=lambda: Schedule("cosine", peak=0.992, final=1.0))
    pool: Literal["cls", "patch-mean"] = "cls"
    freeze_prototypes: int | float = 0  # steps, or share of the run, in which the prototypes do not move
    mask_probability: float = 0.5  # share of global crops that are masked for iBOT
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        for name in ("ibot", "koleo", "local"):
            require(getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "a weight >= 0")
        require(self.student_temperature > 0, "objective.student_temperature", self.student_temperature, "a number > 0")
        require(
            0 <= self.mask_probability <= 1, "objective.mask_probability", self.mask_probability, "a share in [0, 1]"
        )
        frozen = self.freeze_prototypes
        steps = "a number of steps (int >= 0) or a share of the run (float from 0.0 to 1.0)"
        allowed = frozen >= 0 and (isinstance(frozen, int) or frozen <= 1)
        require(allowed, "objective.freeze_prototypes", frozen, steps)
        low, high = self.mask_ratio
        require(0 < low <= high < 1, "objective.mask_ratio", self.mask_ratio, "two rising shares in (0, 1)")


@dataclass(frozen=True)
class PretrainRecipe(Recipe):
    """Self-supervised pretraining on a folder, tar or parquet of images; labels are never used to train."""

    data: Path | None = None  # images to train on; without it, the photographs of the scikit-image sample
    val: Path | None = None  # labelled images for the k-NN curve; without it, held-back tiles of the photographs
    batch: int = 64  # images per step, over all ranks
    source_side: int = 64  # images are decoded once and kept at this side in memory
    model: VitConfig = field(default_factory=VitConfig)
    crops: MultiCropConfig = field(default_factory=MultiCropConfig)
    dino: HeadConfig = field(default_factory=HeadConfig)
    ibot: HeadConfig = field(default_factory=HeadConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    val_k: int = 20  # neighbours of the k-NN curve
    val_rows: int | None = None  # use only the first rows of train and val for the curve

    def __post_init__(self) -> None:
        require(self.batch >= 2, "batch", self.batch, "a whole number >= 2 (Sinkhorn and KoLeo compare images)")
        require(self.val_k >= 1, "val_k", self.val_k, "a whole number >= 1")
        require(self.val_rows is None or self.val_rows >= 1, "val_rows", self.val_rows, "None or a whole number >= 1")
        require(self.source_side >= 8, "source_side", self.source_side, "a side in pixels >= 8")

    def make_task(self) -> PretrainTask:
        return PretrainTask(self)


class Network(nn.Module):
    """Backbone and heads of one side (student or teacher)."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.backbone = VisionTransformer(recipe.model)
        self.dino_head = PrototypeHead(recipe.model.dim, recipe.dino)
        self.ibot_head = PrototypeHead(recipe.model.dim, recipe.ibot) if recipe.objective.ibot > 0 else None


class Center(nn.Module):
    """Running mean of the teacher's logits over the global batch (momentum 0.9, as in DINO, arXiv 2104.14294)."""

    value: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(prototypes))

    def update(self, logits: Tensor, ranks: Collectives) -> None:
        """Takes in this step's logits (n, K), n >= 0 on each rank."""
        total = torch.cat([logits.float().sum(0), logits.new_tensor([len(logits)], dtype=torch.float32)])
        total = ranks.all_reduce_sum(total)
        if total[-1] > 0:
            self.value.lerp_(total[:-1] / total[-1], 0.1)


class SelfDistillation(nn.Module):
    """Student and EMA teacher. `forward(batch)` gives the losses; `forward({"images": x})` the teacher's features."""

    def __init__(self, recipe: PretrainRecipe, ranks: Collectives, hparams: Mapping[str, float]) -> None:
        super().__init__()
        self.student = Network(recipe)
        if recipe.objective.ibot == 0:
            self.student.backbone.mask_token.requires_grad_(False)  # nothing is masked: it takes part in no step
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.objective, self.hparams, self.ranks = recipe.objective, hparams, ranks
        softmax = recipe.objective.centering == "softmax"
        self.center = Center(recipe.dino.prototypes) if softmax else None
        self.patch_center = Center(recipe.ibot.prototypes) if softmax and recipe.objective.ibot > 0 else None
        for module in self.modules():
            if isinstance(module, BatchStatistics):
                module.ranks = ranks  # statistics of the global batch: the losses equal one process's

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        if "images" in batch:
            with torch.no_grad():
                return {"features": self.pool(self.teacher.backbone(batch["images"]))}
        return self.losses(batch["global_crops"], batch.get("local_crops"), batch.get("masks"))

    def normalized(self, crops: Tensor) -> Tensor:
        config = self.student.backbone.config
        return normalize(crops.flatten(0, 1), config.mean, config.std)

    def pool(self, output: VisionOutput) -> Tensor:
        if self.objective.pool == "cls":
            return output.cls_token
        return output.patch_tokens.flatten(1, 2).mean(1)

    @torch.no_grad()
    def targets(self, global_crops: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Teacher probabilities (G*B, K) of the crops and (M, K) of the masked patches, from *unmasked* images."""
        output = self.teacher.backbone(global_crops)
        crops = self._balanced(self.teacher.dino_head(self.pool(output)), self.center)
        if masks is None or self.teacher.ibot_head is None:
            return crops, None
        patches = self.teacher.ibot_head(output.patch_tokens.flatten(1, 2)[masks])
        return crops, self._balanced(patches, self.patch_center)

    def _balanced(self, logits: Tensor, center: Center | None) -> Tensor:
        """Teacher logits as targets that use all prototypes."""
        temperature = self.hparams["teacher_temperature"]
        if center is None:
            return sinkhorn_knopp(logits, temperature, ranks=self.ranks)
        targets = softmax_center(logits, center.value, temperature)
        center.update(logits, self.ranks)
        return targets

    def losses(self, global_crops: Tensor, local_crops: Tensor | None, masks: Tensor | None) -> dict[str, Tensor]:
        """uint8 crops: global (G, B, 3, H, W), local (L, B, 3, h, w) or None; masks (G*B, P) bool or None."""
        objective, student = self.objective, self.student
        n_global, batch = global_crops.shape[:2]
        n_local = 0 if local_crops is None else len(local_crops)
        views = [self.normalized(global_crops)] + ([] if local_crops is None else [self.normalized(local_crops)])
        target, patch_target = self.targets(views[0], masks)
        target = target.unflatten(0, (n_global, batch))

        outputs = student.backbone.forward_crops(views, [masks, None][: len(views)])
        features = self.pool(outputs[0])
        tau = objective.student_temperature
        logits = student.dino_head(features).unflatten(0, (n_global, batch))
        losses = {"dino_global": dino_loss(logits, target, tau, skip_same=True)}
        if n_local:
            logits = student.dino_head(self.pool(outputs[1])).unflatten(0, (n_local, batch))
            losses["dino_local"] = dino_loss(logits, target, tau)
        pairs_global, pairs_local = n_global * (n_global - 1), n_global * n_local
        pairs = pairs_global + pairs_local
        total = losses["dino_global"] * (pairs_global / pairs)
        if n_local:
            total = total + losses["dino_local"] * (pairs_local / pairs) * objective.local
        if objective.koleo > 0:
            terms = [koleo_loss(crop, self.ranks) for crop in features.unflatten(0, (n_global, batch))]
            losses["koleo"] = torch.stack(terms).sum()
            total = total + objective.koleo * losses["koleo"]
        if patch_target is not None and masks is not None and student.ibot_head is not None:
            patches = student.ibot_head(outputs[0].patch_tokens.flatten(1, 2)[masks])
            weights = (1.0 / masks.sum(1).clamp_min(1))[:, None].expand_as(masks)[masks]
            losses["ibot"] = ibot_loss(patches, patch_target, weights, samples=len(masks), temperature=tau)
            total = total + objective.ibot * losses["ibot"]
        return {**losses, "loss": total}


class PretrainTask(Task):
    """DINOv2 and DINOv3 stage 1 for the trainer."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.schedules = {
            "teacher_temperature": recipe.objective.teacher_temperature,
            "momentum": recipe.objective.momentum,
        }
        self._photographs: Photographs | None = None
        self._floors: dict[str, float] | None = None

    @property
    def photographs(self) -> Photographs:
        """The images, decoded once."""
        if self._photographs is None:
            r = self.recipe
            self._photographs = open_photographs(r.data, r.val, r.source_side, r.trainer.data_errors)
        return self._photographs

    def build(self) -> nn.Module:
        return SelfDistillation(self.recipe, self.ranks, self.hparams)

    def batches(self, shard: Shard) -> Batches:
        r = self.recipe
        trainer = r.trainer
        return self.photographs.batches(r.crops, r.batch, trainer.seed, shard, trainer.data_errors, trainer.workers)

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        if self.recipe.objective.ibot > 0:
            batch = {**batch, "masks": self.masks(batch["global_crops"])}
        return model(batch)

    def masks(self, global_crops: Tensor) -> Tensor:
        """(G*B, P) bool, this rank's rows of the masks of the global batch. Every rank draws all of them from torch's
        generator (which is part of the checkpoint), so any number of ranks gives a crop the same mask."""
        objective, patch = self.recipe.objective, self.recipe.model.patch_size
        n_global, batch, side = global_crops.shape[0], global_crops.shape[1], global_crops.shape[-1] // patch
        world, rank = self.ranks.world, self.ranks.rank
        generator = np.random.default_rng(int(torch.randint(2**62, ())))
        count = n_global * batch * world
        masks = block_masks(count, (side, side), objective.mask_ratio, generator, objective.mask_probability)
        own = torch.as_tensor(masks).unflatten(0, (n_global, world, batch))[:, rank].flatten(0, 1)
        return own.to(global_crops.device)

    def after_backward(self, model: nn.Module, phase: Phase, step: int) -> None:
        """The prototypes stand still at the start: without a gradient and without decay AdamW does not move them."""
        if step < length(self.recipe.objective.freeze_prototypes, self.recipe.trainer.steps):
            for name, parameter in unwrap(model).named_parameters():
                if "prototypes" in name and parameter.grad is not None:
                    parameter.grad.zero_()

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, in fp32."""
        module = unwrap(model)
        assert isinstance(module, SelfDistillation)
        teacher: list[Tensor] = list(module.teacher.parameters())
        student: list[Tensor] = list(module.student.parameters())
        torch._foreach_lerp_(teacher, student, 1.0 - self.hparams["momentum"])

    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        free = parameter.ndim < 2 or "prototypes" in name or "token" in name or "pos_embed" in name
        return 1.0, 0.0 if free else 1.0

    def parameter_depth(self, name: str) -> tuple[int, int] | None:
        """Blocks count from the input; the embeddings are layer 0 and the final norm and heads take the full rate."""
        depth = self.recipe.model.depth + 1
        words = name.split(".")
        if "blocks" in words:
            return int(words[words.index("blocks") + 1]) + 1, depth
        embeds = any(part in name for part in ("patch_embed", "pos_embed", "_token"))
        return (0, depth) if embeds else None

    def clip_group(self, name: str) -> str:
        """Backbone and each head (`student.backbone.blocks...` -> `backbone`)."""
        return name.split(".")[1]

    def card(self) -> tuple[str, Any]:
        return "vit", self.recipe.model

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Teacher k-NN, per cent, beside raw pixels and the same network before training; nothing without labels."""
        knn = self.knn(lambda images: model({"images": images})["features"])
        if knn is None:
            return {}
        if self._floors is None:
            self._floors = self.floors()
        return {"knn": knn, **self._floors}

    def knn(self, embed: Callable[[Tensor], Tensor]) -> float | None:
        """Per cent right of weighted k-NN with features from `embed(images (n, 3, s, s)) -> (n, d)`."""
        r = self.recipe
        return self.photographs.knn(embed, r.model, r.crops.global_size, r.val_k, r.val_rows)

    def floors(self) -> dict[str, float]:
        """k-NN of raw pixels, and of the network as it was before the first step (same seed)."""
        pixels = self.photographs.floor(self.recipe.val_k, self.recipe.val_rows)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.trainer.seed)
            untrained = SelfDistillation(self.recipe, Collectives(), self.hparams).eval()
        score = self.knn(lambda images: untrained({"images": images})["features"])
        assert pixels is not None
        assert score is not None
        return {"knn_pixels": pixels, "knn_untrained": score}

    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        module = unwrap(model)
        assert isinstance(module, SelfDistillation)
        return dict(module.teacher.backbone.state_dict())

"""Self-supervised pretraining of DINOv2 and DINOv3, all stages: one Task, configured by its recipes.

The model is in self_distillation.py, its losses in losses.py. Stage 1 starts from nothing; the Gram stage (`gram` set) and the
high-resolution stage (`resolutions` set) start from an earlier run (`start`), whose teacher becomes the Gram teacher.

    tenfold train dinov3-gram --start runs/stage1 --data DIR

Papers: DINOv2 (arXiv 2304.07193, section 4), DINOv3 (arXiv 2508.10104, sections 3 and 4).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tenfold.config import require
from tenfold.engine.checkpoint import read_model
from tenfold.engine.parallel import Collectives
from tenfold.engine.task import Batches, Phase, Shard, Task, unwrap
from tenfold.nn.sparse24 import Sparsity24
from tenfold.nn.sparse_training import SparsityController, sparse_layers
from tenfold.steps import steps_of
from tenfold.vision.backbones.backbone import ANY_BACKBONE, BackboneConfig
from tenfold.vision.backbones.vit import VitConfig
from tenfold.vision.pretraining.gram import GramConfig
from tenfold.vision.pretraining.heads import HeadConfig
from tenfold.vision.pretraining.image_recipe import ImageRecipe
from tenfold.vision.pretraining.masking import block_masks
from tenfold.vision.pretraining.objectives import ObjectiveConfig
from tenfold.vision.pretraining.photographs import Mixed, Photographs
from tenfold.vision.pretraining.self_distillation import SelfDistillation


@dataclass(frozen=True)
class PretrainRecipe(ImageRecipe):
    """Self-supervised pretraining on a folder, tar or parquet of images; labels are never used to train.

    `--model.kind NAME` trains another registered backbone (vit, convnext), whose fields are then the flags of --model.
    """

    start: Path | None = None  # a run whose student, teacher and heads this one begins with
    model: BackboneConfig = field(default_factory=VitConfig, metadata=ANY_BACKBONE)
    dino: HeadConfig = field(default_factory=HeadConfig)
    ibot: HeadConfig = field(default_factory=HeadConfig)
    sparsity: Sparsity24 = field(default_factory=lambda: Sparsity24(warmup_steps=0.1))  # with model.sparsity 2:4
    gram: GramConfig = field(default_factory=GramConfig)  # Gram anchoring, the second stage of DINOv3
    # The last stage of DINOv3 draws crop sizes by batch: (global, local, Gram side, how often), the Gram side 0 for none.
    resolutions: tuple[tuple[int, int, int, float], ...] = ()
    patch_embed_rate: float = 1.0  # learning rate of the patch embedding over that of the rest (0.2 in the papers)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.patch_embed_rate > 0, "patch_embed_rate", self.patch_embed_rate, "a factor above 0")
        for mix in self.resolutions:
            ok = mix[0] >= 1 and mix[1] >= 1 and mix[2] >= 0 and mix[3] > 0
            require(ok, "resolutions", mix, "sides in pixels (the third may be 0) and a share above 0")
        started = self.start is not None or not self.gram.active
        require(started, "start", None, "the run whose teacher anchors (--start RUN)")

    def make_task(self) -> PretrainTask:
        # Not in __post_init__: `--model.kind` and `--objective.ibot` reach the recipe one after the other.
        masked = self.model.takes_masks or self.objective.ibot == 0
        require(masked, "objective.ibot", self.objective.ibot, f"0 with a {self.model.kind}, which has no mask token")
        return PretrainTask(self)


def draw_masks(global_crops: Tensor, patch: int, objective: ObjectiveConfig, ranks: Collectives) -> Tensor:
    """(G*B, P) bool for crops (G, B, 3, H, W), this rank's rows of the masks of the global batch. Every rank draws all of
    them from torch's generator (which is part of the checkpoint), so any number of ranks gives a crop the same mask."""
    n_global, batch, side = global_crops.shape[0], global_crops.shape[1], global_crops.shape[-1] // patch
    generator = np.random.default_rng(int(torch.randint(2**62, ())))
    count = n_global * batch * ranks.world
    masks = block_masks(count, (side, side), objective.mask_ratio, generator, objective.mask_probability)
    own = torch.as_tensor(masks).unflatten(0, (n_global, ranks.world, batch))[:, ranks.rank].flatten(0, 1)
    return own.to(global_crops.device)


class PretrainTask(Task):
    """DINOv2 and DINOv3 for the trainer."""

    def __init__(self, recipe: PretrainRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.schedules = recipe.loss_schedules()
        if recipe.gram.active:
            self.schedules["gram_weight"] = recipe.gram.weight
        self._controller: SparsityController | None = None
        self._floors: dict[str, float] | None = None

    @cached_property
    def photographs(self) -> Photographs:
        """The images, decoded once."""
        return self.recipe.open_photographs()

    def build(self) -> nn.Module:
        model = self._model(self.ranks)
        if self.recipe.start is not None:
            model.start_from(read_model(self.recipe.start), str(self.recipe.start))
        if sparse_layers(model.student):
            total = self.recipe.trainer.steps
            # The student only: teachers are dense.
            self._controller = SparsityController(model.student, self.recipe.sparsity, total, self._mean_over_ranks)
            self._controller.step(0)
        return model

    def _model(self, ranks: Collectives) -> SelfDistillation:
        r = self.recipe
        return SelfDistillation(
            r.model, dino=r.dino, ibot=r.ibot, objective=r.objective, gram=r.gram, ranks=ranks, hparams=self.hparams
        )

    def _mean_over_ranks(self, value: Tensor) -> Tensor:
        return self.ranks.all_reduce_sum(value) / self.ranks.world

    def batches(self, shard: Shard) -> Batches:
        r = self.recipe
        t = r.trainer
        mixes = [
            dataclasses.replace(r.crops, global_size=large, local_size=small, gram_size=gram or None)
            for large, small, gram, _ in r.resolutions
        ]
        loaders = [
            self.photographs.batches(crops, r.batch, t.seed + i, shard, t.data_errors, t.workers)
            for i, crops in enumerate(mixes or [r.crops])
        ]
        return Mixed(loaders, [share for *_, share in r.resolutions], t.seed) if mixes else loaders[0]

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        if self.recipe.objective.ibot > 0:
            batch = {**batch, "masks": self.masks(batch["global_crops"])}
        return model(batch)

    def masks(self, global_crops: Tensor) -> Tensor:
        return draw_masks(global_crops, self.recipe.model.patch_size, self.recipe.objective, self.ranks)

    def after_backward(self, model: nn.Module, phase: Phase, step: int) -> None:
        """The prototypes stand still at the start: without a gradient and without decay AdamW does not move them."""
        if step < steps_of(self.recipe.objective.freeze_prototypes, self.recipe.trainer.steps):
            for name, parameter in unwrap(model).named_parameters():
                if "prototypes" in name and parameter.grad is not None:
                    parameter.grad.zero_()

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, in fp32; now and then the Gram teacher follows."""
        module = unwrap(model)
        assert isinstance(module, SelfDistillation)
        teacher: list[Tensor] = list(module.teacher.parameters())
        student: list[Tensor] = list(module.student.parameters())
        torch._foreach_lerp_(teacher, student, 1.0 - self.hparams["momentum"])
        gram = self.recipe.gram
        if module.gram_teacher is not None:
            times, rest = divmod(step + 1, gram.refresh_every)
            if rest == 0 and times <= gram.refreshes:
                torch._foreach_copy_(list(module.gram_teacher.parameters()), list(module.teacher.backbone.parameters()))

        if self._controller is not None:
            self._controller.step(step + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"sparsity": self._controller.state_dict()} if self._controller else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._controller is not None:
            self._controller.load_state_dict(state["sparsity"])

    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        free = parameter.ndim < 2 or "prototypes" in name or "token" in name or "pos_embed" in name
        return self.recipe.patch_embed_rate if "patch_embed" in name else 1.0, 0.0 if free else 1.0

    def parameter_depth(self, name: str) -> tuple[int, int] | None:
        return self.recipe.model.layer_of(name)

    def clip_group(self, name: str) -> str:
        """Backbone and each head (`student.backbone.blocks...` -> `backbone`)."""
        return name.split(".")[1]

    def card(self) -> tuple[str, Any]:
        return self.recipe.model.kind, self.recipe.model

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
        return self.photographs.knn(embed, r.model, r.crops.global_size, r.val_k)

    def floors(self) -> dict[str, float]:
        """k-NN of raw pixels, and of the network as it was before the first step (same seed)."""
        pixels = self.photographs.floor(self.recipe.val_k)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.trainer.seed)
            untrained = self._model(Collectives()).eval()
        score = self.knn(lambda images: untrained({"images": images})["features"])
        assert pixels is not None
        assert score is not None
        return {"knn_pixels": pixels, "knn_untrained": score}

    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        module = unwrap(model)
        assert isinstance(module, SelfDistillation)
        return dict(module.teacher.backbone.state_dict())

"""The model of self-supervised pretraining: student, EMA teacher and, in the later stages of DINOv3, a Gram teacher.

    crops ──► student (masked) ──► CLS or mean patch ──► DINO head ──► logits ─┐
      │                       ├──► masked patches ────► iBOT head ──► logits ─┤ cross-entropy
      ├─────► teacher (EMA) ──┴──► heads ──► Sinkhorn-Knopp over the global batch ┘   + KoLeo on the features
      └─────► Gram teacher (an earlier EMA teacher) ──► patch similarities that the student's are held to

Papers: DINOv2 (arXiv 2304.07193, section 4), DINOv3 (arXiv 2508.10104, sections 3 and 4). The terms of the loss are in
losses.py.

    B batch of this rank   G global crops   L local crops   P patches   D feature width
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.engine.parallel import Collectives
from tenfold.errors import CheckpointError
from tenfold.vision.backbones.backbone import BackboneConfig
from tenfold.vision.pretraining.crops import normalize
from tenfold.vision.pretraining.gram import GramConfig
from tenfold.vision.pretraining.heads import BatchStatistics, HeadConfig
from tenfold.vision.pretraining.losses import Targets, student_losses, teacher_targets
from tenfold.vision.pretraining.network import Network
from tenfold.vision.pretraining.objectives import ObjectiveConfig, sinkhorn_knopp, softmax_center


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
    """`forward(batch)` gives the losses; `forward({"images": x})` the teacher's features."""

    def __init__(
        self,
        model: BackboneConfig,
        *,
        dino: HeadConfig,
        ibot: HeadConfig,
        objective: ObjectiveConfig,
        gram: GramConfig,
        ranks: Collectives,
        hparams: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.student = Network(model, dino, ibot if objective.ibot > 0 else None)
        if objective.ibot == 0:
            self.student.backbone.train_without_masks()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.gram_teacher = copy.deepcopy(self.teacher.backbone) if gram.active else None
        self.objective, self.hparams, self.ranks = objective, hparams, ranks
        softmax = objective.centering == "softmax"
        self.center = Center(dino.prototypes) if softmax else None
        self.patch_center = Center(ibot.prototypes) if softmax and objective.ibot > 0 else None
        for module in self.modules():
            if isinstance(module, BatchStatistics):
                module.ranks = ranks  # statistics of the global batch: the losses equal one process's

    def start_from(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Takes student, teacher and heads of an earlier run (`engine.checkpoint.read_model`); its teacher is the first
        Gram teacher. Raises CheckpointError when they do not fit."""
        own = {n: v for n, v in self.state_dict().items() if n.startswith(("student.", "teacher."))}
        problems = [f"missing {n}" for n in own.keys() - tensors.keys()]
        problems += [
            f"{n} is {tuple(tensors[n].shape)}, this model has {tuple(own[n].shape)}"
            for n in own.keys() & tensors.keys()
            if own[n].shape != tensors[n].shape
        ]
        if problems:
            raise CheckpointError(f"{where} does not fit this model:\n  " + "\n  ".join(sorted(problems)))
        self.load_state_dict({n: tensors[n] for n in own}, strict=False)  # what is not named here is checked above
        if self.gram_teacher is not None:
            self.gram_teacher.load_state_dict(self.teacher.backbone.state_dict())

    def train(self, mode: bool = True) -> SelfDistillation:
        """Teachers see what evaluation sees: no dropped samples, no rescaled positions."""
        super().train(mode)
        self.teacher.eval()
        if self.gram_teacher is not None:
            self.gram_teacher.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        if "images" in batch:
            with torch.no_grad():
                backbone = self.teacher.backbone
                return {"features": backbone.feature(backbone(batch["images"]))}
        return self.losses(batch)

    def normalized(self, crops: Tensor) -> Tensor:
        """uint8 (G, B, 3, H, W) to network input (G * B, 3, H, W)."""
        config = self.student.backbone.config
        return normalize(crops.flatten(0, 1), config.mean, config.std)

    @torch.no_grad()
    def targets(self, global_crops: Tensor, masks: Tensor | None) -> Targets:
        """Teacher probabilities (G*B, K) of the crops and (M, K) of the masked patches, from *unmasked* images."""
        return teacher_targets(self.teacher, global_crops, masks, self._balanced)

    def _balanced(self, logits: Tensor, patches: bool) -> Tensor:
        """Teacher logits as targets that use all prototypes."""
        temperature, center = self.hparams["teacher_temperature"], self.patch_center if patches else self.center
        if center is None:
            return sinkhorn_knopp(logits, temperature, ranks=self.ranks)
        targets = softmax_center(logits, center.value, temperature)
        center.update(logits, self.ranks)
        return targets

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """uint8 global_crops (G, B, 3, H, W); if any, local_crops (L, B, 3, h, w), gram_crops (G, B, 3, H', W') and
        masks (G*B, P) bool."""
        views, masks = self.views(batch), batch.get("masks")
        losses, total = student_losses(
            self.student,
            views,
            n_global=len(batch["global_crops"]),
            masks=masks,
            positions=masks,
            targets=self.targets(views[0], masks),
            objective=self.objective,
            hparams=self.hparams,
            ranks=self.ranks,
            gram_anchors=self._gram_anchors(views[0], batch.get("gram_crops")),
        )
        return {**losses, "loss": total}

    def views(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Network input of the global crops and, if any, of the local ones."""
        return [self.normalized(batch[name]) for name in ("global_crops", "local_crops") if name in batch]

    @torch.no_grad()
    def _gram_anchors(self, global_view: Tensor, gram_crops: Tensor | None) -> Tensor | None:
        """The Gram teacher sees the student's crop, or a larger one of the same part without colour distortion."""
        if self.gram_teacher is None:
            return None
        return self.gram_teacher(global_view if gram_crops is None else self.normalized(gram_crops)).patch_tokens

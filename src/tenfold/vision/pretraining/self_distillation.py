"""The model of self-supervised pretraining: student, EMA teacher and, in the later stages of DINOv3, a Gram teacher.

    crops ──► student (masked) ──► CLS or mean patch ──► DINO head ──► logits ─┐
      │                       ├──► masked patches ────► iBOT head ──► logits ─┤ cross-entropy
      ├─────► teacher (EMA) ──┴──► heads ──► Sinkhorn-Knopp over the global batch ┘   + KoLeo on the features
      └─────► Gram teacher (an earlier EMA teacher) ──► patch similarities that the student's are held to

Papers: DINOv2 (arXiv 2304.07193, section 4), DINOv3 (arXiv 2508.10104, sections 3 and 4). With two global and eight
local crops the DINO term is 2/18 of the global pairs and 16/18 of the local ones, as in the released code.

    B batch of this rank   G global crops   L local crops   P patches   D feature width
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.engine.parallel import Collectives
from tenfold.errors import CheckpointError
from tenfold.vision.backbones.backbone import BackboneConfig, build_backbone
from tenfold.vision.backbones.vit import VisionOutput, VisionTransformer
from tenfold.vision.pretraining.crops import normalize
from tenfold.vision.pretraining.gram import GramConfig, gram_loss, pool_to
from tenfold.vision.pretraining.heads import BatchStatistics, HeadConfig, PrototypeHead
from tenfold.vision.pretraining.objectives import (
    ObjectiveConfig,
    dino_loss,
    ibot_loss,
    koleo_loss,
    sinkhorn_knopp,
    softmax_center,
)


class Network(nn.Module):
    """Backbone and heads of one side (student or teacher)."""

    def __init__(self, model: BackboneConfig, dino: HeadConfig, ibot: HeadConfig | None) -> None:
        super().__init__()
        self.backbone = build_backbone(model)
        self.dino_head = PrototypeHead(model.dim, dino)
        self.ibot_head = PrototypeHead(model.dim, ibot) if ibot is not None else None


def freeze_mask_token(network: Network) -> None:
    """A vision transformer's mask token takes no part in training without masks; a ConvNeXt has none."""
    if isinstance(network.backbone, VisionTransformer):
        network.backbone.mask_token.requires_grad_(False)


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
            freeze_mask_token(self.student)  # nothing is masked: it takes part in no step
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
    def targets(self, global_crops: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
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
        targets = self.targets(views[0], masks)
        losses, total, output = student_losses(
            self.student, views, batch["global_crops"].shape[:2], masks, masks, targets, self.objective, self.hparams,
            self.ranks,
        )  # fmt: skip
        if self.gram_teacher is not None:
            losses["gram"] = self._gram(output, views[0], batch.get("gram_crops"))
            total = total + self.hparams["gram_weight"] * losses["gram"]
        return {**losses, "loss": total}

    def views(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Network input of the global crops and, if any, of the local ones."""
        return [self.normalized(batch[name]) for name in ("global_crops", "local_crops") if name in batch]

    def _gram(self, output: VisionOutput, global_view: Tensor, gram_crops: Tensor | None) -> Tensor:
        """The Gram teacher sees the student's crop, or a larger one of the same part without colour distortion."""
        assert self.gram_teacher is not None
        with torch.no_grad():
            view = global_view if gram_crops is None else self.normalized(gram_crops)
            anchors = self.gram_teacher(view).patch_tokens
        height, width = output.patch_tokens.shape[1:3]
        return gram_loss(output.patch_tokens.flatten(1, 2), pool_to(anchors, height, width))


def teacher_targets(
    teacher: Network, global_crops: Tensor, masks: Tensor | None, balanced: Callable[[Tensor, bool], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """What a teacher says of whole images (n, 3, H, W): (n, K), and (M, K) of the patches in `masks` (n, P), if any.
    `balanced(logits, patches)` makes probabilities of its logits."""
    output = teacher.backbone(global_crops)
    crops = balanced(teacher.dino_head(teacher.backbone.feature(output)), False)
    if masks is None or teacher.ibot_head is None:
        return crops, None
    return crops, balanced(teacher.ibot_head(output.patch_tokens.flatten(1, 2)[masks]), True)


def student_losses(
    student: Network,
    views: Sequence[Tensor],
    shape: Sequence[int],
    masks: Tensor | None,
    positions: Tensor | None,
    targets: tuple[Tensor, Tensor | None],
    objective: ObjectiveConfig,
    hparams: Mapping[str, float],
    ranks: Collectives,
) -> tuple[dict[str, Tensor], Tensor, VisionOutput]:
    """Losses by name, their weighted sum, and the output for the global crops.

    views: global crops (G*B, 3, H, W) and, if any, local ones; shape: (G, B); masks: patches hidden from the student;
    positions: patches that iBOT compares; targets: of `teacher_targets`.
    """
    n_global, size = shape
    n_local = len(views[1]) // size if len(views) > 1 else 0
    crop_target, patch_target = targets[0].unflatten(0, (n_global, size)), targets[1]
    outputs = student.backbone.forward_crops(views, [masks, None][: len(views)])
    features = student.backbone.feature(outputs[0])
    tau = objective.student_temperature
    logits = student.dino_head(features).unflatten(0, (n_global, size))
    losses = {"dino_global": dino_loss(logits, crop_target, tau, skip_same=True)}
    pairs_global, pairs_local = n_global * (n_global - 1), n_global * n_local
    pairs = pairs_global + pairs_local
    total = losses["dino_global"] * (pairs_global / pairs)
    if n_local:
        logits = student.dino_head(student.backbone.feature(outputs[1])).unflatten(0, (n_local, size))
        losses["dino_local"] = dino_loss(logits, crop_target, tau)
        total = total + losses["dino_local"] * (pairs_local / pairs) * hparams["local_weight"]
    if objective.koleo > 0:
        crops = features.unflatten(0, (n_global, size))[: 1 if objective.koleo_crops == "first" else n_global]
        losses["koleo"] = torch.stack([koleo_loss(crop, ranks) for crop in crops]).sum()
        total = total + objective.koleo * losses["koleo"]
    if patch_target is not None and positions is not None and student.ibot_head is not None:
        patches = student.ibot_head(outputs[0].patch_tokens.flatten(1, 2)[positions])
        weights = (1.0 / positions.sum(1).clamp_min(1))[:, None].expand_as(positions)[positions]
        losses["ibot"] = ibot_loss(patches, patch_target, weights, samples=len(positions), temperature=tau)
        total = total + objective.ibot * losses["ibot"]
    return losses, total, outputs[0]

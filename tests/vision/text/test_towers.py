"""Text towers: padding changes nothing, the causal one ends at the end of text, the other is the mean of its tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenfold.errors import UsageError
from tenfold.vision.text.towers import ClipTextTower, SentenceEncoder, TextConfig, build_text_tower

CLIP = TextConfig(dim=16, depth=2, heads=2, vocabulary=20, positions=9)
MINILM = TextConfig("minilm", 16, 2, 2, vocabulary=20, positions=9)
END = 19  # the largest id ends a text of CLIP


def tower(config: TextConfig) -> ClipTextTower | SentenceEncoder:
    torch.manual_seed(0)
    return build_text_tower(config).eval()


@torch.inference_mode()
def test_what_follows_the_end_of_text_changes_no_feature_of_the_causal_tower() -> None:
    model = tower(CLIP)
    assert isinstance(model, ClipTextTower)
    ids = torch.tensor([[3, 4, END, 0, 0, 0], [5, 6, 7, 8, 9, END]])
    other = ids.clone()
    other[0, 3:] = torch.tensor([7, 11, 2])
    torch.testing.assert_close(model(other), model(ids))
    torch.testing.assert_close(model(ids)[:1], model(ids[:1, :3]))
    ids[0, 0] = 12
    assert not torch.allclose(model(ids)[0], model(other)[0])  # what comes before does


@torch.inference_mode()
def test_padding_of_any_ids_leaves_the_sentence_as_it_is() -> None:
    model = tower(MINILM)
    ids = torch.randint(0, 20, (2, 7))
    mask = torch.arange(7) < torch.tensor([[4], [7]])
    other = torch.where(mask, ids, (ids + 5) % 20)
    torch.testing.assert_close(model(other, mask), model(ids, mask))
    torch.testing.assert_close(model(ids, mask)[:1], model(ids[:1, :4]))


@torch.inference_mode()
def test_a_sentence_is_the_mean_of_its_tokens() -> None:
    model = tower(MINILM)
    assert isinstance(model, SentenceEncoder)
    ids, mask = torch.randint(0, 20, (1, 6)), torch.tensor([[True] * 4 + [False] * 2])
    torch.testing.assert_close(model(ids, mask), model.tokens(ids, mask)[:, :4].mean(1))
    assert not torch.allclose(model(ids), model(ids.flip(1)))  # words have positions


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"vocabulary": 0}, {"norm_eps": 1.0}])
def test_a_wrong_value_names_its_field(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"text.{next(iter(wrong))}"):
        TextConfig(**({"dim": 16, "heads": 2} | wrong))

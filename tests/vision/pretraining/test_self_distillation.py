"""Self-distillation: the teacher only gives targets, centres are running means of the global batch, starts must fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tenfold.engine.parallel import Collectives
from tenfold.engine.schedule import constant
from tenfold.errors import CheckpointError
from tenfold.vision.backbones.vit import VitConfig
from tenfold.vision.pretraining.gram import GramConfig
from tenfold.vision.pretraining.heads import HeadConfig
from tenfold.vision.pretraining.objectives import ObjectiveConfig, softmax_center
from tenfold.vision.pretraining.self_distillation import Center, SelfDistillation
from thread_ranks import on_threads

MODEL, HEAD = VitConfig(16, 1, 2, patch_size=8, drop_path=0.5), HeadConfig(8, 4, 6)
HPARAMS = {"teacher_temperature": 0.05, "local_weight": 1.0, "gram_weight": 1.0, "momentum": 0.9}


def network(head: HeadConfig = HEAD, gram: bool = False, seed: int = 0, **objective: Any) -> SelfDistillation:
    torch.manual_seed(seed)
    weight = constant(1.0 if gram else 0.0)
    return SelfDistillation(
        MODEL,
        dino=head,
        ibot=head,
        objective=ObjectiveConfig(**objective),
        gram=GramConfig(weight=weight),
        ranks=Collectives(),
        hparams=HPARAMS,
    ).train()


def batch() -> dict[str, Tensor]:
    """Two global crops and one local one of three images, some patches masked."""
    torch.manual_seed(1)
    crops = {"global_crops": (2, 3, 3, 32, 32), "local_crops": (1, 3, 3, 16, 16)}
    drawn = {name: torch.randint(0, 256, shape, dtype=torch.uint8) for name, shape in crops.items()}
    masks = torch.zeros(6, 16, dtype=torch.bool)
    masks[::2, :5] = True
    return drawn | {"masks": masks}


def test_gradients_reach_the_whole_student_and_no_teacher() -> None:
    model = network(gram=True)
    losses = model(batch())
    assert {"dino_global", "dino_local", "koleo", "ibot", "gram", "loss"} == set(losses)
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        if name.startswith("student."):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


def test_images_are_answered_with_the_features_of_the_teacher_though_the_student_moved() -> None:
    model = network()
    expected = model({"images": torch.ones(2, 3, 32, 32)})["features"]
    for parameter in model.student.parameters():
        parameter.data.add_(1.0)
    assert model.student.training  # so stochastic depth is at work there
    assert torch.equal(model({"images": torch.ones(2, 3, 32, 32)})["features"], expected)
    assert not expected.requires_grad


def test_targets_are_probabilities_of_unmasked_images() -> None:
    model, given = network(), batch()
    view = model.views(given)[0]
    masked = model.targets(view, given["masks"])
    plain = model.targets(view, None)
    assert plain.patches is None
    assert masked.patches is not None
    assert len(masked.patches) == int(given["masks"].sum())
    torch.testing.assert_close(masked.crops, plain.crops)
    for probabilities in (masked.crops, masked.patches):
        torch.testing.assert_close(probabilities.sum(1), torch.ones(len(probabilities)), atol=1e-5, rtol=0)


def test_softmax_targets_are_of_the_centre_before_this_step_which_then_moves() -> None:
    model, given = network(centering="softmax", ibot=0.0), batch()
    assert model.center is not None
    view = model.views(given)[0]
    logits = model.teacher.dino_head(model.teacher.backbone.feature(model.teacher.backbone(view)))
    model.center.value.copy_(torch.linspace(-0.1, 0.1, 6))
    before = model.center.value.clone()
    targets = model.targets(view, None).crops
    torch.testing.assert_close(targets, softmax_center(logits.detach(), before, 0.05), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.center.value, 0.9 * before + 0.1 * logits.detach().mean(0))


def test_a_centre_over_ranks_is_that_of_the_whole_batch_with_an_empty_rank_too() -> None:
    torch.manual_seed(0)
    logits, whole = torch.randn(9, 4), Center(4)
    whole.update(logits, Collectives())

    def work(part: Tensor, ranks: Collectives) -> Tensor:
        center = Center(4)
        center.update(part, ranks)
        return center.value

    for value in on_threads(work, [logits[:2], logits[2:], logits[:0]]):
        torch.testing.assert_close(value, whole.value)
    still = whole.value.clone()
    whole.update(logits[:0], Collectives())
    assert torch.equal(whole.value, still)


def test_a_run_begins_with_student_and_teacher_of_another_and_anchors_at_its_teacher() -> None:
    earlier, later = network(seed=3), network(gram=True, seed=4)
    for parameter in earlier.teacher.parameters():
        parameter.data.add_(0.25)  # an EMA teacher is not its student
    tensors = earlier.state_dict()
    later.start_from(tensors, "runs/a")
    assert all(torch.equal(value, tensors[name]) for name, value in later.state_dict().items() if name in tensors)
    assert later.gram_teacher is not None
    anchors, teacher = later.gram_teacher.state_dict(), earlier.teacher.backbone.state_dict()
    assert all(torch.equal(anchors[name], value) for name, value in teacher.items())


def test_a_start_that_does_not_fit_lists_every_tensor_and_changes_none() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = network(HeadConfig(8, 4, 7), seed=5).state_dict()
    del tensors["teacher.backbone.cls_token"]
    with pytest.raises(CheckpointError) as raised:
        model.start_from(tensors, "runs/a")
    message = str(raised.value)
    assert "runs/a does not fit this model" in message
    assert "missing teacher.backbone.cls_token" in message
    assert "student.ibot_head.prototypes.weight is (7, 4), this model has (6, 4)" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

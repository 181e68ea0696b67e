"""The table of losses: every term is logged and weighed, and a new one is a function and an entry."""

from __future__ import annotations

import pytest
import torch

from tenfold.engine.parallel import Collectives
from tenfold.vision.backbones.vit import VitConfig
from tenfold.vision.pretraining.heads import HeadConfig
from tenfold.vision.pretraining.losses import LOSSES, StudentStep, Targets, Term, student_losses
from tenfold.vision.pretraining.network import Network
from tenfold.vision.pretraining.objectives import ObjectiveConfig

MODEL, HEAD = VitConfig(16, 1, 2, patch_size=8), HeadConfig(8, 4, 6)
HPARAMS = {"local_weight": 0.5, "gram_weight": 2.0}


def losses(n_local: int = 2, ibot: float = 0.7, gram: bool = True) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Of two global crops of three images, the same ones each time."""
    torch.manual_seed(0)
    student = Network(MODEL, HEAD, HEAD if ibot else None).eval()
    views = [torch.randn(6, 3, 32, 32)] + ([torch.randn(3 * n_local, 3, 16, 16)] if n_local else [])
    masks = torch.rand(6, 16) < 0.3
    targets = Targets(torch.rand(6, 6).softmax(1), torch.rand(int(masks.sum()), 6).softmax(1) if ibot else None)
    return student_losses(
        student,
        views,
        n_global=2,
        masks=masks if ibot else None,
        positions=masks,
        targets=targets,
        objective=ObjectiveConfig(ibot=ibot, koleo=0.1),
        hparams=HPARAMS,
        ranks=Collectives(),
        gram_anchors=torch.randn(6, 4, 4, 16) if gram else None,
    )


def test_the_sum_weighs_every_term_as_the_objective_says() -> None:
    values, total = losses()
    assert list(values) == ["dino_global", "dino_local", "koleo", "ibot", "gram"]
    weights = {"dino_global": 2 / 6, "dino_local": 4 / 6 * 0.5, "koleo": 0.1, "ibot": 0.7, "gram": 2.0}
    assert total.item() == pytest.approx(sum(weights[name] * value.item() for name, value in values.items()), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "absent"), [({"n_local": 0}, "dino_local"), ({"ibot": 0.0}, "ibot"), ({"gram": False}, "gram")]
)
def test_a_term_without_its_input_is_left_out(change: dict[str, float], absent: str) -> None:
    assert set(LOSSES) - set(losses(**change)[0]) == {absent}  # type: ignore[arg-type]


def test_a_new_loss_is_a_function_and_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def norm(step: StudentStep) -> Term:
        value = step.features.square().mean()
        return Term(value, 3.0 * value)

    before = losses()[1]
    monkeypatch.setitem(LOSSES, "norm", norm)
    values, total = losses()
    assert total.item() == pytest.approx((before + 3.0 * values["norm"]).item(), rel=1e-6)

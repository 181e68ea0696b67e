"""Distillation keeps the trainer's promises, counts the right positions, and makes the drafter better."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import tenfold
from language.drafting_models import saved, tiny_drafter, tiny_rollouts, tiny_target
from tenfold.config import config_hash
from tenfold.engine.conformance import check_task
from tenfold.engine.trainer import Trainer
from tenfold.errors import UsageError
from tenfold.language.distillation.distill import Distillation, DistillConfig, DrafterShape, go_on_from
from tenfold.language.distillation.recipes import eagle3_smoke
from tenfold.language.distillation.rollouts import Rollout, collate, write_rollouts
from tenfold.language.drafting.drafter import Eagle3Drafter, membership
from tenfold.training import reopen, run_recipe


@pytest.mark.parametrize("method", ["eagle3", "eagle1"])
def test_task_keeps_the_trainers_promises(method: str) -> None:
    size = None if method == "eagle1" else 32
    check_task(dataclasses.replace(eagle3_smoke(), drafter=DrafterShape(method=method, draft_vocabulary=size)))


def as_the_last_version_wrote_it(path: Path) -> None:
    """A run's configuration by the former names of its fields."""
    saved = json.loads(path.read_text())
    rollouts = saved["config"].pop("rollouts")
    rollouts["round_answers"] = rollouts.pop("round_size")
    saved["config"]["answers"] = rollouts
    path.write_text(json.dumps(saved))


def test_checkpoints_of_the_last_version_are_those_of_this_configuration() -> None:
    """The hash that it wrote, when the field `rollouts` was named `answers`."""
    assert config_hash(eagle3_smoke()) == "cfcde9ca4f7ce15038b767ed200915b53ab7d51cd6d7c597a17eb1f6c72e7b9f"


def test_run_resumes_with_the_same_bits_and_delivers_a_drafter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = eagle3_smoke()
    recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, steps=16))
    straight = Trainer(recipe.make_task(), recipe, tmp_path / "straight", name="eagle3-smoke").fit()
    short = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, checkpoint_every=7))

    class Cut(Exception):
        pass

    task = short.make_task()
    after_step = task.after_step

    def cut(model: nn.Module, step: int) -> None:
        after_step(model, step)
        if step == 9:
            raise Cut

    monkeypatch.setattr(task, "after_step", cut)
    with pytest.raises(Cut):
        Trainer(task, short, tmp_path / "cut", name="eagle3-smoke").fit()
    as_the_last_version_wrote_it(tmp_path / "cut/config.json")
    name, reopened = reopen(tmp_path / "cut")
    assert reopened == short
    again = run_recipe(name, reopened, tmp_path / "cut", resume=True)
    assert again["loss"] == straight["loss"]
    one, two = (tenfold.load(tmp_path / run / "final.safetensors") for run in ("straight", "cut"))
    assert isinstance(one, Eagle3Drafter)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_validation_scores_answers_as_they_are_stored(tmp_path: Path) -> None:
    """Features are kept in bf16, the drafter trains in fp32."""
    g = torch.Generator().manual_seed(0)
    rollouts = [
        Rollout(
            torch.randint(64, (20,), generator=g),
            4,
            torch.randn(20, 64, generator=g),
            torch.zeros(20, dtype=torch.int32),
        )
        for _ in range(8)
    ]
    write_rollouts(tmp_path / "rollouts.safetensors", rollouts, {})
    smoke = eagle3_smoke()
    task = dataclasses.replace(smoke, rollouts=dataclasses.replace(smoke.rollouts, stored=tmp_path)).make_task()
    scores = task.validate(task.build().eval())
    assert scores.keys() == {"tpc_chain4_held_back"}
    assert 1 <= scores["tpc_chain4_held_back"] < 2  # random guesses among 64 tokens


@pytest.mark.parametrize("method", ["eagle3", "eagle1"])
def test_training_makes_the_guesses_better(method: str) -> None:
    target = tiny_target()
    rollouts = tiny_rollouts(target, 8, length=16)
    drafter = tiny_drafter(target, **({"method": "eagle1"} if method == "eagle1" else {"draft_vocabulary": 96}))
    drafter.bind(target)
    model = Distillation(drafter, target, DistillConfig(levels=3)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    alphas = []
    for _ in range(60):
        losses = model(collate(rollouts))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        alphas.append(float(losses["alpha_0"]))
    assert alphas[-1] > alphas[0] + 0.2


def test_positions_that_the_loss_counts() -> None:
    """Only rows whose next distribution lies in the rollout and whose best guess is in the draft vocabulary."""
    target = tiny_target()
    rollouts = tiny_rollouts(target, 3)
    drafter = tiny_drafter(target)
    model = Distillation(drafter, target, DistillConfig(levels=2))
    batch = collate(rollouts)
    whole = model(batch)
    beyond = {k: v.clone() for k, v in batch.items()}
    for b, rollout in enumerate(rollouts):  # what no counted position may depend on
        beyond["features"][b, len(rollout.tokens) - 1 :] += 9.0
        beyond["argmax"][b, : rollout.prompt - 1] = 0
        beyond["argmax"][b, len(rollout.tokens) - 1 :] = 0
    assert torch.equal(model(beyond)["loss"], whole["loss"])
    inside = membership(drafter.ids, 96)
    counted = [sum(bool(inside[int(a.argmax[i])]) for i in range(a.prompt - 1, len(a.tokens) - 1)) for a in rollouts]
    by_hand = []
    with torch.no_grad():
        for rollout in rollouts:
            features, hidden = rollout.features[None, :, :96], rollout.features[:, 96:]
            _, logits = drafter.step(
                target.embedding(rollout.tokens[None, 1:]),
                drafter.fuse(features[:, :-1]),
                torch.arange(len(rollout.tokens) - 1),
            )
            for i in range(rollout.prompt - 2, len(rollout.tokens) - 2):
                if inside[int(rollout.argmax[i + 1])]:
                    distribution = target.logits(hidden[i + 1])[drafter.ids].softmax(-1)
                    by_hand.append(-(distribution * logits[0, i].log_softmax(-1)).sum())
    assert len(by_hand) == sum(counted)
    torch.testing.assert_close(whole["loss_0"], torch.stack(by_hand).mean(), atol=1e-5, rtol=1e-5)


def test_going_on_from_a_drafter_carries_rows_by_target_id(tmp_path: Path) -> None:
    target = tiny_target()
    old, new = tiny_drafter(target, seed=1), tiny_drafter(target, seed=9)
    assert isinstance(old, Eagle3Drafter)
    assert isinstance(new, Eagle3Drafter)
    fresh = new.head.weight.detach().clone()
    go_on_from(new, saved(old, tmp_path / "old.safetensors"))
    assert torch.equal(new.fc.weight, old.fc.weight)
    olds = {int(i): n for n, i in enumerate(old.ids)}
    both = [(n, olds[int(i)]) for n, i in enumerate(new.ids) if int(i) in olds]
    assert 0 < len(both) < 48
    for mine, its in both:
        assert torch.equal(new.head.weight[mine], old.head.weight[its])
    for n, i in enumerate(new.ids):
        if int(i) not in olds:
            assert torch.equal(new.head.weight[n], fresh[n])
    with pytest.raises(UsageError, match="another shape"):
        go_on_from(tiny_drafter(target, layers=2), tmp_path / "old.safetensors")


@torch.no_grad()
def test_a_window_learns_the_same_from_an_answers_tail() -> None:
    """Positions are relative and the features have seen the whole prompt, so what no row sees may go."""
    target, window = tiny_target(), 6
    rollouts = tiny_rollouts(target, 4, prompt=20)
    drafter = tiny_drafter(target, sliding_window=window)
    model = Distillation(drafter, target, DistillConfig(levels=3))
    whole = model(collate(rollouts))
    kept = model(collate([a.tail(window + 1) for a in rollouts]))
    assert kept["loss_0"].isfinite()
    assert all(abs(float(whole[k] - kept[k])) < 1e-5 for k in whole), (whole, kept)
    assert abs(float(whole["loss"] - model(collate([a.tail(3) for a in rollouts]))["loss"])) > 1e-3
    assert rollouts[0].tail(100) is rollouts[0]

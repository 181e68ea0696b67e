"""R2, R9 for 2:4 sparse training: a run killed before the switch goes on with the same bits, and NaN stops it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from byte_runs import steps, wait_for
from jobs import Job
from tenfold.engine.task import Phase, unwrap
from tenfold.engine.trainer import Trainer
from tenfold.errors import NonFiniteError
from tenfold.language.models.language_model import LanguageModel
from tenfold.language.pretraining.pretrain import PretrainRecipe, PretrainTask

SIZES = (
    "--model.dim",
    "32",
    "--model.hidden",
    "96",
    "--model.depth",
    "2",
    "--model.heads",
    "2",
    "--model.kv-heads",
    "2",
    "--length",
    "32",
    "--batch",
    "8",
    "--val-tokens",
    "1024",
    "--trainer.steps",
    "60",
    "--trainer.log-every",
    "1",
    "--trainer.checkpoint-every",
    "10",
)


@pytest.mark.parametrize(
    ("ranks", "parallel", "warmup"),
    [(1, "auto", "30"), (2, "fsdp", "5"), pytest.param(2, "ddp", "30", marks=pytest.mark.slow)],
)
def test_a_run_killed_before_or_after_the_switch_has_the_bits_of_one_that_never_was(
    test_data: Path, tmp_path: Path, ranks: int, parallel: str, warmup: str
) -> None:
    """It is killed between steps 15 and 60 and goes on from step 10 or later."""
    text = str(test_data / "text/tinyshakespeare.txt.gz")

    def start(run: Path, *more: str) -> Job:
        words = ["lm-relu2-24", "--out", str(run), "--data", text, *SIZES, "--trainer.parallel", parallel]
        words += ["--sparsity.warmup-steps", warmup]
        return Job(["train", *(more or words)], tmp_path, ranks)

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    job = start(straight)
    assert job.wait() == [0] * ranks, job.errors
    job = start(killed)
    wait_for(lambda: len(steps(killed)) >= 15)
    job.signal(signal.SIGKILL)
    job.wait()
    assert max(steps(killed)) < 60
    job = start(killed, "--resume", str(killed))
    assert job.wait() == [0] * ranks, job.errors
    assert steps(killed) == steps(straight)
    a, b = load_file(straight / "final.safetensors"), load_file(killed / "final.safetensors")
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


class Poisoned(PretrainTask):
    """One token's input of the last sparse network is NaN at step 5."""

    def build(self) -> nn.Module:
        model = super().build()
        assert isinstance(model, LanguageModel)
        self.at = 0
        model.blocks[-1].get_submodule("ffn").register_forward_pre_hook(self._poison)
        return model

    def _poison(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.at == 5:
            x = inputs[0].clone()
            x[0, 3, 0] = torch.nan
            return (x,)
        return inputs

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        self.weights = {n: p.detach().clone() for n, p in unwrap(model).named_parameters()}
        return super().training_step(model, batch, phase)

    def after_step(self, model: nn.Module, step: int) -> None:
        self.at = step + 1
        super().after_step(model, step)


def test_nan_in_a_sparse_network_stops_the_step_before_the_weights_move(test_data: Path, tmp_path: Path) -> None:
    from tenfold.engine.recipe import TrainerConfig
    from tenfold.language.models.config import LlamaConfig
    from tenfold.nn.sparse24 import Sparsity24

    recipe = PretrainRecipe(
        trainer=TrainerConfig(steps=10, device="cpu"),
        data=test_data / "text/tinyshakespeare.txt.gz",
        batch=4,
        length=16,
        model=LlamaConfig(256, 16, 48, 2, 2, 2, activation="relu2", sparsity="2:4", tied=True),
        sparsity=Sparsity24(warmup_steps=2),
        val_tokens=64,
    )
    task = Poisoned(recipe)
    trainer = Trainer(task, recipe, tmp_path / "run")
    with pytest.raises(NonFiniteError, match="step 5"):
        trainer.fit()
    model = unwrap(trainer.model)
    assert model.get_submodule("blocks.1.ffn").mode == "sparse24"
    assert all(p.equal(task.weights[name]) for name, p in model.named_parameters())
    assert all(p.isfinite().all() for p in model.parameters())

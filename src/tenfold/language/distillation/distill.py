"""Distillation of a target Llama into a drafter: the target's own rollouts, its features, and a drafter that sees its own
output in training as it will when drafting.

    tenfold train eagle3-smollm2 --trainer.steps 120

    prompts ──► target ──► rollouts with features (kept in memory for `reuse` passes, distillation/rollout_rounds.py)
                               │
                    tokens, g ─► drafter, levels 0..T-1 (distillation/unroll.py) ──► sum of 0.8^k loss_k
                    last state ─► target's head on the draft vocabulary ──► p

EAGLE-3 (arXiv 2503.01840, section 3.2): no loss on features; a position counts only where the target's most likely token is in
the draft vocabulary. EAGLE-1 (arXiv 2401.15077): features regressed, one level, noise on its input.

    B rollouts   N tokens   A rows that draft   F width of features   H width of the target   W draft vocabulary   T levels
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.config import require
from tenfold.engine.recipe import Recipe
from tenfold.engine.task import Batches, Phase, Shard, Task, unwrap
from tenfold.errors import UsageError
from tenfold.language.distillation.draft_vocabulary import choose, coverage, expected_counts
from tenfold.language.distillation.losses import LossName, distillation_loss, eagle1_loss
from tenfold.language.distillation.replay import accepted_lengths, token_ranks, tokens_per_call
from tenfold.language.distillation.rollout_rounds import RolloutConfig, RolloutRounds
from tenfold.language.distillation.rollout_stream import RolloutStream
from tenfold.language.distillation.unroll import first_rows, rows_of_interest, target_rows, unroll
from tenfold.language.drafting.drafter import EagleDrafter, config_for, make_drafter, membership
from tenfold.language.drafting.tree import Tree
from tenfold.language.drafting.weights import load_drafter, own_tensors, state_of
from tenfold.language.models.llama import Llama


@dataclass(frozen=True)
class DrafterShape:
    """What of the drafter is chosen; the rest is the target's own size."""

    method: str = "eagle3"  # eagle3 or eagle1
    layers: int = 1
    draft_vocabulary: int | None = 8192  # ids that it can propose; None is all (eagle1 always)
    rope_theta: float | None = None  # None is the target's
    sliding_window: int | None = 512  # rows that a row sees; None is all
    aux_layers: tuple[int, ...] | None = None  # target layers whose inputs are the features; None: 2, n // 2, n - 3

    def __post_init__(self) -> None:
        require(self.method in ("eagle1", "eagle3"), "drafter.method", self.method, "eagle1 or eagle3")
        require(self.layers >= 1, "drafter.layers", self.layers, "a whole number >= 1")
        size = self.draft_vocabulary
        require(size is None or size >= 1, "drafter.draft_vocabulary", size, "None or a whole number >= 1")


@dataclass(frozen=True)
class DistillConfig:
    """The loss. `levels` should be as deep as the trees that will be drafted: what is not trained is not accepted."""

    loss: LossName = "kl"
    levels: int = 4  # of the training-time test (EAGLE-3's code: 7)
    decay: float = 0.8  # weight of each level over the one before
    warm_start: bool = True  # the target's last layer, norm and head, and its last feature passed through
    noise: float = 0.2  # eagle1: of the uniform noise on features

    def __post_init__(self) -> None:
        require(self.levels >= 1, "distill.levels", self.levels, "a whole number >= 1")
        require(0 < self.decay <= 1, "distill.decay", self.decay, "a number in (0, 1]")
        require(self.noise >= 0, "distill.noise", self.noise, "a number >= 0")


@dataclass(frozen=True)
class DrafterRecipe(Recipe):
    """A drafter for a target, trained on what the target itself writes."""

    renamed: ClassVar = {"answers": "rollouts"}

    target: str = "smollm2-135m-instruct"  # a name, weights file or folder: whose rollouts are learnt
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    drafter: DrafterShape = field(default_factory=DrafterShape)
    distill: DistillConfig = field(default_factory=DistillConfig)
    batch: int = 4  # rollouts per step, over all ranks
    start: Path | None = None  # a drafter to start from; its draft vocabulary may differ

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch", self.batch, "a whole number >= 1")

    def make_task(self) -> DrafterTask:
        return DrafterTask(self)


class Distillation(nn.Module):
    """A drafter and what it needs of the target: the embedding, and the head's rows of the draft vocabulary. Both stay as
    they are and are not part of a checkpoint."""

    embedding: Tensor
    head: Tensor
    inside: Tensor

    def __init__(self, drafter: EagleDrafter, target: Llama, config: DistillConfig) -> None:
        super().__init__()
        self.drafter, self.config = drafter, config
        head = head_weight(target).detach()
        ids = drafter.ids if drafter.config.reduced else torch.arange(len(head))
        self.register_buffer("embedding", target.embedding.weight.detach(), persistent=False)
        self.register_buffer("head", head[ids] if drafter.config.reduced else head, persistent=False)
        self.register_buffer("inside", membership(ids, len(head)), persistent=False)

    def embed(self, tokens: Tensor) -> Tensor:
        own = self.drafter.embedding
        return F.embedding(tokens, self.embedding if own is None else own.get_parameter("weight"))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a batch of `rollouts.collate`."""
        c = self.drafter.config
        tokens, width = batch["tokens"], c.features
        features, hidden = batch["features"].split(
            [batch["features"].shape[-1] - self.head.shape[1], self.head.shape[1]], -1
        )
        if c.method == "eagle1":
            features = hidden + self._noise(hidden, width)
        first = first_rows(batch["prompts"])
        count = int((batch["lengths"] - first).max()) - 2
        steps = self.config.levels if c.method == "eagle3" else 1
        states = unroll(self.drafter, self.embed, tokens, features.to(self.embedding.dtype), first, count, steps)
        # Row i at level k drafts t_{i+2+k}, of which the target's row i+1+k has the distribution: made once for all levels.
        rows = rows_of_interest(first + 1, count + steps - 1, tokens.shape[1] + 1)
        truth = hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))
        with torch.no_grad():
            p = F.linear(truth.to(self.head.dtype), self.head).float().softmax(-1)
        counted = self.inside[batch["argmax"].gather(1, rows)] & (
            target_rows(first, rows.shape[1]) < batch["lengths"][:, None]
        )
        losses: dict[str, Tensor] = {}
        total = torch.zeros((), device=tokens.device)
        for k, state in enumerate(states):
            here = counted[:, k : k + count]
            loss, alpha = self._level(state[here], truth[:, k : k + count][here], p[:, k : k + count][here])
            # The sum of a batch in which no position counts is still part of the graph.
            mean = loss.sum() / max(1, len(loss))
            total = total + self.config.decay**k * mean
            losses[f"loss_{k}"] = mean.detach()
            losses[f"alpha_{k}"] = alpha.sum() / max(1, len(alpha))
        return {"loss": total, **losses}

    def _level(
        self, state: Float[Tensor, "m h"], truth: Float[Tensor, "m d"], p: Float[Tensor, "m w"]
    ) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
        if self.drafter.config.method == "eagle1":
            return eagle1_loss(state, truth, p, F.linear(state, self.head))
        return distillation_loss(self.config.loss, p, self.drafter.logits(state))

    def _noise(self, hidden: Tensor, width: int) -> Tensor:
        """Uniform noise of the released size: U(-0.5, 0.5) * noise * 512 / length (EAGLE-1, section 3.2)."""
        if not self.training or self.config.noise == 0:
            return torch.zeros_like(hidden)
        return (torch.rand_like(hidden) - 0.5) * (self.config.noise * 512 / hidden.shape[1])


class DrafterTask(Task):
    """The trainer's side of it."""

    def __init__(self, recipe: DrafterRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self._rounds: RolloutRounds | None = None
        self.coverage = 0.0

    @property
    def rounds(self) -> RolloutRounds:
        """The target and its rollouts, opened when first needed."""
        if self._rounds is None:
            shape = self.recipe.drafter
            self._rounds = RolloutRounds(
                self.recipe.rollouts, self.recipe.target, shape.aux_layers, self.recipe.trainer.seed
            )
        return self._rounds

    def build(self) -> nn.Module:
        target, shape = self.rounds.target, self.recipe.drafter
        changes: dict[str, Any] = {"method": shape.method, "layers": shape.layers, "target": self.rounds.fingerprint}
        changes["sliding_window"] = shape.sliding_window
        if shape.rope_theta is not None:
            changes["rope_theta"] = shape.rope_theta
        if shape.method == "eagle3":
            changes["aux_layers"] = self.rounds.aux_layers
            changes["draft_vocabulary"] = min(shape.draft_vocabulary or 1 << 62, target.config.vocabulary)
        self.config = config = config_for(target.config, **changes)
        drafter = make_drafter(config)
        if config.reduced:
            counts = expected_counts(self.rounds.sample(), head_weight(target).bfloat16())
            drafter.ids.copy_(choose(counts, config.draft_vocabulary, sorted(self.rounds.stops)))
            self.coverage = coverage(drafter.ids, counts)
        drafter.bind(target)
        if self.recipe.distill.warm_start:
            drafter.warm_start(target, head_weight(target))
        if self.recipe.start is not None:
            go_on_from(drafter, self.recipe.start)
        return Distillation(drafter, target, self.recipe.distill)

    def batches(self, shard: Shard) -> Batches:
        return RolloutStream(self.rounds, self.recipe.batch, shard, self.recipe.trainer.seed)

    def training_step(self, model: nn.Module, batch: Any, phase: Phase) -> dict[str, Tensor]:
        return model(batch)

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Tokens per call of a chain of 4 on held-back prompts, by exact replay; 1.0 is decoding without a drafter."""
        inner = unwrap(model)
        assert isinstance(inner, Distillation)
        figures = {}
        for name, rollouts in self.rounds.held_back.items():
            if not rollouts:  # a target that only repeats itself leaves nothing to score
                continue
            ranks = token_ranks(inner.drafter, inner.embed, rollouts, depth=4)
            figures[f"tpc_chain4_{name}"] = tokens_per_call([accepted_lengths(Tree.chain(4), r) for r in ranks])
        return figures

    def deliver(self, model: nn.Module) -> dict[str, Tensor]:
        inner = unwrap(model)
        assert isinstance(inner, Distillation)
        return own_tensors(state_of(inner.drafter))

    def card(self) -> tuple[str, Any]:
        return "drafter", self.config

    def parameter_scale(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        return 1.0, 0.0


def head_weight(target: Llama) -> Tensor:
    """(V, H): the target's output projection."""
    return (target.embedding if target.head is None else target.head).get_parameter("weight")


@torch.no_grad()
def go_on_from(drafter: EagleDrafter, path: Path) -> None:
    """Weights of another drafter of the same shape. Head rows go by the target's ids: an id that the other could not propose
    keeps the row that it has (the target's, after a warm start)."""
    other = load_drafter(path)
    if type(other) is not type(drafter):
        raise UsageError(f"start = {path}: a {type(other).__name__}; a {type(drafter).__name__} is needed.")
    state = dict(other.state_dict())
    if drafter.config.reduced or other.config.reduced:
        row = {int(i): n for n, i in enumerate(other.target_ids(torch.arange(other.config.draft_vocabulary)))}
        mine = drafter.target_ids(torch.arange(drafter.config.draft_vocabulary)).tolist()
        pairs = torch.tensor([(n, row[i]) for n, i in enumerate(mine) if i in row])
        head = drafter.get_parameter("head.weight").clone()
        head[pairs[:, 0]] = state["head.weight"][pairs[:, 1]].to(head.dtype)
        state["head.weight"] = head
        state.pop("ids", None)
        if drafter.config.reduced:
            state["ids"] = drafter.ids
    misfits = [n for n, t in drafter.state_dict().items() if n not in state or state[n].shape != t.shape]
    if misfits or len(state) != len(drafter.state_dict()):
        raise UsageError(f"start = {path}: another shape of drafter ({', '.join(misfits[:4]) or 'more layers'}).")
    drafter.load_state_dict(state)

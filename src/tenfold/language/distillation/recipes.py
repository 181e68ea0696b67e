"""Training recipes of EAGLE drafters, each a plain function that returns its configuration.

The numbers of `eagle3-smollm2` were measured (docs/speculative.md, docs/LOG.md); the papers' own are for hundreds of
thousands of conversations: EAGLE-3 at 5e-5 for 40 epochs of 532,000 rollouts of up to 2,048 tokens.
"""

from __future__ import annotations

import dataclasses

from tenfold.engine.recipe import TrainerConfig
from tenfold.engine.schedule import OptimConfig, Schedule
from tenfold.language.distillation.distill import DistillConfig, DrafterRecipe, DrafterShape
from tenfold.language.distillation.rollout_rounds import RANDOM, RolloutConfig


def eagle3_smollm2() -> DrafterRecipe:
    """EAGLE-3 for SmolLM2-135M-Instruct on its own rollouts, about two hours of one CPU core.

    Many small steps (batch 4 beats 8 at equal tokens) at a high rate, which the warm start allows; the training-time test is
    as deep as the trees that are drafted.
    """
    return DrafterRecipe(
        trainer=TrainerConfig(steps=2500, precision="auto", checkpoint_every=100, validate_every=100, log_every=10),
        optim=OptimConfig(
            lr=2e-3,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            clip=0.5,
            schedule=Schedule(kind="cosine", warmup=0.03, final=0.1),
        ),
    )


def eagle3_smollm2_2layer() -> DrafterRecipe:
    """The same with a drafter of two layers, as Meta's production drafters have several (arXiv 2508.08192)."""
    return dataclasses.replace(eagle3_smollm2(), drafter=DrafterShape(layers=2))


def eagle1_smollm2() -> DrafterRecipe:
    """EAGLE-1 for SmolLM2-135M-Instruct: regresses the target's feature, drafts with the target's own head."""
    base = eagle3_smollm2()
    return dataclasses.replace(
        base,
        optim=dataclasses.replace(base.optim, lr=5e-4),
        drafter=DrafterShape(method="eagle1", draft_vocabulary=None),
    )


def eagle3_smoke() -> DrafterRecipe:
    """The whole machinery on a random target of 64 tokens, in seconds: it shows that things run, not that they learn."""
    base = eagle3_smollm2()
    return dataclasses.replace(
        base,
        trainer=TrainerConfig(steps=20, checkpoint_every=5, log_every=1),
        target=RANDOM,
        rollouts=RolloutConfig(round_size=24, max_tokens=16, writers=8, reuse=2, held_back=4),
        drafter=DrafterShape(draft_vocabulary=32),
        distill=DistillConfig(levels=3),
    )

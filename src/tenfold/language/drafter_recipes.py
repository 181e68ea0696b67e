"""The training recipes of drafters: `tenfold train eagle3-smollm2`.

Numbers of `eagle3-smollm2` were measured (docs/speculative.md); the papers' own are for hundreds of thousands of
conversations.
"""

from __future__ import annotations

from tenfold.engine.config import OptimConfig, TrainerConfig
from tenfold.engine.schedule import Schedule
from tenfold.language.answer_rounds import AnswerConfig
from tenfold.language.distill import DistillConfig, DrafterRecipe, DrafterShape


def eagle3_smollm2() -> DrafterRecipe:
    """EAGLE-3 for SmolLM2-135M-Instruct on its own answers, about an hour of one CPU core.

    Many small steps (batch 4 beats 8 at equal tokens) at a high rate, which the warm start allows.
    """
    return DrafterRecipe(
        trainer=TrainerConfig(steps=3000, precision="bf16", checkpoint_every=200, validate_every=200, log_every=10),
        optim=OptimConfig(
            lr=2e-3,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            clip=0.5,
            schedule=Schedule(kind="cosine", warmup=0.03, final=0.1),
        ),
        batch=4,
        answers=AnswerConfig(),
        drafter=DrafterShape(),
        distill=DistillConfig(),
    )

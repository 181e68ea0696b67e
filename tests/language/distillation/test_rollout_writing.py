"""What is written is what the target says, with its own features, whatever the batch; stop ids end a rollout."""

from __future__ import annotations

import torch

from language.drafting_models import tiny_target
from tenfold.language.distillation.rollout_writing import write


def test_greedy_rollouts_do_not_depend_on_the_batch_and_end_at_a_stop_id() -> None:
    target = tiny_target()
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]

    def written(batch: int, stops: set[int]) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        options = {"max_tokens": 8, "stops": stops, "aux_layers": (), "generator": generator, "batch": batch}
        return [rollout.tokens.tolist() for rollout in write(target, prompts, [0.0] * 4, **options)]

    whole = written(4, set())
    assert written(1, set()) == written(3, set()) == whole
    assert [len(text) for text in whole] == [len(prompt) + 8 for prompt in prompts]
    stop = whole[0][len(prompts[0]) + 3]
    for prompt, text, cut in zip(prompts, whole, written(2, {stop}), strict=True):
        new = text[len(prompt) :]
        end = new.index(stop) + 1 if stop in new else len(new)
        assert cut == text[: len(prompt) + end]
    assert write(target, [], [], max_tokens=1, stops=(), aux_layers=(), generator=torch.Generator()) == []


def test_writing_answers_what_the_target_says_and_features_are_its_own() -> None:
    target = tiny_target()
    prompts = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10], [11]]
    rollouts = write(
        target,
        prompts,
        [0.0, 1.0, 0.0, 1.0],
        max_tokens=9,
        stops={0},
        aux_layers=(1, 3, 5),
        generator=torch.Generator().manual_seed(0),
        batch=2,
    )
    assert [a.tokens[: a.prompt].tolist() for a in rollouts] == prompts
    for rollout in rollouts:
        out = target(rollout.tokens[None].long(), aux_layers=(1, 3, 5))
        assert out.aux is not None
        n = len(rollout.tokens) - 1
        torch.testing.assert_close(
            rollout.features[:n].float(), torch.cat([out.aux, out.hidden], -1)[0, :n], atol=0.1, rtol=0.02
        )
        best = out.logits[0].argmax(-1)
        assert rollout.argmax[rollout.prompt - 1 : n].tolist() == best[rollout.prompt - 1 : n].tolist()
        if rollout.temperature == 0:
            assert rollout.tokens[rollout.prompt :].tolist() == best[rollout.prompt - 1 : n].tolist()
    hot = write(
        target,
        [[1, 2, 3]] * 64,
        [1.0] * 64,
        max_tokens=1,
        stops={0},
        aux_layers=(),
        generator=torch.Generator().manual_seed(1),
        batch=64,
    )
    assert len({int(a.tokens[-1]) for a in hot}) > 3

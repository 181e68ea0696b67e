"""Language models with memory layers, from the recipe to the commands; and what is refused before anything is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from language.memory_runs import SMALL, small, words
from needed import package
from tenfold.cli import main
from tenfold.engine.conformance import check_task
from tenfold.errors import UsageError
from tenfold.language.memory_commands import token_reads
from tenfold.language.pretraining.facts import FactWorld
from tenfold.language.pretraining.pretrain import MemoryConfig
from tenfold.language.recipes import lm_memory_peer, lm_memory_pkm, lm_memory_plus
from tenfold.nn.memory_usage import MemoryUsage


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return words(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("build", [lm_memory_plus, lm_memory_pkm, lm_memory_peer])
def test_recipes_keep_the_promises_of_a_task(build: type, text: Path) -> None:
    check_task(small(build(), text))


def test_usage_counts_what_a_plain_search_counts(text: Path) -> None:
    torch.manual_seed(0)
    model = small(lm_memory_plus(), text).make_task().build()
    tokens = torch.randint(256, (2, 10))
    with torch.no_grad(), MemoryUsage(model) as usage:
        model(tokens)
    heads, layers = 4, 2
    assert float(usage.weight.sum()) == pytest.approx(20 * heads * layers, rel=1e-5)
    assert usage.coverage == float((usage.weight.sum(0) > 0).float().mean())
    assert 0 < usage.divergence < np.log(256)
    slots, shares = usage.most_read(5)
    assert shares.tolist() == sorted(shares.tolist(), reverse=True)
    assert int(slots[0]) == int(usage.weight.sum(0).argmax())
    reads = token_reads(model, tokens[0].tolist())
    assert reads.sum(1).tolist() == pytest.approx([heads * layers] * 10, rel=1e-5)
    with torch.no_grad(), MemoryUsage(model) as first:
        model(tokens[:1])
    torch.testing.assert_close(reads.sum(0), first.weight.sum(0))


def test_evenly_read_slots_have_no_divergence_and_one_slot_has_all(text: Path) -> None:
    usage = MemoryUsage(small(lm_memory_plus(), text).make_task().build())
    usage.weight.fill_(1.0)
    assert usage.divergence == pytest.approx(0, abs=1e-6)
    usage.weight.zero_()[0, 3] = 5.0
    assert usage.divergence == pytest.approx(np.log(256))
    with pytest.raises(UsageError, match="no memory layers"):
        MemoryUsage(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ("--model.memory-top-k 300", 2, "1 to memory_side"),
        ("--model.memory-key-dim 7", 2, "even number"),
        ("--model.memory-layers 1 9", 2, "from 0 to 3"),
        ("--model.memory-variant pluss", 2, "plus"),
        ("--memory.lr 0", 2, "above 0"),
        ("--memory.group-size 3", 2, "1, 2, 4, 8, 16"),
        ("--memory.grup-size 2", 2, "group-size"),
        ("--facts.kind book", 2, "facts.path"),
        ("--data EMPTY.txt", 3, "no text"),
        ("--data absent.txt", 3, "absent.txt"),
        ("--data NOTEXT.parquet", 3, "no column text"),
        ("--facts.kind book --facts.path NOTEXT.parquet", 3, "no column entity"),
    ],
)
def test_bad_input_ends_in_one_message_and_nothing_is_written(
    flags: str, code: int, message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa, pq = package("pyarrow"), package("pyarrow.parquet")
    (tmp_path / "EMPTY.txt").write_text(" \n")
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "NOTEXT.parquet")
    given = [str(tmp_path / w) if w.endswith((".txt", ".parquet")) else w for w in flags.split()]
    run = tmp_path / "run"
    data = () if "--data" in given else ("--data", str(text))
    assert main(["train", "lm-memory-plus", "--out", str(run), *SMALL, *data, *given]) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not list(run.glob("*.safetensors"))
    assert not list(run.glob("step-*"))


def test_experts_are_not_split(text: Path) -> None:
    recipe = dataclasses.replace(small(lm_memory_peer(), text), memory=MemoryConfig(group_size=2))
    with pytest.raises(UsageError, match="pkm and plus"):
        recipe.make_task()


def test_ranks_together_see_the_batch_of_one_process(text: Path) -> None:
    from tenfold.engine.task import Shard

    task = small(lm_memory_plus(), text).make_task()
    whole = next(iter(task.batches(Shard())))
    parts = [next(iter(task.batches(Shard(rank, 2)))) for rank in range(2)]
    assert sorted(map(tuple, whole.tolist())) == sorted(tuple(r) for part in parts for r in part.tolist())
    facts = FactWorld(20, 8, 512, 0, first_token=256)
    assert all((part.max(1).values >= 256).sum() == 1 for part in parts)  # each has its share of facts
    assert whole.max() < facts.vocabulary

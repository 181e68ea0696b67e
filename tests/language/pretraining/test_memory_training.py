"""Language models with memory layers, from the recipe to the commands; and what is refused before anything is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tenfold
from needed import package
from tenfold.cli import main
from tenfold.engine.conformance import check_task
from tenfold.engine.recipe import TrainerConfig
from tenfold.errors import CheckpointError, UsageError
from tenfold.language.memory_commands import open_run, token_reads
from tenfold.language.models.llama import Llama
from tenfold.language.pretraining.fact_mixing import FactsConfig
from tenfold.language.pretraining.facts import FactWorld
from tenfold.language.pretraining.pretrain import MemoryConfig, PretrainRecipe
from tenfold.language.recipes import lm_memory_peer, lm_memory_pkm, lm_memory_plus
from tenfold.nn.memory import MemoryLayer
from tenfold.nn.memory_usage import MemoryUsage

SMALL = [
    *("--trainer.steps", "3", "--trainer.device", "cpu", "--batch", "4", "--length", "24", "--val-tokens", "96"),
    *("--facts.kind", "world"),
    *("--facts.entities", "20", "--facts.asked", "20", "--model.dim", "16", "--model.hidden", "32"),
    *("--model.memory-side", "16", "--model.memory-top-k", "4", "--model.memory-key-dim", "8"),
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the quick brown fox jumps over the lazy dog.\n" * 4000)
    return path


def small(recipe: PretrainRecipe, text: Path) -> PretrainRecipe:
    model = dataclasses.replace(recipe.model, dim=16, hidden=32, memory_side=16, memory_top_k=4, memory_key_dim=8)
    return dataclasses.replace(
        recipe,
        trainer=TrainerConfig(steps=3, device="cpu"),
        model=model,
        data=text,
        batch=4,
        length=24,
        val_tokens=96,
        facts=FactsConfig(kind="world", entities=20, asked=20),
    )


@pytest.mark.parametrize("build", [lm_memory_plus, lm_memory_pkm, lm_memory_peer])
def test_recipes_keep_the_promises_of_a_task(build: type, text: Path) -> None:
    check_task(small(build(), text))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_every_size_describes_a_model_with_one_table(size: str) -> None:
    recipe = lm_memory_plus(size)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = Llama(recipe.model)
    assert sum("memory.values" in name for name, _ in model.named_parameters()) == 1
    assert sum(isinstance(m, MemoryLayer) for m in model.modules()) == len(recipe.model.memory_layers)


def test_train_evaluate_and_look_into_the_table(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "lm-memory-plus", "--out", str(run), "--data", str(text), *SMALL]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert 0 < trained["nats_per_byte"] < 7
    assert {"facts_recall", "facts_floor"} <= set(trained)
    assert main(["eval", "facts", str(run), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["recall"] == pytest.approx(trained["facts_recall"], abs=15)
    assert scores["facts trained"] == 152
    assert main(["language", "memory", str(run), "--json", "--prompt", "fox", "--top", "3"]) == 0
    usage = json.loads(capsys.readouterr().out)
    assert usage["slots"] == 256
    assert 0 < usage["coverage"] <= 1
    assert [row["token"] for row in usage["prompt"]] == ["f", "o", "x"]
    model, recipe = open_run(run)
    assert model.config.memory_side == recipe.model.memory_side == 16
    loaded: Any = tenfold.load(run)
    assert loaded.memory.values.equal(model.memory.values)


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
    ("words", "code", "message"),
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
    words: str, code: int, message: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa, pq = package("pyarrow"), package("pyarrow.parquet")
    (tmp_path / "EMPTY.txt").write_text(" \n")
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "NOTEXT.parquet")
    given = [str(tmp_path / w) if w.endswith((".txt", ".parquet")) else w for w in words.split()]
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


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_run(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": "x", "config": {"widt": 3}}')
    with pytest.raises(CheckpointError, match="no run of a language model"):
        open_run(tmp_path)


def test_ranks_together_see_the_batch_of_one_process(text: Path) -> None:
    from tenfold.engine.task import Shard

    task = small(lm_memory_plus(), text).make_task()
    whole = next(iter(task.batches(Shard())))
    parts = [next(iter(task.batches(Shard(rank, 2)))) for rank in range(2)]
    assert sorted(map(tuple, whole.tolist())) == sorted(tuple(r) for part in parts for r in part.tolist())
    facts = FactWorld(20, 8, 512, 0, first_token=256)
    assert all((part.max(1).values >= 256).sum() == 1 for part in parts)  # each has its share of facts
    assert whole.max() < facts.vocabulary

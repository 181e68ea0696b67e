"""Embeddings in shards: what is written is read back, what is damaged is named, and copies lie near their originals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tenfold.data.sample import Sample
from tenfold.errors import DataError
from tenfold.vision.backbones.images import normalize
from tenfold.vision.backbones.vit import VisionTransformer, VitConfig
from tenfold.vision.curation.embeddings import (
    Encoder,
    Rows,
    Vectors,
    cosines,
    embed_rows,
    read_column,
    read_vectors,
    unit,
    unreadable_of,
    write_shard,
)
from vision.curation_inputs import angles, encoded, save_vit, shard_of, write_pool


def test_damaged_shards_name_the_file_and_the_field(tmp_path: Path) -> None:
    good, wide = shard_of(tmp_path / "good.parquet", angles(1, 2)), shard_of(tmp_path / "wide.parquet", np.eye(3))
    assert np.linalg.norm(read_vectors(good), axis=1) == pytest.approx([1, 1])
    with pytest.raises(DataError, match=r"wide\.parquet: field vector has width 3; the other shards have 2"):
        Vectors([good, wide])[1]
    for value in (np.nan, np.inf):
        bad = shard_of(tmp_path / "bad.parquet", np.array([[1, 0], [0, value]]))
        with pytest.raises(DataError, match=r"bad\.parquet: field vector is not finite in 1 rows, first row 1"):
            read_vectors(bad)
    pq.write_table(pa.table({"vector": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"text\.parquet: field vector is string"):
        read_vectors(tmp_path / "text.parquet")
    (tmp_path / "torn.parquet").write_bytes(good.read_bytes()[:100])
    with pytest.raises(DataError, match=r"torn\.parquet: field vector cannot be read"):
        read_vectors(tmp_path / "torn.parquet")
    with pytest.raises(DataError, match=r"good\.parquet.*kept"):
        read_column(good, "kept")


def test_a_shard_holds_what_was_embedded_and_says_what_could_not_be_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20 + n, 30, 3), np.uint8) for n in range(40)]  # more than one batch
    samples: list[tuple[int, Sample | None, str]] = [
        (n, Sample(image, None, f"image {n}"), "") for n, image in enumerate(images)
    ]
    samples[7] = (7, None, "torn")
    write_shard(tmp_path / "shard.parquet", Encoder(), iter(samples))
    kept = [n for n in range(40) if n != 7]
    assert unreadable_of(tmp_path / "shard.parquet") == {7: "torn"}
    assert read_column(tmp_path / "shard.parquet", "id").tolist() == kept
    assert read_column(tmp_path / "shard.parquet", "name") == [f"image {n}" for n in kept]
    assert read_column(tmp_path / "shard.parquet", "pixels").tolist() == [(20 + n) * 30 for n in kept]
    assert len(set(read_column(tmp_path / "shard.parquet", "sha256"))) == 39
    expected = Encoder()([images[n] for n in kept])
    np.testing.assert_allclose(read_vectors(tmp_path / "shard.parquet"), expected, atol=1e-3)  # stored in fp16


def test_rows_of_a_source_are_embedded_in_its_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(6)]
    pool = write_pool(tmp_path / "pool.parquet", [encoded(image) for image in images])
    shards = []
    for start, stop in ((0, 4), (4, 6)):
        rows = Rows(pool, start, stop)
        shards.append(tmp_path / rows.name)
        embed_rows(Encoder(), rows, shards[-1])
    vectors = Vectors(shards)
    assert (len(vectors), vectors.rows, vectors.lengths) == (2, 6, [4, 2])
    np.testing.assert_allclose(np.concatenate(list(vectors)), Encoder()(images), atol=1e-3)


def test_an_embedding_has_unit_length_and_forgets_exposure_and_size() -> None:
    rng = np.random.default_rng(2)
    coarse = rng.integers(60, 190, (8, 8, 3), np.uint8)
    image = coarse.repeat(8, 0).repeat(8, 1)
    first, other = cosines(image), cosines(rng.integers(60, 190, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1))
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
    assert first @ cosines(image + 20) > 0.999  # brighter by a constant
    assert first @ cosines(image.repeat(3, 0).repeat(3, 1)) > 0.999
    assert first @ other < 0.5


def test_a_row_of_zeros_stays_one() -> None:
    rows = unit(np.array([[3, 4], [0, 0]], np.float32))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], atol=1e-7)


def test_weights_are_known_by_their_digest_and_see_whole_patches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(VitConfig(16, 1, 2, patch_size=16)).eval()
    encoder = Encoder.of(str(save_vit(tmp_path / "w.safetensors", model)), 40)
    assert encoder.sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    image = np.random.default_rng(3).integers(0, 256, (32, 32, 3), np.uint8)
    with torch.inference_mode():
        output = model(normalize(torch.from_numpy(image)[None], model.config))
        expected = torch.cat([output.cls_token, output.patch_tokens.flatten(1, 2).mean(1)], 1).numpy()
    np.testing.assert_allclose(encoder([image]), unit(expected), atol=1e-5)  # 40 pixels are two patches of 16
    assert Encoder.of("pixels", 40) == Encoder()

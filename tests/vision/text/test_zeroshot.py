"""Zero-shot classification: a class is the mean of its sentences, a pixel is the class nearest to its patch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tenfold.errors import DataError
from tenfold.vision.backbones.images import normalize
from tenfold.vision.text.zeroshot import class_vectors, image_vectors, read_descriptions, segment_by_text
from vision.text_inputs import BACKBONE, small_aligned


@pytest.mark.samples
@torch.inference_mode()
def test_a_class_is_the_unit_mean_of_the_unit_vectors_of_its_sentences() -> None:
    model = small_aligned()
    found = class_vectors(model, ["owl", "cat"], ["a {}.", "the {} here"])
    for vector, sentences in zip(found, (["an owl.", "the owl here"], ["a cat.", "the cat here"])):
        torch.testing.assert_close(vector, F.normalize(model.encode_text(sentences).mean(0), dim=0))
    described = class_vectors(model, ["owl"], ["a {}."], {"owl": ["bird", "egg"]})
    torch.testing.assert_close(described[0], F.normalize(model.encode_text(["a bird.", "an egg."]).mean(0), dim=0))


@torch.inference_mode()
def test_vectors_of_images_do_not_depend_on_the_batch() -> None:
    model, images = small_aligned(), np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    found = image_vectors(model, images, batch=2)
    torch.testing.assert_close(found, model.encode_image(normalize(torch.from_numpy(images), BACKBONE)))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


@torch.inference_mode()
def test_every_corner_is_the_class_whose_vector_is_its_patch() -> None:
    model = small_aligned()
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 2, 3), np.uint8))
    image = image.repeat_interleave(16, 0).repeat_interleave(16, 1)
    patches = model.encode_patches(normalize(image, BACKBONE)[None])[0].flatten(0, 1)
    noise = torch.randn(4, 48)  # the side of CLS, which patches are not compared with
    classes = F.normalize(torch.cat([noise, patches * torch.tensor([[1.0], [2.0], [3.0], [4.0]])], 1), dim=1)
    found = segment_by_text(model, image, classes)
    assert found.shape == (32, 32)
    assert found[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [0, 1, 2, 3]


def test_descriptions_are_read_for_the_classes_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"cat": ["small lion"], "dog": ["wolf", "friend"], "owl": []}))
    assert read_descriptions(path, ["dog", "cat"]) == {"dog": ["wolf", "friend"], "cat": ["small lion"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cat": ["a"]}', r"'owl' needs a list of texts; it has null"),
        ('{"owl": []}', r"'owl' needs a list of texts; it has \[\]"),
        ('{"owl": ["bird", 3]}', r"'owl' needs a list of texts"),
        ('["owl"]', "expected an object from class names to lists of texts"),
    ],
)
def test_descriptions_that_lack_a_class_name_it(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_descriptions(tmp_path / "words.json", ["owl"])
    with pytest.raises(DataError, match=r"absent\.json cannot be read"):
        read_descriptions(tmp_path / "absent.json", ["owl"])

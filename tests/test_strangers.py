"""A stranger's changes, each done on a scratch copy in the files that docs/architecture.md names: a new image backbone is one
file and one line, a new weight format one entry and its kernel, a new DINO loss and a new HTTP route one function each."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

BACKBONE = '''"""A toy backbone: mean colours of patches through one linear map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tenfold.vision.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, BackboneConfig, VisionOutput


@dataclass(frozen=True)
class ToyConfig(BackboneConfig):
    kind: ClassVar[str] = "toy"
    dim: int = 16
    depth: int = 1
    channels: int = 3
    patch_size: int = 16
    feature: Literal["cls", "patch-mean"] = "patch-mean"
    image_size: int = 64
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def build(self) -> Toy:
        return Toy(self)


class Toy(Backbone):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.map = nn.Linear(3, config.dim)

    def forward(self, images: Tensor, masks: Tensor | None = None) -> VisionOutput:
        cells = torch.nn.functional.avg_pool2d(images, self.config.patch_size)
        tokens = self.map(cells.permute(0, 2, 3, 1))
        mean = tokens.flatten(1, 2).mean(1)
        return VisionOutput(mean, mean.new_zeros(len(mean), 0, self.config.dim), tokens)

    def get_intermediate_layers(self, images: Tensor, n: int | Sequence[int] = 1, **others: Any) -> Any:
        return (self(images).patch_tokens.flatten(1, 2),)
'''

LOSS = '''

def toy(step: StudentStep) -> Term:
    """Small features."""
    value = step.features.float().square().mean()
    return Term(value, 0.01 * value)


LOSSES["toy"] = toy
'''

KERNEL = '''

class ToyLinear(PlainLinear):
    """fp32 weights rounded to fp16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.half().float(), bias)
        self.bytes = weight.numel() * 2
'''

FORMAT = """

def _toy(weight: Tensor, bias: Tensor | None) -> PackedWeight:
    from tenfold.kernels.packed import ToyLinear

    return ToyLinear(weight, bias)


add(WeightFormat("toy", "fp32 rounded to fp16", "float32", {512: 3, 256: 3}, devices=("cpu",), pack=_toy))
"""

ROUTE = '''

@router.get("/v1/toy", response_model=None)
async def toy(text: str, served: Here) -> Any:
    """The tokens of a text."""
    return served.llm.tokenizer.encode(text)
'''

LINE = 'backbones.add("toy", "tenfold.vision.backbones.toy:ToyConfig", "mean colours through one linear map")\n'

CHANGES = {  # what a stranger wants: the files that change or are new
    "a new image backbone": {"vision/backbones/toy.py", "registry.py"},
    "a new loss of DINO pretraining": {"vision/pretraining/losses.py"},
    "a new weight format": {"kernels/formats.py", "kernels/packed.py"},
    "a new HTTP route": {"language/serving/routes.py"},
}


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def before_type_checking(path: Path, text: str) -> None:
    """After the last entry of the table: FormatChoice is made from it."""
    whole = path.read_text()
    at = whole.index("\nif TYPE_CHECKING:\n    FormatChoice")
    path.write_text(whole[:at] + text.rstrip() + "\n\n" + whole[at:])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source with every change; the weights that ship are linked, not copied."""
    folder = tmp_path_factory.mktemp("scratch")
    source = ROOT / "src/tenfold"
    shutil.copytree(source, folder / "tenfold", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    (folder / "tenfold/assets").symlink_to(source / "assets")
    copy = folder / "tenfold"
    (copy / "vision/backbones/toy.py").write_text(BACKBONE)
    append(copy / "registry.py", LINE)
    append(copy / "vision/pretraining/losses.py", LOSS)
    append(copy / "kernels/packed.py", KERNEL)
    before_type_checking(copy / "kernels/formats.py", FORMAT)
    append(copy / "language/serving/routes.py", ROUTE)
    return folder


@pytest.fixture(scope="module")
def done(scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the jobs on the scratch copy say."""
    tests = ROOT / "tests"
    paths = [str(scratch), str(tests), str(tests / "programs")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(tests / "programs/strangers_jobs.py"), str(tmp_path_factory.mktemp("jobs"))]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    said = json.loads(result.stdout.splitlines()[-1])
    assert Path(said["source"]).is_relative_to(scratch)
    return said


def test_only_the_files_that_the_architecture_names_have_changed(scratch: Path) -> None:
    changed = set()
    for path in (scratch / "tenfold").rglob("*.py"):
        name = path.relative_to(scratch / "tenfold")
        original = ROOT / "src/tenfold" / name
        if not original.exists() or not filecmp.cmp(path, original, shallow=False):
            changed.add(str(name))
    assert changed == set.union(*CHANGES.values())
    page = (ROOT / "docs/architecture.md").read_text()
    for file in changed - {"vision/backbones/toy.py"}:
        assert file in page, f"docs/architecture.md does not name {file}"


def test_a_toy_backbone_is_trained_saved_and_loaded(done: dict[str, Any]) -> None:
    found = done["backbone"]
    assert (found["steps"], found["type"]) == (5, "Toy")
    assert found["config"]["dim"] == 16
    assert found["moved"]


def test_a_toy_loss_takes_part_in_training(done: dict[str, Any]) -> None:
    assert done["backbone"]["losses"] == ["dino_global", "koleo", "toy"]


def test_a_toy_weight_format_decodes(done: dict[str, Any]) -> None:
    found = done["format"]
    assert (found["format"], found["tokens"]) == ("toy", 8)
    assert found["maps"] > 8


def test_a_toy_route_answers(done: dict[str, Any]) -> None:
    found = done["route"]
    assert found["status"] == 200
    assert found["tokens"] == found["expected"] != []


def test_the_readme_leads_to_how_draft_trees_are_verified() -> None:
    """README is the first open; its line names the second."""
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if "rejection.py" in line]
    assert len(lines) == 1
    assert "Rejection sampling of draft tokens" in lines[0]
    assert "def verify" in (ROOT / "src/tenfold/language/drafting/rejection.py").read_text()

"""R22: the command line starts without torch, the base install imports every module, every extra works without the others."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tenfold

HEAVY = ("torch", "matplotlib", "numpy")
# HTTP routes and their bodies are ordinary module code of FastAPI, which a server imports as a whole: without the extra they
# say what to install.
SERVED = {f"tenfold.language.serving.{name}" for name in ("bodies", "routes", "prefill_server")}


def requirements(extra: str | None) -> set[str]:
    """Distributions that the base install (None) or an extra asks for, without what an extra takes from others."""
    found = set()
    for line in importlib.metadata.requires("tenfold") or []:
        mark = re.search(r"extra == ['\"](\w+)['\"]", line)
        if (mark[1] if mark else None) == extra:
            found.add(re.split(r"[ \[<>=;!~]", line, maxsplit=1)[0].lower())
    return found - {"tenfold"}


EXTRAS = sorted(set(importlib.metadata.metadata("tenfold").get_all("Provides-Extra") or []) - {"all", "dev"})


def modules_of(distributions: set[str]) -> set[str]:
    return {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if {owner.lower() for owner in owners} & distributions
    }


def absent_without(extra: str | None) -> list[str]:
    """Modules that are there only because of other extras (or, for None, of any)."""
    kept = requirements(None) | (requirements(extra) if extra else set())
    return sorted(modules_of({d for other in [*EXTRAS, "dev"] for d in requirements(other)} - kept))


def without(modules: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a Python that cannot find `modules`."""
    hook = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split('.')[0] in {modules!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
    return subprocess.run([sys.executable, "-c", hook + code], capture_output=True, text=True, check=False)


def test_help_and_the_package_load_nothing_heavy() -> None:
    code = f"import sys; from tenfold.cli import main; main(['--help']); sys.exit(any(m in sys.modules for m in {HEAVY!r}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_module_imports_when_only_the_base_install_is_there() -> None:
    names = [m.name for m in pkgutil.walk_packages(tenfold.__path__, "tenfold.") if not m.name.endswith("__main__")]
    assert set(names) > SERVED
    assert {"PIL", "cv2", "ray", "fastapi", "gguf", "transformers"} <= set(absent_without(None))
    code = f"""
import importlib
from tenfold.errors import MissingExtra
for name in {names!r}:
    try:
        importlib.import_module(name)
    except MissingExtra as error:
        assert name in {SERVED!r} and 'pip install "tenfold[serve]"' in str(error), (name, error)
"""
    result = without(absent_without(None), code)
    assert result.returncode == 0, result.stderr


JOBS = {
    "vision": """
import numpy, PIL.Image, torch
from pathlib import Path
from tenfold.cli import main
from tenfold.data.tensors import save_own
from tenfold.vision import VisionTransformer, VitConfig
torch.manual_seed(0)
model = VisionTransformer(VitConfig(patch_size=8, dim=48, depth=2, heads=2))
save_own(Path("w.safetensors"), model.state_dict(), "vit", model.config)
PIL.Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (40, 48, 3), numpy.uint8)).save("a.png")
code = main(["vision", "embed", "w.safetensors", "a.png", "--out", "f.parquet"])
import pyarrow.parquet
assert len(pyarrow.parquet.read_table("f.parquet")) == 1
sys.exit(code)
""",
    "language": """
import json
from tokenizers import Tokenizer, models, pre_tokenizers
from pathlib import Path
from tenfold.language import LLM, Llama, LlamaConfig, SamplingParams
from language.engine_models import tiny_llama
from tenfold.export.weights import convert
from tenfold.data.tensors import save_own
model = tiny_llama(vocabulary=40)
save_own(Path("own.safetensors"), model.state_dict(), "llama", model.config)
convert("own.safetensors", "hf", "hf")
vocabulary = {chr(97 + i): i for i in range(26)} | {f"x{i}": 26 + i for i in range(14)}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
tokenizer.save("hf/tokenizer.json")
(Path("hf") / "tokenizer_config.json").write_text(json.dumps({"eos_token": "x13"}))
llm = LLM("hf", drafter="ngram")
assert llm.generate([[1, 2, 3, 1, 2]], SamplingParams(max_tokens=6))[0].token_ids
""",
    "serve": """
import threading, time, urllib.request
from programs.small_server import build
from tenfold.serve.limits import Limits
import asyncio
app = build(Limits())
async def ask(path):
    sent = []
    async def receive(): return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message): sent.append(message)
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [], "http_version": "1.1", "scheme": "http", "client": ("a", 1), "server": ("b", 2), "root_path": ""}
    await app(scope, receive, send)
    return sent[0]["status"]
assert asyncio.run(ask("/health")) == 200
""",
    "cluster": """
import os
from pathlib import Path
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
import shard_functions
from tenfold.shards import map_shards
result = map_shards(shard_functions.draw, ["a", "b"], Path("out"), settings={}, executor="ray", workers=1)
assert result.done == 2
""",
    "track": """
from pathlib import Path
from tenfold.engine.metrics import Metrics
metrics = Metrics(Path("run"), 2, tensorboard=True)
metrics.log(1, {"loss": 1.0})
metrics.close()
assert list(Path("run/tensorboard").iterdir())
""",
}


def test_every_extra_has_a_job() -> None:
    assert set(JOBS) == set(EXTRAS)


@pytest.mark.parametrize("extra", sorted(JOBS))
def test_every_extra_works_without_the_others(extra: str, tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(tests / "programs")]
    code = f"import os; os.chdir({str(tmp_path)!r}); sys.path[:0] = {paths!r}\n{JOBS[extra]}"
    result = without(absent_without(extra), code)
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_missing_extra_prints_the_line_to_type(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    words = ["vision", "embed", f"{tmp_path}/none.safetensors", str(picture), "--out", f"{tmp_path}/o.parquet"]
    result = without(["PIL"], f"from tenfold.cli import main\nsys.exit(main({words!r}))")
    assert result.returncode == 2, result.stderr
    assert 'pip install "tenfold[vision]"' in result.stderr

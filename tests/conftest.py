"""Shared by all tests: shape checks on every annotated function, the test data, and that CI skips nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [
    str(Path(__file__).parent),
    str(Path(__file__).parent / "programs"),
]  # also what worker processes import

# A shell starts what goes to the background with SIGINT ignored, and processes that tests start inherit that: Ctrl-C, which
# they test, would do nothing.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not os.environ.get("JAXTYPING_DISABLE"):
    from jaxtyping import install_import_hook

    install_import_hook("tenfold", "typecheck.check")

ROOT = Path(__file__).resolve().parents[1]


def _data_root() -> Path | None:
    for candidate in (os.environ.get("TENFOLD_TEST_DATA"), ROOT / "../shared/data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate).resolve()
    return None


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test data (`TENFOLD_TEST_DATA`, or shared/data beside the checkout)."""
    from needed import absent

    root = _data_root()
    if root is None:
        absent("the test data folder (TENFOLD_TEST_DATA)")
    assert root is not None
    return root


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The sample target: SmolLM2-135M-Instruct as GGUF. A test that takes it carries the mark `samples`."""
    from needed import absent
    from tenfold.data.samples import fetch
    from tenfold.errors import TenfoldError

    try:
        return fetch("smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    except TenfoldError as error:
        absent(f"the smollm2 sample ({error})")
        raise


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=f"{MACHINE} has no CUDA"))


MACHINE = "this machine"
"""How the reason of a skip begins that CI allows: what the machine lacks, or has too much of."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """In CI a skip for any other reason than what the machine lacks is a failure."""
    report = yield
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(MACHINE):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI for a reason that is not the machine's: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The last lines of a run: what was skipped and why."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    terminalreporter.section(f"skipped: {sum(map(len, reasons.values()))}")
    for reason, names in sorted(reasons.items()):
        files = sorted({name.partition("::")[0] for name in names})
        terminalreporter.line(f"{len(names)} for {reason}: {', '.join(files)}")

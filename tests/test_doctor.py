"""`tenfold doctor` reads extras from the package's metadata, and says of each unit of the machine what is faster with it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch

from tenfold import doctor
from tenfold.commands import Doctor
from tenfold.commands import doctor as command
from tenfold.kernels import machine


@pytest.fixture(scope="module")
def findings() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine()}


def test_every_extra_of_the_package_is_listed_with_all_its_requirements() -> None:
    """pyproject.toml is the other witness: what it names is what the metadata of an install holds."""
    with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["optional-dependencies"]
    wanted = {name: sorted(lines) for name, lines in declared.items() if name not in ("all", "dev")}
    assert {name: sorted(lines) for name, lines in doctor.extras().items()} == wanted


def test_each_extra_has_a_finding_that_agrees_with_what_is_installed(findings: dict[str, doctor.Finding]) -> None:
    for name, requirements in doctor.extras().items():
        finding = findings[f"extra [{name}]"]
        assert finding.ok == (not any(map(doctor.lacking, requirements)))
        assert bool(finding.todo) == (not finding.ok)


def test_a_requirement_is_met_absent_or_too_old() -> None:
    version = importlib.metadata.version("numpy")
    major = int(version.split(".")[0])
    assert doctor.lacking(f"numpy>={version}") == ""
    assert doctor.lacking("numpy") == ""
    assert doctor.lacking("numpy[some]>=1.0") == ""
    assert doctor.lacking(f"numpy>={major + 1}") == f"numpy {version} is older than {major + 1}"
    assert doctor.lacking("no-such-package>=1") == "no-such-package is absent"


def test_an_extra_that_only_joins_others_is_left_out() -> None:
    found = {"a": ("x>=1", "y"), "b": ("y", "z"), "all": ("x>=1", "y", "z"), "more": ("x>=1", "y", "w"), "none": ()}
    assert doctor.own_requirements(found) == {"a": ("x>=1", "y"), "b": ("y", "z"), "more": ("w",)}


def test_an_absent_package_is_named_with_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "extras", lambda: {"vision": ("pillow>=10.3", "no-such-package>=1")})
    finding = next(f for f in doctor.examine() if f.what == "extra [vision]")
    assert not finding.ok
    assert finding.value == "no-such-package is absent"
    assert finding.todo == 'pip install "tenfold[vision]"'


def test_the_machine_is_described_as_the_one_place_describes_it(findings: dict[str, doctor.Finding]) -> None:
    assert findings["vector lanes"].value.startswith(machine.simd())
    assert (findings["bf16 units"].value == "present") == (machine.bf16_refusal() is None)
    assert (findings["AMX tiles"].value == "present") == machine.amx()
    assert findings["C++ compiler"].ok == (machine.find_compiler() is not None)
    assert findings["CUDA"].value.startswith("none") == (not torch.cuda.is_available())
    assert str(machine.cache_folder()) in findings["cache"].value
    for what in ("vector lanes", "bf16 units", "AMX tiles", "C++ compiler", "CUDA", "Ray"):
        assert findings[what].faster, what


def test_without_a_compiler_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    finding = next(f for f in doctor.examine() if f.what == "C++ compiler")
    assert not finding.ok
    assert "g++" in finding.todo


def test_a_cache_that_cannot_be_made_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "file" / "cache"))
    finding = next(f for f in doctor.examine() if f.what == "cache")
    assert not finding.ok
    assert "TENFOLD_CACHE" in finding.todo


def test_the_command_prints_what_is_faster_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(Doctor()) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ok +CUDA|^MISS +CUDA", printed, re.MULTILINE)
    assert printed.count("faster with it: ") >= 6
    assert command(Doctor(json=True)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"ok", "what", "value", "todo", "faster"} == set(rows[0])

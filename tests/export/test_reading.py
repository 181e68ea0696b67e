"""Weights files from strangers: nothing in a hostile one runs, each is a typed error in under 2 s and 200 MiB, and names
and folders are found."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tenfold.errors import WeightsError
from tenfold.export.reading import open_source, read_file, read_json, shipped, weights_path


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def evil_archive(folder: Path) -> Path:
    torch.save({"a": torch.ones(2), "b": Touch(folder / "touched")}, folder / "evil.pt")
    return folder / "evil.pt"


def evil_legacy(folder: Path) -> Path:
    torch.save({"b": Touch(folder / "touched")}, folder / "old.pth", _use_new_zipfile_serialization=False)
    return folder / "old.pth"


def evil_pickle(folder: Path) -> Path:
    (folder / "bare.bin").write_bytes(pickle.dumps(Touch(folder / "touched")))
    return folder / "bare.bin"


def bomb(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", pickle.dumps({}))
        with archive.open("bomb/data/0", "w", force_zip64=True) as member:
            for _ in range(75):  # 300 MiB out of 300 KiB
                member.write(bytes(4 << 20))
    return folder / "bomb.pt"


def stretched_view(folder: Path) -> Path:
    torch.save({"a": torch.ones(1).expand(1 << 40)}, folder / "view.pt")
    return folder / "view.pt"


def test_hostile_torch_files_run_nothing_and_cost_nothing(tmp_path: Path) -> None:
    paths = [make(tmp_path) for make in (evil_archive, evil_legacy, evil_pickle, bomb, stretched_view)]
    code = textwrap.dedent("""
        import resource, sys, time
        from pathlib import Path
        import torch
        from tenfold.errors import WeightsError
        from tenfold.export.reading import open_source
        warm, *paths = sys.argv[1:]
        torch.save({"a": torch.ones(2)}, warm)
        open_source(warm)
        for path in paths:
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
            try:
                open_source(path)
                sys.exit(f"{path} was loaded")
            except WeightsError as error:
                assert Path(path).name in str(error), error
            assert time.perf_counter() - start < 2, path
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10, path
        """)
    words = [sys.executable, "-c", code, str(tmp_path / "warm.pt"), *map(str, paths)]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "touched").exists()


def test_the_trap_works_when_pickle_is_trusted(tmp_path: Path) -> None:
    """Without this the tests above could pass because the trap is broken."""
    torch.load(evil_archive(tmp_path), weights_only=False)
    assert (tmp_path / "touched").is_dir()


def test_a_refused_pickle_names_what_it_asked_for(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"asks to call \S*mkdir.*Nothing was run"):
        open_source(evil_archive(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_cut_short_is_refused(share: float, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    tensors = {f"t{i}": torch.randn(500) for i in range(8)}
    if ending == "pth":
        torch.save(tensors, path)
    else:
        from safetensors.torch import save_file

        save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match=r"x\."):
        open_source(path)


@pytest.mark.parametrize("content", [b"[1]", b"{", b'{"a":' * 50_000, b""])
def test_a_damaged_config_json_is_refused(content: bytes, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        open_source(tmp_path)


def test_torch_files_give_their_tensors_also_from_under_a_wrapper(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "turned": torch.randn(2, 5).t(), "half": torch.ones(4).bfloat16()}
    for name, content in {
        "plain.pth": tensors,
        "checkpoint.pt": {"epoch": 3, "state_dict": tensors},
        "student.bin": {"model": {"b": torch.ones(1)}, "teacher": tensors},  # the teacher comes first
    }.items():
        torch.save(content, tmp_path / name)
        found, metadata = read_file(tmp_path / name)
        assert metadata == {}
        assert found.keys() == tensors.keys()
        assert all(found[key].equal(value) and found[key].dtype == value.dtype for key, value in tensors.items())


def test_what_is_no_table_of_tensors_says_what_it_is(tmp_path: Path) -> None:
    for content, said in (([torch.ones(2)], "holds a list"), ({}, "holds a dict"), ({"a": 1.5}, "not tensors: a")):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(WeightsError, match=said):
            read_file(tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"the ending says the format; known are \.safetensors"):
        read_file(tmp_path / "a.onnx")


def test_weights_are_found_by_their_path_and_then_by_the_name_they_ship_under(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shipped()
    for name in shipped():
        assert weights_path(name).is_file()
        assert weights_path(name).with_suffix(".md").is_file()
    monkeypatch.chdir(tmp_path)
    (tmp_path / shipped()[0]).mkdir()
    assert weights_path(shipped()[0]) == Path(shipped()[0])
    with pytest.raises(WeightsError, match=f"Weights that ship with tenfold: .*{shipped()[-1]}"):
        weights_path("no-such-weights")


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(WeightsError, match=r"no weights in it .*It holds: notes\.txt"):
        open_source(tmp_path)


def test_json_beside_weights_is_an_object_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, null]}')
    assert read_json(path) == {"a": [1, None]}
    with path.open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(WeightsError, match="16,777,217 bytes of JSON; at most 16,777,216"):
        read_json(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_json(tmp_path / "absent.json")

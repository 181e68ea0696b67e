"""File names of shards: none clashes or leaves the folder, and only our own temporaries are removed."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import UsageError
from tenfold.shards.journal import NAME
from tenfold.shards.shard_names import LONGEST, check_names, clear_temporaries, refuse_strangers


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a"],
        ["../a"],
        ["/a"],
        [""],
        ["a//b"],
        ["."],
        [".hidden"],
        ["a/.."],
        ["a", "a/b"],
        [NAME],
        ["x" * 201],
        ["a\0b"],
    ],
)
def test_names_that_clash_or_leave_the_folder_are_refused(names: list[str]) -> None:
    with pytest.raises(UsageError, match="name"):
        check_names(names, str)


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"shard name 3: allowed is a relative file name"):
        check_names([3], lambda item: item)  # type: ignore[arg-type, return-value]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab./\0é", min_size=1, max_size=5), max_size=5))
def test_names_that_are_allowed_lie_inside_and_do_not_cover_each_other(names: list[str]) -> None:
    try:
        named = check_names(names, str)
    except UsageError:
        return
    assert list(named.items()) == [(name, name) for name in names]  # in order
    places = [Path("/out") / name for name in names]
    assert len(set(places)) == len(names)
    for place in places:
        assert place.resolve().is_relative_to("/out")
        assert place.resolve() == place != Path("/out")
        assert not any(other.is_relative_to(place) for other in places if other != place)
        assert all(len(part.encode()) <= LONGEST for part in PurePosixPath(place).parts)


def test_nothing_without_a_journal_is_ours_to_replace(tmp_path: Path) -> None:
    refuse_strangers(tmp_path, ["a", "deep/b"])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/b").write_text("precious")
    with pytest.raises(UsageError, match=r"deep/b exists and no journal says who made it"):
        refuse_strangers(tmp_path, ["a", "deep/b"])


def test_only_temporaries_of_our_own_names_are_removed(tmp_path: Path) -> None:
    ours = [".tmp-1-a.txt", f".tmp-22-{NAME}", "deep/.tmp-3-b", ".tmp-4-folder"]
    others = ["a.txt", ".tmp-1-other", "deep/.tmp-3-a.txt", ".tmp-x-a.txt", "tmp-1-a.txt", "elsewhere/.tmp-3-b"]
    for name in (*ours[:3], *others):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    (tmp_path / ours[3] / "inner").mkdir(parents=True)
    clear_temporaries(tmp_path, ["a.txt", "deep/b", "folder", "absent/c"])
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file() or p.name.startswith("."))
    assert left == sorted(others)

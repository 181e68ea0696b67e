"""Names from disks and data sets: as valid text, and as files that never leave their folder and never exceed 255 bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.data.file_names import output_name, readable_name


def test_a_name_that_is_not_utf8_becomes_text_with_its_bytes() -> None:
    assert readable_name(Path("photos/caf\udce9.jpg")) == r"photos/caf\xe9.jpg"
    assert readable_name("täglich.jpg") == "täglich.jpg"


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("cat", "0007-cat.png"),
        ("x/../../../escaped_0", "0007-escaped_0.png"),
        ("..\\..\\up", "0007-up.png"),
        ("/etc/passwd", "0007-passwd.png"),
        ("two\nlines", "0007-two_lines.png"),
        ("caf\udce9", "0007-caf?.png"),
    ],
)
def test_an_output_keeps_the_last_part_of_its_name(name: str, made: str) -> None:
    assert output_name(7, name, ".png") == made


@given(st.text(st.characters(), max_size=400), st.integers(0, 99_999))
def test_every_name_makes_one_file_in_its_folder(name: str, number: int) -> None:
    made = output_name(number, name, ".png")
    assert Path(made).name == made
    assert len(made.encode()) <= 200
    assert made.endswith(".png")
    assert made.isprintable() or not any(ord(c) < 32 for c in made)
    readable_name(name).encode()

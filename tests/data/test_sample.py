"""Class names become labels that index the sorted classes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.data.sample import by_name


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("abé", max_size=2), min_size=1, max_size=12))
def test_every_label_leads_back_to_its_name_and_every_class_is_used(names: list[str]) -> None:
    labels, classes = by_name(names)
    assert [classes[label] for label in labels] == names
    assert list(classes) == sorted(set(names))
    assert labels.dtype.kind == "i"


def test_labels_do_not_depend_on_the_order_of_the_rows() -> None:
    labels, classes = by_name(["dog", "cat", "dog"])
    turned, same = by_name(["dog", "dog", "cat"])
    assert classes == same == ("cat", "dog")
    assert labels.tolist() == [1, 0, 1]
    assert turned.tolist() == [1, 1, 0]

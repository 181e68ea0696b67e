"""Registries: every name loads, an unknown one names the nearest, nothing is imported before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import UsageError
from tenfold.registry import Registry, recipes

NAMES = ["dinov3-mini", "dinov2", "eagle3-llama", "wav2vec2-base"]


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = Registry("recipe")
    for name in NAMES:
        registry.add(name, "json:dumps", f"summary of {name}")
    return registry


def test_a_name_loads_its_target_and_order_is_kept(registry: Registry) -> None:
    import json

    assert registry.load("dinov3-mini") is json.dumps
    assert [entry.name for entry in registry] == NAMES
    assert "dinov3-mini" in registry
    assert "dinov3" not in registry


@given(st.sampled_from(NAMES), st.data())
def test_a_name_with_one_letter_wrong_finds_its_own(name: str, data: st.DataObject) -> None:
    registry = Registry("recipe")
    for known in NAMES:
        registry.add(known, "json:dumps")
    place = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:place] + "~" + name[place + 1 :]
    with pytest.raises(UsageError) as raised:
        registry.load(wrong)
    assert f"unknown recipe {wrong!r}. Did you mean {name!r}?" in str(raised.value)
    assert all(known in str(raised.value) for known in NAMES)


def test_a_name_like_none_gets_the_list_alone(registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"unknown recipe 'zzz'\. Allowed:"):
        registry.entry("zzz")
    with pytest.raises(UsageError, match=r"Allowed: \(none\)"):
        Registry("part").load("zzz")


def test_two_of_one_name_and_a_target_that_is_none_are_refused(registry: Registry) -> None:
    with pytest.raises(AssertionError, match="registered twice"):
        registry.add("dinov3-mini", "json:dumps")
    with pytest.raises(AssertionError, match="module:attribute"):
        registry.add("other", "json.dumps")


def test_the_recipes_are_listed_without_importing_a_wing() -> None:
    code = "import sys, tenfold.registry as r; assert list(r.recipes); sys.exit('tenfold.vision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [entry.name for entry in recipes])
def test_every_recipe_loads_and_is_documented(name: str) -> None:
    from tenfold.engine.recipe import Recipe

    function = recipes.load(name)
    assert isinstance(function(), Recipe)
    assert function.__doc__
    assert recipes.entry(name).summary


def test_an_alias_loads_the_new_name_says_it_and_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = Registry("recipe")
    names.add("new", "tenfold.registry:Registry")
    names.alias("old", "new")
    assert names.load("old") is names.load("new") is Registry
    assert [entry.name for entry in names] == ["new"]
    assert "old" in names
    assert capsys.readouterr().err == ""
    assert (names.current("old"), names.current("new")) == ("new", "new")
    assert capsys.readouterr().err == "tenfold: the recipe old is called new now.\n"

"""config.json of a drafter in three layouts: what it says comes back, what could mean two things is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from language.drafter_folders import edited, folder, loaded, same
from language.drafting_models import AUX, saved, tiny_drafter, tiny_target
from tenfold.errors import WeightsError
from tenfold.export.weights import convert
from tenfold.language.drafting.config import layout_of, write_config
from tenfold.language.drafting.weights import state_of


@pytest.mark.parametrize("layout", ["sglang", "speculators", "eagle"])
def test_a_layout_is_recognised_by_what_is_written_for_it(layout: Any) -> None:
    drafter = tiny_drafter(tiny_target())
    values = write_config(drafter.config, layout, state_of(drafter).state, Path("here"))
    assert layout_of(values) == layout
    assert json.loads(json.dumps(values)) == values


@pytest.mark.parametrize(
    ("changes", "layout", "message"),
    [
        ({"method": "eagle1"}, "sglang", "layout eagle only"),
        ({"aux_layers": (0, 3, 5)}, "sglang", "input of layer 0 is not the output of a layer"),
        ({"norm_output": True}, "eagle", "no norm_output"),
        ({"fc_norm": True, "norm_before_residual": True}, "eagle", "no norm_before_residual, fc_norm"),
    ],
)
def test_what_a_layout_has_no_word_for_is_refused(changes: dict[str, Any], layout: Any, message: str) -> None:
    drafter = tiny_drafter(tiny_target(), **changes)
    with pytest.raises(WeightsError, match=message):
        write_config(drafter.config, layout, state_of(drafter).state, Path("here"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "cannot be used"),
        ({"num_attention_heads": "many"}, "cannot be used"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "'yarn' is not known; known are default, linear, llama3",
        ),
    ],
)
def test_a_damaged_or_unknown_entry_is_one_message(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    there = edited(folder(tmp_path, tiny_drafter(tiny_target()), "sglang"), **changes)
    with pytest.raises(WeightsError, match=message):
        loaded(there)


def test_pitfall_1_absent_rope_theta_is_ten_thousand(tmp_path: Path) -> None:
    there = edited(folder(tmp_path, tiny_drafter(tiny_target(), rope_theta=77.0), "sglang"), rope_theta=None)
    assert loaded(there).config.rope_theta == 10000.0


def test_pitfall_2_max_position_embeddings_bounds_nothing(tmp_path: Path) -> None:
    there = edited(folder(tmp_path, tiny_drafter(tiny_target()), "sglang"), max_position_embeddings=16)
    drafter = loaded(there)
    with torch.no_grad():
        hidden, logits = drafter.step(
            torch.randn(1, 3, 32), torch.randn(1, 3, 32), torch.tensor([40_000, 40_001, 40_002])
        )
    assert hidden.isfinite().all()
    assert logits.shape == (1, 3, 48)


def test_pitfall_5_feature_layers_are_outputs_for_one_and_inputs_for_the_other(tmp_path: Path) -> None:
    drafter = tiny_drafter(tiny_target(), aux_layers=(2, 3, 4))
    sglang, speculators = folder(tmp_path, drafter, "sglang"), tmp_path / "speculators"
    convert(sglang, speculators, to="speculators")
    key = "eagle_aux_hidden_state_layer_ids"
    assert json.loads((sglang / "config.json").read_text())["eagle_config"][key] == [1, 2, 3]
    assert json.loads((speculators / "config.json").read_text())[key] == [2, 3, 4]
    assert loaded(speculators).config.aux_layers == loaded(sglang).config.aux_layers == (2, 3, 4)


def test_pitfall_5_an_ambiguous_source_is_refused_until_it_is_told(tmp_path: Path) -> None:
    drafter = tiny_drafter(tiny_target())
    there = folder(tmp_path, drafter, "eagle")
    with pytest.raises(WeightsError, match="--aux-layers"):
        convert(there, tmp_path / "out", to="sglang")  # the file does not say
    assert not (tmp_path / "out").exists()
    told = convert(there, tmp_path / "out", to="sglang", aux_layers=AUX)
    assert loaded(told).config.aux_layers == AUX
    edited(there, eagle_aux_hidden_state_layer_ids=[1, 3, 5])
    with pytest.raises(WeightsError, match="inputs or by outputs"):
        loaded(there)
    assert loaded(there, aux_layers=(1, 3, 5)).config.aux_layers == (1, 3, 5)


def test_pitfall_6_norm_output_is_not_believed_without_knowing_who_wrote_it(tmp_path: Path) -> None:
    drafter = tiny_drafter(tiny_target(), norm_output=True)
    there = folder(tmp_path, drafter, "sglang")
    assert loaded(there).config.norm_output is True
    foreign = edited(there, tenfold=None)
    with pytest.raises(WeightsError, match="SpecForge"):
        loaded(foreign)
    assert loaded(foreign, norm_output=True).config.norm_output is True
    assert loaded(edited(foreign, norm_output=None)).config.norm_output is False


def test_a_layout_that_cannot_say_something_is_refused(tmp_path: Path) -> None:
    own = saved(tiny_drafter(tiny_target(), norm_before_fc=True), tmp_path / "own.safetensors")
    with pytest.raises(WeightsError, match="norm_before_fc"):
        convert(own, tmp_path / "out", to="sglang")
    same(loaded(convert(own, tmp_path / "out", to="speculators")), loaded(own))

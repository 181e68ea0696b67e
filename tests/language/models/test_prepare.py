"""Every number format computes what its weights say; Q4_1 is taken over as it is stored; what cannot be says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tenfold
from gguf_files import write
from language.engine_models import tiny_llama
from tenfold.data.tensors import save_own
from tenfold.errors import UsageError, WeightsError
from tenfold.export.weights import Weights, convert
from tenfold.kernels import decode
from tenfold.kernels.formats import Weight, quickest, refusal
from tenfold.kernels.packed import Int8Linear
from tenfold.language.drafting.weights import fingerprint
from tenfold.language.models.prepare import format_on, moved, open_target, pack_linears, prepare, weight_bytes

needs_bf16 = pytest.mark.skipif(quickest() != "bf16", reason="this machine has no fast bf16")


@pytest.mark.parametrize("form", ["fp32", pytest.param("bf16", marks=needs_bf16), "int8", "int4"])
@torch.inference_mode()
def test_a_prepared_model_gives_the_models_logits(form: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny_llama(64, dim=64, hidden=96), quantised=True)
    target = open_target(path, form)
    tokens = torch.randint(0, 64, (2, 11))
    ours, exact = target.model(tokens).logits.float(), tenfold.load(path)(tokens).logits
    # This model amplifies rounding more than a trained one: another model's logits would be off by 1.4 of their norm.
    most = {"fp32": 1e-5, "bf16": 0.08, "int8": 0.15, "int4": 0.08}[form]
    assert (ours - exact).norm() <= most * exact.norm()
    assert target.form == form
    assert weight_bytes(target.model) > 0


@torch.inference_mode()
def test_of_a_folder_only_what_a_fingerprint_needs_stays_in_memory(tmp_path: Path) -> None:
    plain = tiny_llama(64, dim=64, hidden=96)
    save_own(tmp_path / "m.safetensors", plain.state_dict(), "llama", plain.config)
    folder = convert(tmp_path / "m.safetensors", tmp_path / "hf", to="hf")
    target = open_target(folder, "fp32")
    tokens = torch.randint(0, 64, (2, 11))
    assert torch.allclose(target.model(tokens).logits, plain(tokens).logits, atol=1e-4)
    assert fingerprint(target.source) == fingerprint(plain)
    assert not [n for n in target.source.state if n.startswith("blocks.1.") and "norm" not in n]


def test_a_format_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    plain = write(tmp_path / "m.gguf", tiny_llama(64, dim=64, hidden=96))
    with pytest.raises(UsageError, match=r"stored in Q4_1 without a bias, and are F32"):
        open_target(plain, "int4")
    with pytest.raises(UsageError, match="are not in a GGUF"):
        prepare(Weights(tiny_llama().config, tiny_llama().state_dict()), "int4")
    with pytest.raises(WeightsError, match="no such file"):
        open_target(tmp_path / "nowhere.gguf")
    for changes in (
        {"activation": "relu2"},
        {"memory_layers": (1,), "memory_side": 8, "memory_heads": 1, "memory_top_k": 4, "memory_key_dim": 8},
    ):
        odd = tiny_llama(**changes)
        save_own(tmp_path / "odd.safetensors", odd.state_dict(), "llama", odd.config)
        with pytest.raises(
            WeightsError, match=r"has (memory layers|the activation relu2); the engine decodes plain Llamas"
        ):
            open_target(tmp_path / "odd.safetensors")
        (tmp_path / "odd.safetensors").unlink()
    assert "not made from other weights" in str(refusal("int4", Weight.of(torch.ones(2, 2))))
    auto = open_target(plain)
    assert auto.form == quickest()


def test_packing_a_module_replaces_its_linear_maps_and_their_bytes_are_counted() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 8, bias=False))
    x = torch.randn(3, 32)
    expected = module(x).detach()
    packed = pack_linears(module, "int8")
    assert sum(isinstance(m, Int8Linear) for m in packed.modules()) == 2
    scales = 2 * (64 + 8 * 2) if decode.refusal() is None else 0
    assert weight_bytes(packed) == 32 * 64 + 64 * 8 + scales
    assert (packed(x.bfloat16()).float() - expected).abs().max() <= 0.05 * expected.abs().max()


def test_a_format_of_cpus_is_refused_on_a_gpu() -> None:
    with pytest.raises(UsageError, match=r"no kernel for cuda\. Allowed there: auto, fp32, bf16"):
        format_on("int4", torch.device("cuda"))
    assert format_on("auto", torch.device("cuda")) == "bf16"


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_moved_to_a_device_is_the_model_of_its_file(tied: bool) -> None:
    model, tokens = tiny_llama(tied=tied), torch.arange(12)[None]
    there = moved(Weights(model.config, model.state_dict()), "fp32", torch.device("cpu"))
    assert torch.equal(there(tokens).logits, model(tokens).logits)
    maps = sum(p.nbytes for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name)
    assert weight_bytes(there) == maps + (model.embedding.weight.nbytes if tied else 0)

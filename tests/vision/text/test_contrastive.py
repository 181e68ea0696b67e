"""The chunked contrastive loss is the plain one, value and gradient, on one rank and on two, and keeps no square of logits."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import jobs  # its server has torch loaded
from tenfold.vision.text.contrastive import contrastive_loss

from contrastive_ranks import rank_of, whole  # isort: skip


def plain(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """The whole square of logits, in one process."""
    logits = scale * images @ texts.T
    own = torch.arange(len(images))
    return 0.5 * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own))


def expected() -> dict[str, Tensor]:
    images, texts, log_scale = whole(torch.float64)
    loss = plain(F.normalize(images, dim=1), F.normalize(texts, dim=1), log_scale.exp())
    loss.backward()
    assert images.grad is not None
    assert texts.grad is not None
    assert log_scale.grad is not None
    return {"loss": loss.detach(), "images": images.grad, "texts": texts.grad, "scale": log_scale.grad}


@pytest.mark.parametrize("chunk", [1, 7, 24, 1000])
def test_any_chunks_give_the_plain_loss(chunk: int) -> None:
    images, texts, log_scale = whole(torch.float64)
    contrastive_loss(F.normalize(images, dim=1), F.normalize(texts, dim=1), log_scale.exp(), chunk=chunk).backward()
    reference = expected()
    for name, tensor in (("images", images), ("texts", texts), ("scale", log_scale)):
        torch.testing.assert_close(tensor.grad, reference[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_ranks_give_the_plain_loss_of_one(dtype: torch.dtype, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    processes = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(context.Process(target=rank_of, args=(place, tmp_path, dtype)))
        processes[-1].start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0, jobs.PROGRAMS
    two, one = torch.load(tmp_path / "two.pt"), expected()
    for name, value in one.items():
        torch.testing.assert_close(two[name].double(), value, rtol=1e-6, atol=1e-7 if dtype == torch.float32 else 1e-12)


def test_a_large_scale_neither_overflows_nor_loses_the_small_terms() -> None:
    images, *_ = whole(torch.float32)
    unit = F.normalize(images, dim=1)
    loss = contrastive_loss(unit, unit, torch.tensor(100.0), chunk=5)
    wide = unit.double()
    assert float(loss) == pytest.approx(float(plain(wide, wide, torch.tensor(100.0))), abs=1e-5)
    far = contrastive_loss(unit, -unit, torch.tensor(100.0), chunk=5)
    assert torch.isfinite(far)
    assert float(far) == pytest.approx(float(plain(wide, -wide, torch.tensor(100.0))), rel=1e-5)


def test_what_is_kept_for_the_backward_grows_with_the_pairs_and_not_with_their_square() -> None:
    kept = {}
    for pairs in (256, 1024):
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        images, texts = (F.normalize(torch.randn(pairs, 8), dim=1).requires_grad_() for _ in range(2))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = contrastive_loss(images, texts, torch.tensor(10.0, requires_grad=True))
        kept[pairs] = sum(sizes.values())
        loss.backward()
    assert kept[1024] <= 4.2 * kept[256]
    assert kept[1024] < 1024 * 1024 * 4 / 8  # the square alone would be 4 MiB

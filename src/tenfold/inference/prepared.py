"""Transformer blocks prepared for CPU inference: same values, scratch memory reused, residual sums inside the products.

    workspace = Workspace()
    blocks = [PackedBlock(block, workspace) for block in model.blocks]          or HalfBlock(block), in bf16
    x = blocks[0](x, rotation)                     overwrites x

Three identities, none of which changes a value by more than rounding:
    LayerScale       s * (W y + b) = (s W) y + s b, and the residual sum is the product's own accumulation
    rotary angles    the columns of q and k may be permuted alike, so the pairs (i, i + D/2) are put side by side and
                     turning them is one complex product in place
    separate q, k, v are one product into one buffer, and attention reads it through strides

    B batch   N tokens   D width   M = B N
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tenfold.errors import UsageError
from tenfold.kernels.linear import PackedLinear, Workspace
from tenfold.kernels.machine import bf16_refusal
from tenfold.kernels.packed import ReorderedLinear
from tenfold.nn.attention import attend
from tenfold.nn.block import Block
from tenfold.nn.ffn import GeluFFN, SwiGLUFFN
from tenfold.nn.rope import Rotation

PLAIN_BELOW_BF16 = 1024  # tokens; torch's fused kernel is slower in bf16 than three products up to about here


class PackedBlock(nn.Module):
    """A pre-norm block whose forward pass overwrites its input. Blocks that run one after the other share a workspace.

    Raises UsageError, with the reason, for a block that has no such form.
    """

    def __init__(self, block: Block, workspace: Workspace) -> None:
        super().__init__()
        first, down = _feed_forward(block)
        self.config, self.workspace, self.gated = block.config.attention, workspace, isinstance(block.ffn, SwiGLUFFN)
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv = PackedLinear(*_side_by_side(block))
        self.out = PackedLinear(block.attention.out.weight, block.attention.out.bias, block.scale1)
        self.first = PackedLinear(first.weight, first.bias)
        self.down = PackedLinear(down.weight, down.bias, block.scale2)

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None = None, mask: Tensor | None = None
    ) -> Float[Tensor, "b n d"]:
        c, take = self.config, self.workspace.take
        b, n, dim = x.shape
        rows = x.view(b * n, dim)
        heads = c.heads + 2 * c.groups
        flat = self.qkv.into(self.norm1(rows), take("qkv", b * n, heads * c.width))
        split = flat.view(b, n, heads, c.width)
        if rotation is not None:
            turns = rotation.turns
            pairs = split[:, n - len(turns) :, : c.heads + c.groups].unflatten(-1, (-1, 2))
            torch.view_as_complex(pairs).mul_(turns[:, None])
        q, k, v = split.transpose(1, 2).split([c.heads, c.groups, c.groups], dim=1)
        y = attend(q, k, v, mask, causal=c.causal and mask is None)
        self.out.add_to(rows, y.transpose(1, 2).reshape(b * n, -1))
        hidden = self.first.into(self.norm2(rows), take("hidden", b * n, self.first.weight.shape[1]))
        if self.gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate, inplace=True).mul_(up)
        else:
            torch.ops.aten.gelu_(hidden)
        self.down.add_to(rows, hidden)
        return x


class HalfBlock(nn.Module):
    """The same for bf16 on a CPU with units for it: weights in oneDNN's order, the residual sum in the product.

    x is bf16. Raises UsageError, with the reason, for a block that has no such form or a CPU without such units.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        first, down = _feed_forward(block)
        self.config, self.gated = block.config.attention, isinstance(block.ffn, SwiGLUFFN)
        self.norm1, self.norm2 = (copy.deepcopy(norm).bfloat16() for norm in (block.norm1, block.norm2))
        if reason := bf16_refusal():
            raise UsageError(f"weights in bf16: {reason}.")
        self.qkv = ReorderedLinear(*_side_by_side(block))
        self.out = _summing(block.attention.out, block.scale1)
        self.first = ReorderedLinear(first.weight.detach(), first.bias)
        self.down = _summing(down, block.scale2)

    @torch.no_grad()
    def forward(
        self, x: Float[Tensor, "b n d"], rotation: Rotation | None = None, mask: Tensor | None = None
    ) -> Float[Tensor, "b n d"]:
        c = self.config
        b, n, dim = x.shape
        rows = x.reshape(b * n, dim)
        split = self.qkv(self.norm1(rows)).view(b, n, c.heads + 2 * c.groups, c.width)
        if rotation is not None:
            turns = rotation.turns
            part = split[:, n - len(turns) :, : c.heads + c.groups]
            pairs = torch.view_as_complex(part.float().unflatten(-1, (-1, 2)))
            part.copy_(torch.view_as_real(pairs.mul_(turns[:, None])).flatten(-2))
        q, k, v = split.transpose(1, 2).split([c.heads, c.groups, c.groups], dim=1)
        if mask is None and not c.causal and n <= PLAIN_BELOW_BF16:
            if c.groups != c.heads:
                k, v = (t.repeat_interleave(c.heads // c.groups, 1) for t in (k, v))
            y = (q @ k.transpose(-1, -2)).mul_(c.width**-0.5).softmax(-1) @ v
        else:
            y = attend(q, k, v, mask, causal=c.causal and mask is None)
        rows = self.out(y.transpose(1, 2).reshape(b * n, -1), rows)
        hidden = self.first(self.norm2(rows))
        if self.gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * up
        else:
            torch.ops.aten.gelu_(hidden)
        return self.down(hidden, rows).view(b, n, dim)


def _summing(layer: nn.Linear, gain: Tensor | None) -> ReorderedLinear:
    """gain * (x W^T + b), to be added to a residual."""
    weight = layer.weight.detach().float()
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
    if gain is not None:
        weight, bias = weight * gain.detach().float()[:, None], bias * gain.detach().float()
    return ReorderedLinear(weight, bias)


def _feed_forward(block: Block) -> tuple[nn.Linear, nn.Linear]:
    """First and last map of a block's feed-forward network. Raises UsageError for one that cannot be packed."""
    if not block.config.norm_first:
        raise UsageError("a post-norm block cannot be packed: its residual sum is not the last operation.")
    ffn = block.ffn
    if not isinstance(ffn, GeluFFN | SwiGLUFFN):
        raise UsageError(f"{type(ffn).__name__} cannot be packed: known are GeluFFN and SwiGLUFFN.")
    return ffn.gate_up if isinstance(ffn, SwiGLUFFN) else ffn.up, ffn.down


def _side_by_side(block: Block) -> tuple[Tensor, Tensor]:
    """Weight and bias of q, k, v with the pairs that a rotation turns next to each other, a masked bias as zero."""
    c = block.config.attention
    half = c.width // 2
    pairs = torch.arange(c.width).view(2, half).t().flatten()
    turned = c.heads + c.groups
    rows = torch.arange((turned + c.groups) * c.width).view(-1, c.width)
    rows[:turned] = rows[:turned, pairs]
    weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
    bias = torch.zeros(len(weight)) if bias is None else bias.detach().clone()
    if c.mask_k_bias:
        bias[c.heads * c.width : turned * c.width] = 0
    return weight[rows.flatten()].detach(), bias[rows.flatten()]

"""The transformer of SEDD, MDLM, RADD and Duo for tokens, with the weight names of checkpoints."""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.discrete.schedule import Schedule
from distillkit.networks.blocks import wanted, zero
from distillkit.spec import Recorded

FREQUENCIES = 256


class DDiT(Recorded, nn.Module):
    """A bidirectional transformer of tokens, `network(x_t, t, cond) -> logits` [B, d, C].

    Positions are rotary (arXiv 2104.09864).

    Args:
        num_tokens: S, the real tokens.
        mask: whether there is one more state, the mask, in the input and in the output.
        width: token size, divisible by `heads`.
        depth: number of blocks.
        heads: attention heads.
        adaln: whether blocks are scaled, shifted and gated by an embedding (adaLN-zero, arXiv
            2212.09748) of sigma and classes; None means true if there is a schedule or a class.
            Without it the network sees x_t alone, which is enough for absorbing noise (RADD, arXiv
            2406.03736).
        schedule: the network gets sigma(t) of this schedule; with None it gets 0 at all times
            (MDLM).
        cond_dim: size of the embedding.
        classes: categorical conditions, `{name: number of classes}`; index `number of classes` is
            the null condition.
    """

    def __init__(
        self,
        num_tokens: int,
        mask: bool = True,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        adaln: bool | None = None,
        schedule: Schedule | None = None,
        cond_dim: int = 128,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        checks.network(num_tokens=num_tokens, width=width, depth=depth, heads=heads, classes=classes or {})
        checks.whole(0, 1_000_000, cond_dim=cond_dim)  # without meaning if there is no adaln
        if width % (2 * heads):
            raise ValueError(f"rotary positions need a width divisible by 2 x heads, got width {width}, heads {heads}")
        told = schedule is not None or bool(classes)
        adaln = told if adaln is None else adaln
        if told and not adaln:
            raise ValueError("a network without adaln cannot be told times or classes: set network.adaln=true")
        self.num_states = num_tokens + mask
        self.schedule = schedule
        cond_dim = cond_dim if adaln else 0
        self.vocab_embed = VocabEmbedding(self.num_states, width)
        self.sigma_map = SigmaEmbedding(cond_dim) if adaln else None
        self.class_embed = nn.ModuleDict({k: nn.Embedding(n + 1, cond_dim) for k, n in (classes or {}).items()})
        self.blocks = nn.ModuleList(Block(width, heads, cond_dim) for _ in range(depth))
        self.output_layer = Output(width, self.num_states, cond_dim)

    def forward(self, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        emb_BC = None
        if self.sigma_map is not None:
            emb_BC = self.sigma_map(torch.zeros_like(t) if self.schedule is None else self.schedule.sigma(t))
            for name, table in self.class_embed.items():
                emb_BC = emb_BC + table(wanted(cond, name))
            emb_BC = F.silu(emb_BC)
        h_BLC = self.vocab_embed(x_t)
        turn = rotation(x_t.shape[1], self.blocks[0].head_dim, h_BLC) if self.blocks else None
        for block in self.blocks:
            h_BLC = block(h_BLC, emb_BC, turn)
        return self.output_layer(h_BLC, emb_BC)


class VocabEmbedding(nn.Module):
    """A vector for each state of a position, [B, d] to [B, d, width]."""

    def __init__(self, num_states: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_states, width) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.embedding)


class SigmaEmbedding(nn.Module):
    """sigma [B] to [B, cond_dim]: sinusoids of frequencies from 1 to 1/10,000, then two layers."""

    def __init__(self, cond_dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, sigma: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        exponent = torch.arange(half, device=sigma.device, dtype=torch.float32) / half
        angle = sigma.float()[:, None] * torch.exp(-math.log(10_000) * exponent)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1).to(self.mlp[0].weight.dtype))


class Norm(nn.Module):
    """Layer normalisation with a weight and no bias, in float32."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:]).to(x.dtype) * self.weight


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the embedding if there is one.

    With an embedding the block is the identity at the start.
    """

    def __init__(self, width: int, heads: int, cond_dim: int):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.norm1, self.norm2 = Norm(width), Norm(width)
        self.attn_qkv, self.attn_out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = zero(nn.Linear(cond_dim, 6 * width)) if cond_dim else None

    def forward(self, x_BLC: Tensor, emb_BC: Tensor | None, turn: Tensor) -> Tensor:
        if self.adaLN_modulation is None:
            x_BLC = x_BLC + self._attention(self.norm1(x_BLC), turn)
            return x_BLC + self.mlp(self.norm2(x_BLC))
        shift0, scale0, gate0, shift1, scale1, gate1 = self.adaLN_modulation(emb_BC)[:, None].chunk(6, dim=-1)
        x_BLC = x_BLC + gate0 * self._attention(torch.addcmul(shift0, self.norm1(x_BLC), 1 + scale0), turn)
        return x_BLC + gate1 * self.mlp(torch.addcmul(shift1, self.norm2(x_BLC), 1 + scale1))

    def _attention(self, x_BLC: Tensor, turn: Tensor) -> Tensor:
        q, k, v = rearrange(self.attn_qkv(x_BLC), "b l (three h c) -> three b h l c", three=3, h=self.heads)
        h = F.scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v)
        return self.attn_out(rearrange(h, "b h l c -> b l (h c)"))


class Output(nn.Module):
    """Tokens to logits; zero at the start."""

    def __init__(self, width: int, num_states: int, cond_dim: int):
        super().__init__()
        self.norm_final, self.linear = Norm(width), zero(nn.Linear(width, num_states))
        self.adaLN_modulation = zero(nn.Linear(cond_dim, 2 * width)) if cond_dim else None

    def forward(self, x_BLC: Tensor, emb_BC: Tensor | None) -> Tensor:
        x_BLC = self.norm_final(x_BLC)
        if self.adaLN_modulation is not None:
            shift, scale = self.adaLN_modulation(emb_BC)[:, None].chunk(2, dim=-1)
            x_BLC = torch.addcmul(shift, x_BLC, 1 + scale)
        return self.linear(x_BLC)


def rotation(length: int, head_dim: int, like: Tensor) -> Tensor:
    """Cosine and sine of position times frequency, [2, length, head_dim]; both halves alike."""
    frequency = 10_000 ** (-torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, device=like.device, dtype=torch.float32), frequency).repeat(1, 2)
    return torch.stack([angle.cos(), angle.sin()]).to(like.dtype)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary positions: rotate each plane of components j and j + head_dim / 2 of a head."""
    first, second = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-second, first], -1) * turn[1]

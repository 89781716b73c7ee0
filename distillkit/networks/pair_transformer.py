"""A rotation-equivariant transformer with pair bias for chains of points (Proteina, 2503.00710)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.networks.blocks import Embedding, sinusoids, zero
from distillkit.networks.features import Features
from distillkit.spec import Recorded

# Radial features in nm, densest at distances of neighbours along the chain, in helices and sheets.
CENTRES = (0.05, 0.15, 0.25, 0.32, 0.36, 0.38, 0.40, 0.44, 0.5, 0.55, 0.6)
CENTRES += (0.66, 0.74, 0.84, 0.96, 1.1, 1.3, 1.5, 1.8, 2.2, 2.7)
WIDTHS = (0.1, 0.1, 0.08, 0.05, 0.03, 0.03, 0.03, 0.05, 0.05, 0.05, 0.05)
WIDTHS += (0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.22, 0.3, 0.4, 0.6)
REACH = 32  # largest distance along the chain with an embedding of its own
SOFT = 0.1  # nm; directions of shorter vectors count less


class Block(nn.Module):
    """Attention with pair bias that also averages pair features, then an MLP, as in DiT's block."""

    def __init__(self, width: int, heads: int, pair: int):
        super().__init__()
        self.heads = heads
        self.norm0, self.norm1 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.qkv, self.bias = nn.Linear(width, 3 * width), nn.Linear(pair, heads, bias=False)
        self.proj = nn.Linear(width + heads * pair, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulate = zero(nn.Linear(width, 6 * width))

    def forward(self, x_BNC: Tensor, pair_BNNP: Tensor, emb_BC: Tensor, mask_BN: Tensor) -> Tensor:
        shift0, scale0, gate0, shift1, scale1, gate1 = self.modulate(emb_BC)[:, None].chunk(6, dim=-1)
        h = torch.addcmul(shift0, self.norm0(x_BNC), 1 + scale0)
        q, k, v = rearrange(self.qkv(h), "b n (three h c) -> three b h n c", three=3, h=self.heads)
        weight = q @ k.mT * q.shape[-1] ** -0.5 + self.bias(pair_BNNP).permute(0, 3, 1, 2)
        weight = weight.masked_fill(~mask_BN[:, None, None], torch.finfo(weight.dtype).min).softmax(-1)
        seen = weight.transpose(1, 2) @ pair_BNNP  # b n h p
        h = torch.cat([rearrange(weight @ v, "b h n c -> b n (h c)"), seen.flatten(2)], -1)
        x_BNC = x_BNC + gate0 * self.proj(h)
        return x_BNC + gate1 * self.mlp(torch.addcmul(shift1, self.norm1(x_BNC), 1 + scale1))


class PairTransformer(Recorded, Features, nn.Module):
    """A transformer with residues as tokens and distances as pair features (arXiv 2503.00710).

    Rotating the input rotates the output; reflecting it does not reflect the output. A sample is a
    padded chain: x [B, N, 3], `cond["mask"]` bool [B, N], true at its residues, which come first.
    Tokens have no positions in space. The features of a pair i, j are the distance d of the two
    points, their distance along the chain, and two numbers of the chain's directions
    u_i = x_{i+1} - x_{i-1}: whether they agree, and on which side of each other they pass, which
    tells left-handed from right-handed. The output is a combination of vectors of the input,

        out_i = g_i x_i + sum_j a_ij (x_i - x_j) / (d_ij + soft)
                + sum_j b_ij u_i x (x_i - x_j) / (d_ij + soft),

    with numbers g, a, b of tokens and pairs. So no rotation has to be learned; Proteina learns them
    from rotated copies of its data.

    Distances are in the units of x, and the features are densest at those of residues in
    nanometres. A denoiser with `flow` prediction on a rectified flow passes x unscaled.

    Args:
        event_shape: (N, 3); chains of other lengths work too.
        width: size of a token, divisible by `heads`.
        depth, heads: number of blocks, and attention heads of each.
        pair: number of features of a pair.
        classes: categorical conditions, `{name: number of classes}`.
    """

    centred = True  # the mean of a sample is zero, see Denoiser

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        pair: int = 24,
        classes: dict[str, int] | None = None,
    ):
        super().__init__()
        if len(event_shape) != 2 or event_shape[1] != 3:
            raise ValueError(f"a PairTransformer needs samples (points, 3), got {tuple(event_shape)}")
        checks.network(event_shape=event_shape, width=width, depth=depth, heads=heads, pair=pair, classes=classes or {})
        if width % heads or width % 2:
            raise ValueError(f"width must be even and divisible by heads, got {width} and {heads}")
        self.width, self.feature_widths, self.feature_layer = width, [width] * depth, (depth - 1) // 2
        self.register_buffer("centres", torch.tensor(CENTRES), persistent=False)
        self.register_buffer("widths", torch.tensor(WIDTHS), persistent=False)
        self.embed = Embedding(width, classes or {})
        self.place = nn.Linear(2 * width, width)
        self.apart = nn.Embedding(2 * REACH + 1, pair)
        self.pairs = nn.Linear(len(CENTRES) + 2, pair)
        self.pair_time = nn.Linear(width, 2 * pair)
        self.pair_norm, self.pair_mix = nn.LayerNorm(pair), nn.Linear(pair, pair)
        self.blocks = nn.ModuleList(Block(width, heads, pair) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.own, self.ends = zero(nn.Linear(width, 1)), nn.Linear(width, 2 * pair)
        self.strength = nn.Sequential(nn.Linear(pair, pair), nn.SiLU(), zero(nn.Linear(pair, 2)))

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        mask, emb = cond["mask"], self.embed(time, cond)
        pair, apart, d, u = self._pairs(x, emb, mask)
        h = self._tokens(mask, pair.dtype)
        for block in self.blocks:
            h = block(h, pair, emb, mask)
        h = self.norm(h)
        left, right = self.ends(h).chunk(2, dim=-1)
        hidden = self.strength[0](pair) + left[:, :, None] + right[:, None]
        a, b = torch.where(mask[:, None, :, None], self.strength[1:](hidden), 0).unbind(-1)
        near = 1 / (d + SOFT)
        pull = torch.einsum("bij,bijc->bic", a * near, apart)
        turn = torch.linalg.cross(u, torch.einsum("bij,bijc->bic", b * near, apart))
        return self.own(h) * x + pull + turn

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """Tokens after each block, [B, width, N]; zero in the padding."""
        mask, emb = cond["mask"], self.embed(time, cond)
        pair = self._pairs(x, emb, mask)[0]
        h = self._tokens(mask, pair.dtype)
        for block in self.blocks:
            h = block(h, pair, emb, mask)
            yield torch.where(mask[..., None], h, 0).mT

    def _tokens(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Tokens before the first block, [B, N, width]."""
        num, (rows, length) = mask.sum(1, keepdim=True), mask.shape
        index = torch.arange(length, device=mask.device).expand(rows, length)
        # distance from either end, of order one
        both = torch.stack([index, (num - 1 - index).clamp_min(0)], -1).to(dtype) / REACH
        return self.place(sinusoids(both.flatten(), self.width).reshape(rows, length, -1))

    def _pairs(self, x: Tensor, emb: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pair features [B, N, N, P], x_i - x_j [B, N, N, 3], their lengths, u [B, N, 3]."""
        apart = x[:, :, None] - x[:, None]
        d = (apart.square().sum(-1) + 1e-8).sqrt()
        inner = (mask[:, 2:] & mask[:, :-2])[..., None]  # a chain's ends have no direction
        u = F.pad(torch.where(inner, x[:, 2:] - x[:, :-2], 0), (0, 0, 1, 1))
        side = torch.linalg.cross(u[:, :, None].expand_as(apart), u[:, None].expand_as(apart))
        side = torch.tanh((side * apart).sum(-1) / (d + SOFT))
        agree = torch.tanh(u @ u.mT)
        near = torch.exp(-(((d[..., None] - self.centres) / self.widths) ** 2) / 2)
        known = torch.cat([near, side[..., None], agree[..., None]], -1).to(self.pairs.weight.dtype)
        index = torch.arange(x.shape[1], device=x.device)
        steps = (index - index[:, None]).clamp(-REACH, REACH) + REACH
        shift, scale = self.pair_time(emb)[:, None, None].chunk(2, dim=-1)
        pair = torch.addcmul(shift, self.pair_norm(self.pairs(known) + self.apart(steps)), 1 + scale)
        return self.pair_mix(F.silu(pair)), apart, d, u

"""The layers of Proteina's transformer, under the released names.

B: chains, N: residues of the longest one, R: registers, D: `token_dim`, C: `dim_cond`,
P: `pair_repr_dim`.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from domains.protein.proteina.features import FeatureFactory


class Transition(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.swish_linear = nn.Sequential(nn.Linear(width, 2 * expansion * width, bias=False))
        self.linear_out = nn.Linear(expansion * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.swish_linear(x).chunk(2, -1)
        return self.linear_out(F.silu(gate) * x)


class AdaptiveLayerNorm(nn.Module):
    """A layer norm whose scale, in (0, 1), and shift follow from a condition."""

    def __init__(self, width: int, cond: int):
        super().__init__()
        self.norm_cond = nn.LayerNorm(cond)
        self.to_gamma, self.to_beta = nn.Sequential(nn.Linear(cond, width)), nn.Linear(cond, width, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        cond = self.norm_cond(cond)
        return self.to_gamma(cond).sigmoid() * F.layer_norm(x, x.shape[-1:]) + self.to_beta(cond)


class OutputScale(nn.Module):
    """A gate in (0, 1) that follows from a condition; it starts at sigmoid(-2)."""

    def __init__(self, width: int, cond: int):
        super().__init__()
        self.to_adaln_zero_gamma = nn.Sequential(nn.Linear(cond, width))
        nn.init.zeros_(self.to_adaln_zero_gamma[0].weight)
        nn.init.constant_(self.to_adaln_zero_gamma[0].bias, -2)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return x * self.to_adaln_zero_gamma(cond).sigmoid()


class PairBiasAttention(nn.Module):
    """Gated attention among tokens, biased by their pairs."""

    def __init__(self, width: int, heads: int, pair: int, qkln: bool):
        super().__init__()
        self.heads = heads
        self.node_norm, self.pair_norm = nn.LayerNorm(width), nn.LayerNorm(pair)
        self.to_qkv, self.to_g, self.to_out_node = (nn.Linear(width, n * width) for n in (3, 1, 1))
        self.q_layer_norm, self.k_layer_norm = (nn.LayerNorm(width) if qkln else nn.Identity() for _ in range(2))
        self.to_bias = nn.Linear(pair, heads, bias=False)

    def forward(self, x: Tensor, pair: Tensor, mask: Tensor) -> Tensor:
        x = self.node_norm(x)
        q, k, v = self.to_qkv(x).chunk(3, -1)
        heads = (self.q_layer_norm(q), self.k_layer_norm(k), v, self.to_g(x))
        q, k, v, gate = (rearrange(part, "b n (h c) -> b h n c", h=self.heads) for part in heads)
        weight = q @ k.mT * q.shape[-1] ** -0.5 + rearrange(self.to_bias(self.pair_norm(pair)), "b i j h -> b h i j")
        weight = weight.masked_fill(~mask[:, None, None], torch.finfo(weight.dtype).min).softmax(-1)
        return self.to_out_node(rearrange(gate.sigmoid() * (weight @ v), "b h n c -> b n (h c)"))


class ConditionedAttention(nn.Module):
    """Attention between an adaptive layer norm and a gate."""

    def __init__(self, width: int, cond: int, heads: int, pair: int, qkln: bool):
        super().__init__()
        self.adaln, self.scale_output = AdaptiveLayerNorm(width, cond), OutputScale(width, cond)
        self.mha = PairBiasAttention(width, heads, pair, qkln)

    def forward(self, x: Tensor, cond: Tensor, pair: Tensor, mask: Tensor) -> Tensor:
        return self.scale_output(self.mha(self.adaln(x, cond), pair, mask), cond)


class ConditionedTransition(nn.Module):
    """A SwiGLU between an adaptive layer norm and a gate."""

    def __init__(self, width: int, cond: int):
        super().__init__()
        self.adaln, self.scale_output = AdaptiveLayerNorm(width, cond), OutputScale(width, cond)
        self.transition = Transition(width, 4)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.scale_output(self.transition(self.adaln(x, cond)), cond)


class Layer(nn.Module):
    """Attention and SwiGLU, each beside a skip."""

    def __init__(self, width: int, cond: int, heads: int, pair: int, qkln: bool):
        super().__init__()
        self.mhba = ConditionedAttention(width, cond, heads, pair, qkln)
        self.transition = ConditionedTransition(width, cond)

    def forward(self, x: Tensor, cond: Tensor, pair: Tensor, mask: Tensor) -> Tensor:
        x = x + self.mhba(x, cond, pair, mask)
        return x + self.transition(x, cond)


class TriangleMultiplication(nn.Module):
    """Triangle multiplication of AlphaFold 2, under OpenFold's names.

    Source: Jumper et al. 2021, supplement, algorithms 11 and 12.
    """

    def __init__(self, pair: int, hidden: int, outgoing: bool):
        super().__init__()
        self.product = "bikc,bjkc->bijc" if outgoing else "bkic,bkjc->bijc"
        self.layer_norm_in, self.layer_norm_out = nn.LayerNorm(pair), nn.LayerNorm(hidden)
        self.linear_a_p, self.linear_a_g, self.linear_b_p, self.linear_b_g = (nn.Linear(pair, hidden) for _ in range(4))
        self.linear_g, self.linear_z = nn.Linear(pair, pair), nn.Linear(hidden, pair)

    def forward(self, pair: Tensor, both: Tensor) -> Tensor:
        pair = self.layer_norm_in(pair)
        a = torch.where(both, self.linear_a_p(pair) * self.linear_a_g(pair).sigmoid(), 0)
        b = torch.where(both, self.linear_b_p(pair) * self.linear_b_g(pair).sigmoid(), 0)
        out = self.linear_z(self.layer_norm_out(torch.einsum(self.product, a, b)))
        return out * self.linear_g(pair).sigmoid()


class PairTransition(nn.Module):
    """An MLP on each pair."""

    def __init__(self, pair: int):
        super().__init__()
        self.layer_norm, self.linear_1, self.linear_2 = (
            nn.LayerNorm(pair),
            nn.Linear(pair, 2 * pair),
            nn.Linear(2 * pair, pair),
        )

    def forward(self, pair: Tensor) -> Tensor:
        return self.linear_2(F.relu(self.linear_1(self.layer_norm(pair))))


class PairUpdate(nn.Module):
    """Pairs learn from their two tokens, and from the triangles they are in."""

    def __init__(self, width: int, pair: int, triangles: bool):
        super().__init__()
        self.layer_norm_in, self.linear_x = nn.LayerNorm(width), nn.Linear(width, 2 * pair, bias=False)
        self.triangles = triangles
        if triangles:
            hidden = min(pair, 196)
            self.tri_mult_out = TriangleMultiplication(pair, hidden, outgoing=True)
            self.tri_mult_in = TriangleMultiplication(pair, hidden, outgoing=False)
        self.transition_out = PairTransition(pair)

    def forward(self, x: Tensor, pair: Tensor, both: Tensor) -> Tensor:
        """both: which pairs there are, bool [B, N, N, 1]."""
        second, first = self.linear_x(self.layer_norm_in(x)).chunk(2, -1)
        pair = pair + second[:, None] + first[:, :, None]
        if self.triangles:
            pair = pair + self.tri_mult_out(pair, both)
            pair = pair + self.tri_mult_in(pair, both)
        return torch.where(both, pair + self.transition_out(pair), 0)


class PairReprBuilder(nn.Module):
    """Features of pairs, scaled and shifted by the conditioning."""

    def __init__(self, repr_factory: FeatureFactory, cond_factory: FeatureFactory | None, pair: int, cond: int):
        super().__init__()
        self.init_repr_factory, self.cond_factory = repr_factory, cond_factory
        self.adaln = AdaptiveLayerNorm(pair, cond) if cond_factory else None

    def forward(self, known: dict[str, Tensor], cond: dict[str, Tensor]) -> Tensor:
        pair = self.init_repr_factory(known, cond)
        return self.adaln(pair, self.cond_factory(known, cond)) if self.adaln else pair

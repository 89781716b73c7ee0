"""Proteina (arXiv 2503.00710): its network under the released names, and a teacher from a folder of `domains.protein.convert`.

Proteina counts time from noise to data, tau = 1 - t, and writes `x_tau = (1 - tau) eps + tau x_0`: our rectified flow from its
other end. Positions are C-alpha atoms in nanometres, centred, in both.

B: chains, N: residues of the longest one, R: registers, D: `token_dim`, C: `dim_cond`, P: `pair_repr_dim`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.diffusion.denoiser import Cond, precise
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import Process
from distillkit.diffusion.sampling import SOLVERS
from distillkit.files import read_yaml
from distillkit.networks.blocks import Embedding
from distillkit.spec import Recorded
from distillkit.teachers.folder import CONFIG, FolderTeacher

FOLDS = ("cath_c", "cath_a", "cath_t")  # conditions: class, architecture and topology of CATH
CATH = "cath.json"

# ---- features


def time_embedding(tau: Tensor, width: int) -> Tensor:
    """Sines, then cosines of 2000 tau at frequencies from 1 down to 1 / 2000; [B] to [B, width], width even."""
    steps = torch.arange(width // 2, device=tau.device, dtype=torch.float32)
    angles = 2000 * tau.float()[:, None] * torch.exp(-math.log(2000) / (width // 2 - 1) * steps)
    return torch.cat([angles.sin(), angles.cos()], -1)


def index_embedding(num: int, width: int, device: torch.device) -> Tensor:
    """Sines, then cosines of the residues' numbers 1 .. num, times pi / 2056^(2k / width); [num, width]."""
    steps = torch.arange(width // 2, device=device)
    angles = torch.arange(1, num + 1, device=device)[:, None] * math.pi / 2056 ** (2 * steps / width)
    return torch.cat([angles.sin(), angles.cos()], -1)


def distance_bins(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """In which bin the distance of each pair lies, int64 [B, N, N]: the first ends at `low`, the last begins at `high` (nm)."""
    apart = (x[:, :, None] - x[:, None]).norm(dim=-1)
    return torch.bucketize(apart, torch.linspace(low, high, bins - 1, device=x.device, dtype=x.dtype))


def separation_bins(num: int, bins: int, device: torch.device) -> Tensor:
    """i - j, cut off at either side, as a bin, int64 [num, num]."""
    index = torch.arange(num, device=device)
    return (index[:, None] - index + bins // 2).clamp(0, bins - 1)


class FoldEmbedding(nn.Module):
    """Class, architecture and topology side by side, [B, 1, 3 width]; the last row of each table means none."""

    def __init__(self, sizes: Sequence[int], width: int):
        super().__init__()
        self.embedding_C, self.embedding_A, self.embedding_T = (nn.Embedding(num + 1, width) for num in sizes)

    def forward(self, cond: dict[str, Tensor], num: int, device: torch.device) -> Tensor:
        found = []
        for name, table in zip(FOLDS, (self.embedding_C, self.embedding_A, self.embedding_T), strict=True):
            none = torch.full((num,), table.num_embeddings - 1, device=device)
            found.append(table(cond.get(name, none)))
        return torch.cat(found, -1)[:, None]


class FeatureFactory(nn.Module):
    """A linear map of all features side by side, of which bins are one-hot; what is not there counts as zero.

    Args:
        names: the features, in the order of the weight's columns.
        sizes: how many columns each has.
        out: channels of the result.
        norm: with a layer norm after it.
        folds: sizes of the three fold tables.
    """

    def __init__(self, names: Sequence[str], sizes: dict[str, int], out: int, norm: bool, folds: Sequence[int]):
        super().__init__()
        if unknown := sorted(set(names) - set(sizes)):
            raise ValueError(f"feature {unknown[0]!r} is not known here; known are {', '.join(sorted(sizes))}")
        self.names, self.sizes = tuple(names), [sizes[name] for name in names]
        self.feat_creators = nn.ModuleList(
            FoldEmbedding(folds, sizes[name] // 3) if name == "fold_emb" else nn.Identity() for name in names
        )
        self.linear_out = nn.Linear(sum(self.sizes), out, bias=False)
        self.ln_out = nn.LayerNorm(out) if norm else nn.Identity()

    def forward(self, known: dict[str, Tensor], cond: dict[str, Tensor]) -> Tensor:
        """known: numbers [B or 1, ..., size] or bins, int64 [B or 1, ...], by name."""
        out = known["x"].new_zeros((), dtype=self.linear_out.weight.dtype)
        for name, make, weight in zip(
            self.names, self.feat_creators, self.linear_out.weight.split(self.sizes, 1), strict=True
        ):
            value = known.get(name)
            if name == "fold_emb":
                value = make(cond, len(known["x"]), known["x"].device)
            if value is None:
                continue
            # a bin's column of the weight: the product with a one-hot vector that is never made
            out = out + (
                F.linear(value.to(weight.dtype), weight) if value.is_floating_point() else F.embedding(value, weight.T)
            )
        return self.ln_out(out)


# ---- layers


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
    """Of AlphaFold 2 (Jumper et al. 2021, supplement, algorithms 11 and 12), under OpenFold's names."""

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
    """Features of pairs, and what they are scaled and shifted by."""

    def __init__(self, repr_factory: FeatureFactory, cond_factory: FeatureFactory | None, pair: int, cond: int):
        super().__init__()
        self.init_repr_factory, self.cond_factory = repr_factory, cond_factory
        self.adaln = AdaptiveLayerNorm(pair, cond) if cond_factory else None

    def forward(self, known: dict[str, Tensor], cond: dict[str, Tensor]) -> Tensor:
        pair = self.init_repr_factory(known, cond)
        return self.adaln(pair, self.cond_factory(known, cond)) if self.adaln else pair


class Told(Embedding):
    """What a fake score is told besides, [B, width]: nothing until `add`, so the released weights are all there is."""

    def __init__(self, width: int):
        nn.Module.__init__(self)
        self.width, self.classes = width, nn.ModuleDict()

    def forward(self, cond: dict[str, Tensor]) -> Tensor | int:
        return sum(table(cond[name]) for name, table in self.classes.items())


# ---- the network


class ProteinaTransformer(Recorded, nn.Module):
    """Proteina's transformer: residues and a few registers as tokens, attention biased by pairs. Not equivariant.

    `x` [B, N, 3] in nm, centred; `time` [B], 1 for noise; `cond["mask"]` bool [B, N]. Optional: `cond["x_sc"]` [B, N, 3], a
    prediction of x_0 to condition on (self-conditioning), zero if absent; `cond["cath_c"]`, `["cath_a"]`, `["cath_t"]`, int64
    [B], the fold class, where the number of classes, or absence, means none. What comes out is `eps - x_0`, or x_0.

    Args: those of the released configuration `model.nn` that shape the weights, and two that stand elsewhere.
        target_pred: `v` or `x_1`, what the checkpoint was trained to predict (x_1 is x_0 here).
        fold_classes: how many classes, architectures and topologies it knows.
    """

    centred = True  # the mean of a sample is zero, see Denoiser

    def __init__(
        self,
        token_dim: int,
        nlayers: int,
        nheads: int,
        dim_cond: int,
        pair_repr_dim: int,
        feats_init_seq: Sequence[str],
        feats_cond_seq: Sequence[str],
        feats_pair_repr: Sequence[str],
        feats_pair_cond: Sequence[str] = (),
        t_emb_dim: int = 256,
        idx_emb_dim: int = 128,
        fold_emb_dim: int = 256,
        seq_sep_dim: int = 127,
        xt_pair_dist_dim: int = 64,
        xt_pair_dist_min: float = 0.1,
        xt_pair_dist_max: float = 3.0,
        x_sc_pair_dist_dim: int = 128,
        x_sc_pair_dist_min: float = 0.1,
        x_sc_pair_dist_max: float = 3.0,
        num_registers: int | None = None,
        use_qkln: bool = False,
        update_pair_repr: bool = False,
        update_pair_repr_every_n: int = 2,
        use_tri_mult: bool = False,
        target_pred: Literal["v", "x_1"] = "v",
        fold_classes: Sequence[int] = (0, 0, 0),
    ):
        super().__init__()
        if token_dim % nheads:
            raise ValueError(f"token_dim must be divisible by nheads, got {token_dim} and {nheads}")
        if target_pred not in ("v", "x_1"):
            raise ValueError(f"target_pred must be v or x_1, got {target_pred!r}")
        self.target_pred, self.feature_channels = target_pred, token_dim
        self.t_emb_dim, self.idx_emb_dim, self.seq_sep_dim = t_emb_dim, idx_emb_dim, seq_sep_dim
        self.x_bins = (xt_pair_dist_min, xt_pair_dist_max, xt_pair_dist_dim)
        self.x_sc_bins = (x_sc_pair_dist_min, x_sc_pair_dist_max, x_sc_pair_dist_dim)
        seq = {"res_seq_pdb_idx": idx_emb_dim, "chain_break_per_res": 1, "x_sc": 3}  # chains here have no breaks: zero
        seq |= {"time_emb": t_emb_dim, "fold_emb": 3 * fold_emb_dim}
        pair = {"rel_seq_sep": seq_sep_dim, "xt_pair_dists": xt_pair_dist_dim, "x_sc_pair_dists": x_sc_pair_dist_dim}
        pair |= {"time_emb": t_emb_dim}
        made = partial(FeatureFactory, folds=fold_classes)
        self.num_registers = num_registers or 0
        if self.num_registers:
            self.registers = nn.Parameter(torch.randn(self.num_registers, token_dim) / 20)
        self.linear_3d_embed = nn.Linear(3, token_dim, bias=False)
        self.init_repr_factory = made(feats_init_seq, seq, token_dim, norm=False)
        self.cond_factory = made(feats_cond_seq, seq, dim_cond, norm=False)
        self.transition_c_1, self.transition_c_2 = Transition(dim_cond, 2), Transition(dim_cond, 2)
        self.embed = Told(dim_cond)
        self.pair_repr_builder = PairReprBuilder(
            made(feats_pair_repr, pair, pair_repr_dim, norm=True),
            made(feats_pair_cond, pair, dim_cond, norm=True) if feats_pair_cond else None,
            pair_repr_dim,
            dim_cond,
        )
        self.transformer_layers = nn.ModuleList(
            Layer(token_dim, dim_cond, nheads, pair_repr_dim, use_qkln) for _ in range(nlayers)
        )
        self.pair_update_layers = nn.ModuleDict(  # after these layers; named by their number
            {
                str(i): PairUpdate(token_dim, pair_repr_dim, use_tri_mult)
                for i in range(0, nlayers - 1, update_pair_repr_every_n)
                if update_pair_repr
            }
        )
        self.coors_3d_decoder = nn.Sequential(nn.LayerNorm(token_dim), nn.Linear(token_dim, 3, bias=False))

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        out = self.coors_3d_decoder(self._tokens(x, time, cond, len(self.transformer_layers)))
        return -out if self.target_pred == "v" else out  # its velocity points from noise to data

    def features(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Tokens after the first half of the layers, [B, D, N]; zero in the padding."""
        h = self._tokens(x, time, cond, (len(self.transformer_layers) + 1) // 2)
        return torch.where(cond["mask"][..., None], h, 0).mT

    def _tokens(self, x: Tensor, time: Tensor, cond: dict[str, Tensor], depth: int) -> Tensor:
        """[B, N, D] after `depth` layers."""
        mask, num, r = cond["mask"], x.shape[1], self.num_registers
        seq, pairs = self._known(x, 1 - time, cond)
        c = self.transition_c_2(self.transition_c_1(self.cond_factory(seq, cond)))
        h = self.linear_3d_embed(x.to(c.dtype)) + self.init_repr_factory(seq, cond)
        both = (mask[:, None] & mask[:, :, None])[..., None]
        pair = torch.where(both, self.pair_repr_builder(pairs, cond), 0)
        # registers come first; their pairs and their condition are zero
        pair, c = F.pad(pair, (0, 0, r, 0, r, 0)), F.pad(c.expand(-1, num, -1), (0, 0, r, 0))
        mask = F.pad(mask, (r, 0), value=True)
        both = (mask[:, None] & mask[:, :, None])[..., None]
        if r:
            h = torch.cat([self.registers.expand(len(h), -1, -1), h], 1)
        if self.embed.classes:
            c = c + self.embed(cond)[:, None]
        for i, layer in enumerate(self.transformer_layers[:depth]):
            h = layer(h, c, pair, mask)
            if str(i) in self.pair_update_layers:
                pair = self.pair_update_layers[str(i)](h, pair, both)
        return h[:, r:]

    @torch.no_grad()  # but the tokens' own positions, no feature has a gradient: bins have none
    def _known(self, x: Tensor, tau: Tensor, cond: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The features of tokens and of pairs, for `FeatureFactory`."""
        num, when, x = x.shape[1], time_embedding(tau, self.t_emb_dim), precise(x)
        index = index_embedding(num, self.idx_emb_dim, x.device)
        seq = {"x": x, "res_seq_pdb_idx": index[None], "time_emb": when[:, None]}
        pairs = {"x": x, "xt_pair_dists": distance_bins(x, *self.x_bins), "time_emb": when[:, None, None]}
        pairs["rel_seq_sep"] = separation_bins(num, self.seq_sep_dim, x.device)[None]
        if "x_sc" in cond:
            x_sc = torch.where(cond["mask"][..., None], precise(cond["x_sc"]), 0)
            seq["x_sc"], pairs["x_sc_pair_dists"] = x_sc, distance_bins(x_sc, *self.x_sc_bins)
        return seq, pairs


# ---- the teacher


def sde(
    denoise: Callable[[Tensor, Tensor], Tensor],
    process: Process,
    x: Tensor,
    times: Tensor,
    noise: Callable[[int], Tensor],
    noise_scale: float = 0.45,
    until: float = 0.01,
) -> Tensor:
    """Proteina's own sampler: Euler-Maruyama steps of an SDE with the flow's marginals, its noise turned down.

    `dx = (v + g score) dtau + sqrt(2 g gamma) dW` with v = x_0 - eps and g = 1 / (tau + 0.01); after tau = 1 - `until` the ODE
    `dx = v dtau`. gamma, `noise_scale`, is 1 for the true SDE; it multiplies the variance (the student's noise scale, the
    standard deviation).
    """
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x_0, tau, step = denoise(x, t), float(1 - t), float(t - s)
        v = (x_0 - x) / float(t)
        if tau > 1 - until:
            x = x + step * v
            continue
        g = 1 / (tau + 0.01)
        score = (tau * v - x) / float(t)
        x = x + step * (v + g * score) + (2 * g * noise_scale * step) ** 0.5 * noise(i + 1)
    return denoise(x, times[-1])


class Proteina(FolderTeacher):
    """A checkpoint of Proteina that `python -m domains.protein.convert` has made a folder of.

    Its own sampler, `sde` with 400 steps on a grid that is logarithmic near the data, is its best, and feeds every step the
    prediction of the one before, if the checkpoint was trained for that. Methods never do: they call the denoiser without it.

    Args:
        path: the folder.
        event_shape: (N, 3), N residues of the longest chain in the data; None takes the folder's.
        folds: conditioned on `cath_c`, `cath_a`, `cath_t` [B] in a batch; otherwise on no fold class.
        noise_scale: gamma of its sampler; recommended are 0.45 (200M), 0.6 (400M) and 0.35 (chains of 300 residues and more).
        self_conditioning: of its sampler; None means if the checkpoint was trained for it.
    """

    solvers = {**SOLVERS, "sde": sde}

    def __init__(
        self,
        path: str,
        event_shape: Sequence[int] | None = None,
        folds: bool = False,
        noise_scale: float = 0.45,
        self_conditioning: bool | None = None,
    ):
        super().__init__(path)
        if not isinstance(self.denoiser.network, ProteinaTransformer):
            raise ValueError(f"{path} holds no Proteina: convert a checkpoint, or take teacher=folder")
        if noise_scale < 0:
            raise ValueError(f"noise_scale multiplies a variance and must not be negative, got {noise_scale}")
        if folds and not self.classes:
            raise ValueError(f"the Proteina in {path} knows no fold classes: leave folds off")
        self.folder = Path(path)
        self.event_shape = tuple(event_shape or self.event_shape)
        self.classes = self.classes if folds else {}
        trained = bool(read_yaml(self.folder / CONFIG).get("self_conditioning"))
        self.self_conditioning = trained if self_conditioning is None else self_conditioning
        self.best = {**self.best, "noise_scale": noise_scale, "self_conditioning": self.self_conditioning}
        self.solvers = {**self.solvers, "sde": partial(sde, noise_scale=noise_scale)}

    def grid(self, steps: int) -> Tensor:
        """`t = (10^(-2 i / steps) - 0.01) / 0.99`: from 1 down, as the released schedule `log` with p = 2."""
        return (10 ** (-2 * torch.arange(steps, dtype=torch.float64) / steps) - 0.01) / 0.99

    def stepper(self, cond: Cond, kappa: float) -> Callable[[Tensor, Tensor], Tensor]:
        """With self-conditioning: the first step sees none, each later one what the one before it gave."""
        if not self.self_conditioning:
            return super().stepper(cond, kappa)
        last: dict[str, Tensor] = {}

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            known = cond | last
            x_0 = guided(self.denoiser, x, t, known, self.null_condition(known), self.guidance(t, kappa))
            last["x_sc"] = x_0.detach()
            return x_0

        return denoise

    def fold(self, codes: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of CATH codes such as `3.40.50`, `3.40`, `3` or `x` (none); a homology, `3.40.50.720`, is not used.

        Raises:
            ValueError: the folder has no table of codes, or a code is not in it.
        """
        file = self.folder / CATH
        if not file.is_file():
            raise ValueError(
                f"{file} does not exist: convert with --cath cath_label_mapping.pt to name folds by their code"
            )
        tables, found = json.loads(file.read_text(encoding="utf-8")), {name: [] for name in FOLDS}
        for code in codes:
            parts = list(takewhile(lambda part: part != "x", code.split(".")[:3]))
            for level, (name, table) in enumerate(zip(FOLDS, tables, strict=True), start=1):
                known = ".".join(parts[:level])
                if len(parts) >= level and known not in table:
                    raise ValueError(f"fold {code!r}: Proteina knows no {known!r}")
                found[name].append(table[known] if len(parts) >= level else len(table))
        return {name: torch.tensor(numbers) for name, numbers in found.items()}

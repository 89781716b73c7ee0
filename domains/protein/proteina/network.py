"""Proteina's transformer, under the released names.

B: chains, N: residues of the longest one, R: registers, D: `token_dim`, C: `dim_cond`,
P: `pair_repr_dim`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.diffusion.denoiser import precise
from distillkit.networks.blocks import Told
from distillkit.spec import Recorded
from domains.protein.proteina.features import (
    FeatureFactory,
    distance_bins,
    index_embedding,
    separation_bins,
    time_embedding,
)
from domains.protein.proteina.layers import Layer, PairReprBuilder, PairUpdate, Transition


class ProteinaTransformer(Recorded, nn.Module):
    """Proteina's transformer: residues and registers as tokens, attention biased by pairs.

    It is not equivariant.

    `x` [B, N, 3] in nm, centred; `time` [B], 1 for noise; `cond["mask"]` bool [B, N]. Optional:
    `cond["x_sc"]` [B, N, 3], a prediction of x_0 to condition on (self-conditioning), zero if
    absent; `cond["cath_c"]`, `["cath_a"]`, `["cath_t"]`, int64 [B], the fold class, where the
    number of classes, or absence, means none. The output is `eps - x_0`, or x_0. The arguments that
    are not listed here are those of the released configuration `model.nn`.

    Args:
        target_pred: `v` or `x_1`, the quantity that the checkpoint predicts (x_1 is x_0 here).
        fold_classes: numbers of classes, architectures and topologies that it knows.
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
        self.embed = Told(dim_cond)  # nothing at first, so the released weights are all there is
        self.pair_repr_builder = PairReprBuilder(
            made(feats_pair_repr, pair, pair_repr_dim, norm=True),
            made(feats_pair_cond, pair, dim_cond, norm=True) if feats_pair_cond else None,
            pair_repr_dim,
            dim_cond,
        )
        self.transformer_layers = nn.ModuleList(
            Layer(token_dim, dim_cond, nheads, pair_repr_dim, use_qkln) for _ in range(nlayers)
        )
        self.updated = range(0, nlayers - 1 if update_pair_repr else 0, update_pair_repr_every_n)
        self.pair_update_layers = nn.ModuleList(  # after these layers; named by their number
            PairUpdate(token_dim, pair_repr_dim, use_tri_mult) if i in self.updated else nn.Identity()
            for i in range(nlayers - 1)
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
        if self.embed:
            c = c + self.embed(cond)[:, None]
        for i, layer in enumerate(self.transformer_layers[:depth]):
            h = layer(h, c, pair, mask)
            if i in self.updated:
                pair = self.pair_update_layers[i](h, pair, both)
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

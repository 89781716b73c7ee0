"""TRELLIS's networks under their released names (arXiv 2412.01506).

State-dict keys and arguments are those of the checkpoints.

B: samples, L: tokens, V: voxels of all samples in one row (see `sparse.py`), C: channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit.diffusion.denoiser import precise
from distillkit.spec import Recorded
from domains.threed.trellis.sparse import SparseResBlock3d, Voxels, pool


def position(coords: Tensor, width: int) -> Tensor:
    """Sines and cosines of each coordinate in turn, then zeros; [L, 3] to [L, width]."""
    num = width // 6
    angles = coords[..., None] * 10000.0 ** (-torch.arange(num, device=coords.device) / num)
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return F.pad(embedding, (0, width - 6 * num))


class TimestepEmbedder(nn.Module):
    """Times in [0, 1], [B], to [B, width]: 128 cosines and sines of 1000 t, and an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        angles = 1000 * time[:, None] * torch.exp(-math.log(10000) * torch.arange(128, device=time.device) / 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp[0].weight.dtype))


class MultiHeadRMSNorm(nn.Module):
    """Heads [B, heads, L, C] as unit vectors, times sqrt(C) and a gain."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, width))

    def forward(self, x: Tensor) -> Tensor:
        return (F.normalize(precise(x), dim=-1) * self.gamma[:, None] * self.gamma.shape[1] ** 0.5).to(x.dtype)


class MultiHeadAttention(nn.Module):
    """Attention among tokens, or with `context` channels given, from tokens to a context."""

    def __init__(self, width: int, heads: int, qk_rms_norm: bool, context: int | None = None):
        super().__init__()
        self.heads = heads
        if context is None:
            self.to_qkv = nn.Linear(width, 3 * width)
        else:
            self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(context, 2 * width)
        if qk_rms_norm:
            self.q_rms_norm, self.k_rms_norm = (MultiHeadRMSNorm(width // heads, heads) for _ in range(2))
        self.qk_rms_norm = qk_rms_norm
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x: [B, L, C]; mask: which keys count, bool [B, keys], None for all."""
        if context is None:
            q, k, v = rearrange(self.to_qkv(x), "b l (three h c) -> three b h l c", three=3, h=self.heads)
        else:
            q = rearrange(self.to_q(x), "b l (h c) -> b h l c", h=self.heads)
            k, v = rearrange(self.to_kv(context), "b l (two h c) -> two b h l c", two=2, h=self.heads)
        if self.qk_rms_norm:
            q, k = self.q_rms_norm(q), self.k_rms_norm(k)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        return self.to_out(rearrange(h, "b h l c -> b l (h c)"))


class FeedForwardNet(nn.Module):
    """An MLP on each token."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        hidden = int(width * ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Block(nn.Module):
    """Attention and MLP, with cross-attention to the condition between them.

    The time scales, shifts and gates attention and MLP.
    """

    def __init__(self, width: int, context: int, heads: int, ratio: float, share_mod: bool, rms: bool, rms_cross: bool):
        super().__init__()
        self.norm1, self.norm3 = (nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.self_attn = MultiHeadAttention(width, heads, rms)
        self.cross_attn = MultiHeadAttention(width, heads, rms_cross, context)
        self.mlp = FeedForwardNet(width, ratio)
        self.adaLN_modulation = nn.Identity() if share_mod else modulation(width)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        shift0, scale0, gate0, shift1, scale1, gate1 = self.adaLN_modulation(emb)[:, None].chunk(6, dim=-1)
        x = x + gate0 * self.self_attn(torch.addcmul(shift0, self.norm1(x), 1 + scale0), mask=mask)
        x = x + self.cross_attn(self.norm2(x), context)
        return x + gate1 * self.mlp(torch.addcmul(shift1, self.norm3(x), 1 + scale1))


def modulation(width: int) -> nn.Sequential:
    """A network from the time embedding to six vectors."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))


class Trunk(Recorded, nn.Module):
    """Base of both flows: `v(x, t, cond)` by transformer blocks.

    `cond["cond"]` is the condition's tokens [B, keys, C].

    The velocity is `(1 - sigma_min) eps - x_0` with sigma_min 1e-5, which we read as `eps - x_0`.

    Args:
        resolution: side of the grid.
        in_channels, out_channels: of the latent; equal.
        model_channels: width of a token.
        cond_channels: of the condition's tokens.
        num_blocks, num_heads, num_head_channels, mlp_ratio: size of the blocks; heads default to
            width / num_head_channels.
        patch_size: side of what becomes one token.
        pe_mode: `ape`, absolute positions; nothing else was released.
        share_mod: one modulation for all blocks.
        qk_rms_norm, qk_rms_norm_cross: normalise queries and keys of the self- and of the
            cross-attention.
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int = 64,
        mlp_ratio: float = 4,
        patch_size: int = 2,
        pe_mode: str = "ape",
        share_mod: bool = False,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ):
        super().__init__()
        if pe_mode != "ape":
            raise ValueError(f"TRELLIS networks are read with absolute positions, pe_mode 'ape', got {pe_mode!r}")
        self.resolution, self.in_channels, self.patch_size = resolution, in_channels, patch_size
        self.model_channels, self.cond_channels = model_channels, cond_channels
        heads = num_heads or model_channels // num_head_channels
        sizes = (model_channels, cond_channels, heads, mlp_ratio, share_mod, qk_rms_norm, qk_rms_norm_cross)
        self.t_embedder = TimestepEmbedder(model_channels)
        self.adaLN_modulation = modulation(model_channels) if share_mod else nn.Identity()
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(num_blocks))


class SparseStructureFlowModel(Trunk):
    """The first stage: a latent of occupancy, [B, channels, side, side, side]."""

    def __init__(self, resolution, in_channels, model_channels, cond_channels, out_channels, num_blocks, **kwargs):
        super().__init__(resolution, in_channels, model_channels, cond_channels, out_channels, num_blocks, **kwargs)
        side, volume = resolution // self.patch_size, self.patch_size**3
        coords = torch.cartesian_prod(*[torch.arange(side)] * 3)
        self.register_buffer("pos_emb", position(coords, model_channels))
        self.input_layer = nn.Linear(in_channels * volume, model_channels)
        self.out_layer = nn.Linear(model_channels, out_channels * volume)
        self.feature_channels = model_channels

    def _tokens(self, x: Tensor, time: Tensor, cond: dict[str, Tensor], blocks) -> Tensor:
        p, dtype = self.patch_size, self.input_layer.weight.dtype
        h = rearrange(x.to(dtype), "b c (x p) (y q) (z r) -> b (x y z) (c p q r)", p=p, q=p, r=p)
        h = self.input_layer(h) + self.pos_emb.to(dtype)
        emb, context = self.adaLN_modulation(self.t_embedder(time)), cond["cond"].to(dtype)
        for block in blocks:
            h = block(h, emb, context)
        return h

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        h = self._tokens(x, time, cond, self.blocks)
        h = self.out_layer(F.layer_norm(h, h.shape[-1:]))
        p, side = self.patch_size, self.resolution // self.patch_size
        return rearrange(h, "b (x y z) (c p q r) -> b c (x p) (y q) (z r)", x=side, y=side, z=side, p=p, q=p, r=p)

    def features(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Tokens after the first half of the blocks, [B, C, L]."""
        return self._tokens(x, time, cond, self.blocks[: (len(self.blocks) + 1) // 2]).transpose(1, 2)


class SLatFlowModel(Trunk):
    """The second stage: features of the voxels of a structure, a padded set [B, N, channels].

    `cond["coords"]` are their integer places [B, N, 3], `cond["mask"]` bool [B, N]. With
    `io_block_channels` the network is a U-Net of sparse convolutions around the blocks, whose
    tokens are then voxels `patch_size` times as wide.

    Args:
        num_io_res_blocks: residual blocks on each level.
        io_block_channels: widths of the levels, finest first, log2(patch_size) of them; None:
            tokens are voxels.
        use_skip_connection: hand the encoder's features to the decoder.
        kwargs: of `Trunk`.
    """

    def __init__(
        self,
        resolution: int,
        in_channels: int,
        model_channels: int,
        cond_channels: int,
        out_channels: int,
        num_blocks: int,
        num_io_res_blocks: int = 2,
        io_block_channels: Sequence[int] | None = None,
        use_skip_connection: bool = True,
        **kwargs,
    ):
        super().__init__(resolution, in_channels, model_channels, cond_channels, out_channels, num_blocks, **kwargs)
        widths = list(io_block_channels or [])
        if widths and self.patch_size != 2 ** len(widths):
            raise ValueError(
                f"{len(widths)} io_block_channels need patch_size {2 ** len(widths)}, got {self.patch_size}"
            )
        if widths and kwargs.get("share_mod"):
            raise ValueError(
                "share_mod does not go with io_block_channels, whose blocks want the time embedding itself"
            )
        self.use_skip_connection = use_skip_connection
        ladder, more = [*widths, model_channels], num_io_res_blocks - 1
        self.input_layer = nn.Linear(in_channels, ladder[0])
        self.input_blocks, self.out_blocks = nn.ModuleList(), nn.ModuleList()
        twice = 2 if use_skip_connection else 1
        for fine, coarse in zip(ladder, ladder[1:], strict=False):
            self.input_blocks.extend(SparseResBlock3d(fine, fine, model_channels) for _ in range(more))
            self.input_blocks.append(SparseResBlock3d(fine, coarse, model_channels, "down"))
        for fine, coarse in reversed(list(zip(ladder, ladder[1:], strict=False))):
            self.out_blocks.append(SparseResBlock3d(twice * coarse, fine, model_channels, "up"))
            self.out_blocks.extend(SparseResBlock3d(twice * fine, fine, model_channels) for _ in range(more))
        self.out_layer = nn.Linear(ladder[0], out_channels)

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        mask, dtype = cond["mask"], self.input_layer.weight.dtype
        level = Voxels(mask.nonzero()[:, 0], cond["coords"][mask], len(mask), self.resolution)
        emb, context = self.adaLN_modulation(self.t_embedder(time)), cond["cond"].to(dtype)
        h, skips, finer = self.input_layer(x[mask].to(dtype)), [], []
        for block in self.input_blocks:
            if block.move == "down":
                coarse, parent = level.coarser()
                finer.append((level, parent))
                h, level = pool(h, parent, len(coarse)), coarse
            h = block(h, emb, level)
            skips.append(h)
        tokens, valid = level.pad(h + position(level.coords, self.model_channels).to(dtype))
        for block in self.blocks:
            tokens = block(tokens, emb, context, valid)
        h = tokens[valid]
        for block in self.out_blocks:
            if self.use_skip_connection:
                h = torch.cat([h, skips.pop()], dim=1)
            if block.move == "up":
                level, parent = finer.pop()
                h = h[parent]
            h = block(h, emb, level)
        h = self.out_layer(F.layer_norm(h, h.shape[-1:]))
        out = h.new_zeros(*mask.shape, h.shape[1])
        out[mask] = h
        return out


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, x, y, z]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResBlock3d(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.norm2 = ChannelLayerNorm(channels), ChannelLayerNorm(channels)
        self.conv1, self.conv2 = (nn.Conv3d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class UpsampleBlock3d(nn.Module):
    """A convolution to eight times the channels, which become the eight children of each voxel."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.conv = nn.Conv3d(inp, 8 * out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv(x), "b (c p q r) x y z -> b c (x p) (y q) (z r)", p=2, q=2, r=2)


class SparseStructureDecoder(Recorded, nn.Module):
    """A latent of the first stage, [B, channels, side, side, side], to logits of occupancy.

    The logits are [B, 1, ...], with the side doubled at every level after the first.

    Args:
        out_channels, latent_channels: of logits and latent.
        num_res_blocks, num_res_blocks_middle: on each level, and before the first.
        channels: of the levels, coarsest first.
        norm_type: of the last normalisation, `layer` or `group`; the blocks have layer norms either
            way.
    """

    def __init__(
        self,
        out_channels: int,
        latent_channels: int,
        num_res_blocks: int,
        channels: Sequence[int],
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
    ):
        super().__init__()
        first, *_, last = channels
        self.input_layer = nn.Conv3d(latent_channels, first, 3, padding=1)
        self.middle_block = nn.Sequential(*[ResBlock3d(first) for _ in range(num_res_blocks_middle)])
        self.blocks = nn.Sequential()
        for level, width in enumerate(channels):
            if level:
                self.blocks.append(UpsampleBlock3d(channels[level - 1], width))
            self.blocks.extend(ResBlock3d(width) for _ in range(num_res_blocks))
        norm = ChannelLayerNorm(last) if norm_type == "layer" else nn.GroupNorm(32, last)
        self.out_layer = nn.Sequential(norm, nn.SiLU(), nn.Conv3d(last, out_channels, 3, padding=1))

    def forward(self, latent: Tensor) -> Tensor:
        h = self.middle_block(self.input_layer(latent.to(self.input_layer.weight.dtype)))
        return self.out_layer(self.blocks(h))

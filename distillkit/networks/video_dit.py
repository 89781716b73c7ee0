"""A factorised space-time transformer for video (Latte, arXiv 2401.03048): blocks look along space and along time in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from distillkit.networks.blocks import Embedding, zero
from distillkit.networks.dit import Block
from distillkit.spec import Recorded


class VideoDiT(Recorded, nn.Module):
    """Tubelets as tokens with learned positions; even blocks attend within a moment, odd ones along time within a place.

    Args:
        event_shape: (channels, frames, height, width); frames divisible by `tube`, height and width by `patch`.
        width: token size, divisible by `heads`.
        depth: number of blocks of both kinds.
        heads: attention heads.
        patch: side of a tubelet in pixels.
        tube: frames of a tubelet.
        classes: categorical conditions, `{name: number of classes}`.
        context: `[first]` for a network that is given the first frame, `cond["first"]` [B, C, H, W] in [-1, 1]: it is shown
            beside every frame, as further channels.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        width: int = 96,
        depth: int = 4,
        heads: int = 4,
        patch: int = 4,
        tube: int = 2,
        classes: dict[str, int] | None = None,
        context: Sequence[str] | None = None,
    ):
        super().__init__()
        if len(event_shape) != 4 or event_shape[1] % tube or event_shape[2] % patch or event_shape[3] % patch:
            raise ValueError(
                f"a VideoDiT needs videos (channels, frames, height, width), frames divisible by {tube} and sides by "
                f"{patch}, got {tuple(event_shape)}"
            )
        if set(context or ()) - {"first"}:
            raise ValueError(f"a VideoDiT can be given [first] or nothing, got the context {list(context)}")
        channels, frames, rows, columns = event_shape
        self.given, self.patch, self.tube = bool(context), patch, tube
        self.sides = {"t": frames // tube, "h": rows // patch, "w": columns // patch, "r": tube, "p": patch, "q": patch}
        inside = channels * tube * patch**2
        self.embed = Embedding(width, classes or {})
        self.inp = nn.Linear((1 + self.given) * inside, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, 1, self.sides["h"] * self.sides["w"], width))
        self.moment = nn.Parameter(0.02 * torch.randn(1, self.sides["t"], 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm, self.modulate = nn.LayerNorm(width, elementwise_affine=False), zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, inside))
        self.feature_channels = width

    def _tokens(self, x: Tensor, emb: Tensor, cond: dict[str, Tensor], blocks: Sequence[Block]) -> Tensor:
        """[B, moments, places, width] after some of the blocks."""
        if self.given:
            x = torch.cat([x, cond["first"].to(x)[:, :, None].expand_as(x)], dim=1)
        x = x.to(self.inp.weight.dtype)
        h = rearrange(x, "b c (t r) (h p) (w q) -> b t (h w) (c r p q)", **self.sides)
        h = self.inp(h) + self.place + self.moment
        for i, block in enumerate(blocks):
            h = h.transpose(1, 2) if i % 2 else h
            every = emb.repeat_interleave(h.shape[1], 0)
            h = block(h.flatten(0, 1), every).unflatten(0, h.shape[:2])
            h = h.transpose(1, 2) if i % 2 else h
        return h

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        emb = self.embed(time, cond)
        h = self._tokens(x, emb, cond, self.blocks)
        shift, scale = self.modulate(emb)[:, None, None].chunk(2, dim=-1)
        h = self.out(torch.addcmul(shift, self.norm(h), 1 + scale))
        return rearrange(h, "b t (h w) (c r p q) -> b c (t r) (h p) (w q)", **self.sides)

    def features(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """Tokens after the first half of the blocks, [B, width, moments, places]."""
        half = self.blocks[: (len(self.blocks) + 1) // 2]
        return self._tokens(x, self.embed(time, cond), cond, half).movedim(-1, 1)

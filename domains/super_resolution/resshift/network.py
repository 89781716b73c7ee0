"""ResShift's U-Net with Swin layers (arXiv 2307.12348), under its released names.

B: photographs; C: channels; H, W: height and width of the latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from distillkit import checks
from distillkit.diffusion.process import ResShift, expand
from distillkit.networks.blocks import Told, zero
from distillkit.networks.features import Features, last
from distillkit.spec import Recorded
from domains.super_resolution.codec import Latent
from domains.super_resolution.network import check_images

APART = -100.0  # is added to the logits of positions that a shift brought together


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def embedding(index: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of an index in the table, [B] to [B, width]; it may be fractional."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=index.device) / (width // 2))
    angles = index[:, None] * rates
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


class ResBlock(nn.Module):
    """Two convolutions beside a skip; the time scales and shifts the second norm."""

    def __init__(self, inp: int, emb: int, out: int):
        super().__init__()
        self.in_layers = nn.Sequential(norm(inp), nn.SiLU(), nn.Conv2d(inp, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out))
        self.out_layers = nn.Sequential(
            norm(out), nn.SiLU(), nn.Identity(), zero(nn.Conv2d(out, out, 3, padding=1))
        )  # a dropout stood where the identity is
        self.skip_connection = nn.Identity() if inp == out else nn.Conv2d(inp, out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[1:](torch.addcmul(shift, self.out_layers[0](h), 1 + scale))
        return self.skip_connection(x) + h


class WindowAttention(nn.Module):
    """Attention within windows [B, windows, window^2, C], biased by relative positions."""

    def __init__(self, width: int, window: int, heads: int):
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def bias(self) -> Tensor:
        """[heads, window^2, window^2]: of a query's row and column those of the key are taken."""
        place = torch.arange(self.window, device=self.relative_position_bias_table.device)
        apart = place[:, None] - place + self.window - 1
        index = apart[:, None, :, None] * (2 * self.window - 1) + apart[None, :, None, :]
        return self.relative_position_bias_table[index.reshape(self.window**2, -1)].movedim(-1, 0)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """mask: what is added to the logits, [windows, window^2, window^2]."""
        q, k, v = rearrange(self.qkv(x), "b w n (three h c) -> three b w h n c", three=3, h=self.heads)
        bias = self.bias() if mask is None else self.bias() + mask[:, None]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).expand(*q.shape[:-1], -1))
        return self.proj(rearrange(h, "b w h n c -> b w n (h c)"))


class Mlp(nn.Module):
    """An MLP at each position."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinTransformerBlock(nn.Module):
    """Attention in windows and an MLP (arXiv 2103.14030), with group norms.

    Args:
        side: side of the features in training; not above the window it is one window, unshifted.
        shift: how far the windows are moved.
    """

    def __init__(self, width: int, side: int, heads: int, window: int, shift: int, mlp_ratio: float):
        super().__init__()
        self.window, self.shift = (window, shift) if side > window else (side, 0)
        self.norm1, self.attn = norm(width), WindowAttention(width, self.window, heads)
        self.norm2, self.mlp = norm(width), Mlp(width, int(width * mlp_ratio))

    def mask(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """Keeps opposite borders, which the shift brings into one window, from each other."""
        if not self.shift:
            return None

        def part(size: int) -> Tensor:
            place = torch.arange(size, device=device)
            return (place >= size - self.window).long() + (place >= size - self.shift)

        parts = windows((3 * part(height)[:, None] + part(width))[None, None], self.window)[0, :, :, 0]
        return torch.where(parts[:, None] == parts[:, :, None], 0.0, APART)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm1(x).roll((-self.shift, -self.shift), (2, 3))
        h = self.attn(windows(h, self.window), self.mask(height, width, x.device))
        w = self.window
        h = rearrange(h, "b (y x) (p q) c -> b c (y p) (x q)", y=height // w, p=w, q=w)
        x = x + h.roll((self.shift, self.shift), (2, 3))
        return x + self.mlp(self.norm2(x))


def windows(x: Tensor, window: int) -> Tensor:
    """[B, C, H, W] as [B, windows, window^2, C]."""
    return rearrange(x, "b c (y p) (x q) -> b (y x) (p q) c", p=window, q=window)


class Projection(nn.Module):
    """A convolution of single positions under the name `proj`, with a norm or without."""

    def __init__(self, inp: int, out: int, normed: bool):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inp, out, 1), norm(out) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class BasicLayer(nn.Module):
    """Swin blocks between two projections; every second one has shifted windows."""

    def __init__(
        self, channels: int, side: int, width: int, heads: int, window: int, depth: int, ratio: float, normed: bool
    ):
        super().__init__()
        self.patch_embed, self.patch_unembed = Projection(channels, width, normed), Projection(width, channels, normed)
        self.blocks = nn.Sequential(
            *(SwinTransformerBlock(width, side, heads, window, i % 2 * (window // 2), ratio) for i in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_unembed(self.blocks(self.patch_embed(x)))


class Downsample(nn.Module):
    """Half the sides."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.op = nn.Conv2d(inp, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Twice the sides, by nearest neighbours and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Row(nn.Sequential):
    """Layers, of which the residual blocks see the time."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class UNetModelSwin(Recorded, Features, nn.Module):
    """ResShift's network, which predicts the residual of a latent, [B, C, H, W].

    The released network sees `z_t = r_t + y` scaled to unit variance, the place of t in its table
    and the observation; it predicts `z_0 = r_0 + y`. Here y is the codec's base, and r_t is what
    is diffused. Between the table's times the place is interpolated as the table is made, so that
    students may use any.

    Args:
        process: the process of the released table.
        steps: times in the table.
        codec: gives y; copies of the network share it.
        image_size: side of the latents in training.
        in_channels: C.
        model_channels, channel_mult: width, and that of each level in units of it.
        num_res_blocks: residual blocks of each level.
        attention_resolutions: sides in training at which there are Swin layers.
        num_head_channels, swin_depth, swin_embed_dim, window_size, mlp_ratio, patch_norm: of these.
        lq_size: side of the observations in training; those larger than the latents are brought
            to their size by convolutions.
    """

    def __init__(
        self,
        process: ResShift,
        steps: int,
        codec: Latent,
        image_size: int = 64,
        in_channels: int = 3,
        model_channels: int = 160,
        channel_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: Sequence[int] = (2, 2, 2, 2),
        attention_resolutions: Sequence[int] = (64, 32, 16, 8),
        num_head_channels: int = 32,
        swin_depth: int = 2,
        swin_embed_dim: int = 192,
        window_size: int = 8,
        mlp_ratio: float = 4.0,
        patch_norm: bool = False,
        lq_size: int = 64,
    ):
        super().__init__()
        checks.whole(2, 10_000, steps=steps)
        checks.network(model_channels=model_channels, channel_mult=channel_mult, num_res_blocks=num_res_blocks)
        self.process, self.steps, self.codec, self.model_channels = process, steps, codec, model_channels
        emb, heads = 4 * model_channels, swin_embed_dim // num_head_channels
        swin = (swin_embed_dim, heads, window_size, swin_depth, mlp_ratio, patch_norm)
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.embed = Told(emb)  # nothing at first, so the released weights are all there is
        seen, extract = 3, []
        for i in range(int(math.log2(lq_size / image_size))):
            extract += [nn.Conv2d(seen, 16 * 2**i, 3, padding=1), nn.SiLU(), Downsample(16 * 2**i, 32 * 2**i)]
            seen = 32 * 2**i
        self.feature_extractor = nn.Sequential(*extract)
        widths, side = [model_channels * m for m in channel_mult], image_size
        width = widths[0]
        self.input_blocks = nn.ModuleList([Row(nn.Conv2d(in_channels + seen, width, 3, padding=1))])
        skips = [width]
        for level, target in enumerate(widths):
            for i in range(num_res_blocks[level]):
                there = side in attention_resolutions and i == 0
                self.input_blocks.append(
                    Row(ResBlock(width, emb, target), *([BasicLayer(target, side, *swin)] if there else []))
                )
                skips.append(width := target)
            if level < len(widths) - 1:
                self.input_blocks.append(Row(Downsample(width, width)))
                skips.append(width)
                side //= 2
        self.middle_block = Row(
            ResBlock(width, emb, width), BasicLayer(width, side, *swin), ResBlock(width, emb, width)
        )
        down = [*skips, width]
        self.output_blocks = nn.ModuleList()
        for level, target in reversed(list(enumerate(widths))):
            for i in range(num_res_blocks[level] + 1):
                layers = [ResBlock(width + skips.pop(), emb, target)]
                width = target
                if side in attention_resolutions and i == 0:
                    layers.append(BasicLayer(width, side, *swin))
                if level and i == num_res_blocks[level]:
                    layers.append(Upsample(width))
                    side *= 2
                self.output_blocks.append(Row(*layers))
                down.append(width)
        self.out = nn.Sequential(norm(width), nn.SiLU(), zero(nn.Conv2d(width, in_channels, 3, padding=1)))
        self.feature_widths, self.feature_layer = down, len(self.input_blocks)

    def check_context(self, cond: dict[str, Tensor]) -> None:
        """See `WithContext`: the observations must be images."""
        check_images(cond["low"])

    def index(self, t: Tensor) -> Tensor:
        """The place of times in the table, from 0 to steps - 1, the inverse of `process.grid`."""
        low, high = self.process.t_min, self.process.t_max
        u = (t / low).log().clamp_min(0) / math.log(high / low)
        return (self.steps - 1) * u ** (1 / self.process.power)

    def activations(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Iterator[Tensor]:
        """Features after each input block, the middle and each output block, [B, C, ...]."""
        if (made := self.codec.shape(len(x), x.shape[1:], cond)) != tuple(x.shape):
            raise ValueError(
                f"this network of scale {self.codec.scale} makes latents of {list(made[2:])} for observations of "
                f"{list(cond['low'].shape[-2:])}, got {list(x.shape[-2:])}: give it data of its scale"
            )
        t = self.process.from_ratio((4 * time).exp())
        scale = (1 + self.process.sigma(t) ** 2).rsqrt()
        dtype = self.time_embed[0].weight.dtype
        emb = self.time_embed(embedding(self.index(t), self.model_channels).to(dtype))
        if self.embed:
            emb = emb + self.embed(cond)
        z, low = x + self.codec.base(cond).to(x), self.codec.observed(cond).to(dtype)
        h, skips = torch.cat([(expand(scale, x) * z).to(dtype), self.feature_extractor(low)], dim=1), []
        for block in self.input_blocks:
            yield (h := block(h, emb))
            skips.append(h)
        yield (h := self.middle_block(h, emb))
        for block in self.output_blocks:
            yield (h := block(torch.cat([h, skips.pop()], dim=1), emb))

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.out(last(self.activations(x, time, cond))).to(x.dtype) - self.codec.base(cond).to(x)

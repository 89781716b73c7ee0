"""The VQ autoencoder of latent diffusion (arXiv 2112.10752), under its released names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 16_384  # latents that are compared with the codebook at once


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two convolutions beside a skip."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.norm1, self.conv1 = norm(inp), nn.Conv2d(inp, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if inp != out:
            self.nin_shortcut = nn.Conv2d(inp, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Self-attention over all positions, with one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))  # [B, 1, HW, C]
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape))


class Middle(nn.Module):
    """Two blocks with an attention between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResnetBlock(channels, channels),
            AttnBlock(channels),
            ResnetBlock(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Half the sides; the border is continued on the right and below alone."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the sides, by nearest neighbours and a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one size, then a change of size, if any, under its name."""

    def __init__(self, inp: int, out: int, blocks: int, **move: nn.Module):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(out if i else inp, out) for i in range(blocks))
        self.move = next(iter(move), None)
        if self.move:
            self.add_module(self.move, move[self.move])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return getattr(self, self.move)(x) if self.move else x


class Encoder(nn.Module):
    """Photographs to features, 2^(levels - 1) times smaller."""

    def __init__(self, ch: int, widths: Sequence[int], blocks: int, out: int):
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        moves = [{"downsample": Downsample(width)} for width in widths[:-1]] + [{}]
        pairs = zip([ch, *widths], widths, moves, strict=False)
        self.down = nn.ModuleList(Level(inp, width, blocks, **move) for inp, width, move in pairs)
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Features to photographs; its levels are numbered from the largest size, as the encoder's."""

    def __init__(self, widths: Sequence[int], blocks: int, inp: int):
        super().__init__()
        self.conv_in, self.mid = nn.Conv2d(inp, widths[-1], 3, padding=1), Middle(widths[-1])
        moves = [{}] + [{"upsample": Upsample(width)} for width in widths[1:]]
        pairs = zip([*widths[1:], widths[-1]], widths, moves, strict=True)
        self.up = nn.ModuleList(Level(before, width, blocks + 1, **move) for before, width, move in pairs)
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class VectorQuantizer(nn.Module):
    """Each latent becomes the nearest vector of the codebook; gradients pass straight through."""

    def __init__(self, codes: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)

    def forward(self, z: Tensor) -> Tensor:
        codes, rows = self.embedding.weight, z.detach().movedim(1, -1).flatten(0, -2)
        length = codes.square().sum(1)
        nearest = torch.cat([(length - 2 * part @ codes.T).argmin(1) for part in rows.split(ROWS)])
        found = codes[nearest].reshape(len(z), *z.shape[2:], -1).movedim(-1, 1)
        return z + (found - z).detach()


class VQModelTorch(nn.Module):
    """Photographs [B, 3, H, W] and latents [B, C, H / f, W / f], f = 2^(levels - 1).

    Args:
        embed_dim: channels C of the codebook.
        n_embed: vectors in it.
        ch, ch_mult: width of the convolutions, and that of each level in units of it.
        num_res_blocks: blocks of a level; the decoder has one more.
        z_channels: channels before the codebook.
    """

    def __init__(
        self,
        embed_dim: int = 3,
        n_embed: int = 8192,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 3,
    ):
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.encoder = Encoder(ch, widths, num_res_blocks, z_channels)
        self.decoder = Decoder(widths, num_res_blocks, z_channels)
        self.quantize = VectorQuantizer(n_embed, embed_dim)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z_channels, embed_dim, 1), nn.Conv2d(embed_dim, z_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """Latents before the codebook, in which ResShift diffuses."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """Photographs of the nearest vectors in the codebook."""
        return self.decoder(self.post_quant_conv(self.quantize(z)))

"""What families of video pipelines have in common.

B: samples; C: latent channels; F: latent frames; H, W: latent height, width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.pipelines.network import Cond, Network
from distillkit.pipelines.texts import trimmed
from domains.video.pipelines.decoder import VAE, latent_shape


class Clips(Network):
    """A network on clips [3, F, H, W], whose texts are padded with zeros.

    Attributes:
        size: of a clip, where a user gives none: frames, height and width in pixels.
    """

    codec = VAE
    size: dict[str, int]

    @classmethod
    def latent_shape(cls, root, size):
        shape = latent_shape(root, **cls.size | {name: value for name, value in size.items() if value is not None})
        taken, given = cls.model_config(root)["in_channels"], cls.inputs(root, shape[0])
        if taken != given:
            raise ValueError(
                f"the model in {root} takes {taken} channels, but {cls.pipelines[0]} gives it {given}: this kind is not read"
            )
        return shape

    @classmethod
    def inputs(cls, root, channels: int) -> int:
        """The channels that the pipeline gives its model, for latents of so many."""
        return channels

    @classmethod
    def trim(cls, tables):
        return trimmed(tables, tables["text"].ne(0).any(2), ["text"])

    def times(self, x: Tensor, time: Tensor) -> Tensor:
        """The times [B] or [B, tokens] that the model is told at `time` [B]; x: [B, C, F, H, W]."""
        return time


class FromImage(Clips):
    """A network that is given the first frame of a clip; guidance keeps it.

    Batches hold `image`, [B, 3, H, W] in pixels, in [-1, 1]. The network sees its code [B, N], see
    `ImageVAE`, which begins with the latents of the frame.
    """

    context = ("image",)


class KeepsImage(FromImage):
    """A network that sees the first latent frame without noise, at time 0.

    Its prediction for this frame is the velocity that leads from the noise straight to it.

    Attributes:
        patch: latent places of a token.
    """

    patch = 1

    def forward(self, x, time, cond):
        first = first_frame(x, cond)
        out = super().forward(torch.cat([first, x[:, :, 1:]], 2), time, cond)
        velocity = (x[:, :, :1] - first) / time.reshape(-1, 1, 1, 1, 1).to(x.dtype)
        return torch.cat([velocity, out[:, :, 1:].to(x.dtype)], 2)

    def times(self, x, time):
        tokens = x[0, 0].numel() // self.patch
        later = torch.arange(tokens, device=x.device) >= tokens // x.shape[2]
        return time[:, None] * later


def code_of(cond: Cond) -> Tensor:
    """The code [B, N] of the first frames.

    Raises:
        ValueError: they are not encoded.
    """
    if cond["image"].ndim != 2:
        raise ValueError(
            "first frames are encoded by the pipeline's autoencoder, which could not be read: allow its directory with "
            "load_student(trust=(DIR,)) or --trust DIR"
        )
    return cond["image"]


def first_frame(x: Tensor, cond: Cond) -> Tensor:
    """The latents [B, C, 1, H, W] of the first frames for x [B, C, F, H, W]."""
    return code_of(cond)[:, : x[0, :, 0].numel()].reshape(x[:, :, :1].shape)

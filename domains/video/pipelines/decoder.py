"""The codec between clips and a pipeline's latents, and the sizes of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.files import read_json


def compression(root: Path) -> tuple[int, int, int]:
    """The sizes of a latent: channels, frames of a latent frame, and pixels along its side.

    The pipeline is in `root`.
    """
    vae = read_json(root / "vae" / "config.json")
    if "block_out_channels" in vae:  # CogVideoX
        return vae["latent_channels"], int(vae["temporal_compression_ratio"]), 2 ** (len(vae["block_out_channels"]) - 1)
    return vae["z_dim"], vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)


def latent_shape(root: Path, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """`[C, F', H', W']` of a clip of the pipeline in `root`.

    Raises:
        ValueError: clips of this size cannot be encoded or cut into patches.
    """
    channels, time, space = compression(root)
    transformer = read_json(root / "transformer" / "config.json")
    patch = transformer["patch_size"]
    if isinstance(patch, int):
        patch = (transformer.get("patch_size_t") or 1, patch, patch)
    if frames <= 1 or frames % time != 1:
        raise ValueError(f"a clip has {time} k + 1 frames, at least {time + 1}, got {frames}: set teacher.frames")
    if (frames // time + 1) % patch[0]:
        raise ValueError(
            f"{frames} frames are {frames // time + 1} latent ones, which are no multiple of {patch[0]}: set teacher.frames to "
            f"{frames + time * (-(frames // time + 1) % patch[0])}"
        )
    for name, size, step in (("height", height, space * patch[1]), ("width", width, space * patch[2])):
        if size < 1 or size % step:
            raise ValueError(f"the {name} of a clip must be a multiple of {step}, got {size}: set teacher.{name}")
    return channels, frames // time + 1, height // space, width // space


class VAE(PipelineCodec):
    """Clips [B, 3, F, H, W] in [-1, 1] and latents [B, C, F', H', W'], by a pipeline's VAE."""

    kinds = ("AutoencoderKLWan", "AutoencoderKLCogVideoX")

    def units(self) -> tuple[Tensor, Tensor]:
        config = self.config
        if "scaling_factor" in config:  # CogVideoX
            mean, std = torch.zeros(1), torch.full((1,), 1 / config["scaling_factor"])
        else:
            mean, std = torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"])
        return mean.reshape(-1, 1, 1, 1), std.reshape(-1, 1, 1, 1)

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that the VAE decodes to.

        The first latent frame is one frame, except for an even number of CogVideoX's: then each is
        four.
        """
        _, time, space = compression(self.root)
        _, frames, height, width = event_shape
        first = time - 1 if frames % 2 or "z_dim" in self.config else 0
        return 3, time * frames - first, space * height, space * width

"""The codec between images and the latents of image pipelines, and the sizes of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.files import read_json


def factor(vae: Mapping[str, Any]) -> int:
    """Pixels along the side of a latent, by the autoencoder's configuration."""
    return 2 ** (len(vae.get("block_out_channels") or vae["encoder_block_out_channels"]) - 1)


def pixels(root: Path, sides: Sequence[int]) -> list[int]:
    """Height and width of an image in pixels, from those of its latent."""
    return [side * factor(read_json(root / "vae" / "config.json")) for side in sides]


def latent_size(root: Path, size: Mapping[str, int | None], default: int, patch: int = 1) -> tuple[int, int]:
    """Height and width of a latent.

    Args:
        root: the pipeline's directory.
        size: `height` and `width` of an image in pixels; None is the default.
        default: side of a latent where none is given.
        patch: side of the model's patches, in latents.

    Raises:
        ValueError: images of this size cannot be encoded or cut into patches.
    """
    pixels = factor(read_json(root / "vae" / "config.json"))
    sides = [size.get(name) or default * pixels for name in ("height", "width")]
    for name, side in zip(("height", "width"), sides, strict=True):
        if side < 1 or side % (pixels * patch):
            raise ValueError(
                f"the {name} of an image must be a multiple of {pixels * patch}, got {side}: set teacher.{name}"
            )
    return sides[0] // pixels, sides[1] // pixels


def same_size(size: Mapping[str, int | None], height: int, width: int) -> tuple[int, int]:
    """Height and width of a model that knows this one size of images, in pixels.

    Raises:
        ValueError: another size is asked for.
    """
    for name, own in (("height", height), ("width", width)):
        if (asked := size.get(name) or own) != own:
            raise ValueError(
                f"the pipeline makes images of {height} x {width} alone, got {name} {asked}: leave teacher.{name} out"
            )
    return height, width


class VAE(PipelineCodec):
    """Images [B, 3, H, W] in [-1, 1] and latents [B, C, H', W'], by a pipeline's AutoencoderKL."""

    kinds = ("AutoencoderKL",)

    def units(self) -> tuple[Tensor, Tensor]:
        scale, shift = self.config["scaling_factor"], self.config.get("shift_factor") or 0.0
        mean, std = self.config.get("latents_mean"), self.config.get("latents_std")
        if mean and std:  # fine-tuned SDXL
            return (torch.tensor(value).reshape(-1, 1, 1) for value in (mean, [s / scale for s in std]))
        return torch.tensor(float(shift)), torch.tensor(1 / scale)

    def data_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        side = factor(self.config)
        return 3, side * event_shape[1], side * event_shape[2]


class DC(VAE):
    """Images [B, 3, H, W] in [-1, 1] and latents [B, C, H', W'], by a pipeline's AutoencoderDC.

    It has no posterior (arXiv 2410.10733).
    """

    kinds = ("AutoencoderDC",)

    def into(self, x: Tensor) -> Tensor:
        return self.vae.encode(x).latent

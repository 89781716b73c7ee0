"""From latents to clips, and how large they are."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.video.pipelines.files import load, local, read_json

VAES = ("AutoencoderKLWan", "AutoencoderKLCogVideoX")


def latent_shape(root: Path, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """`[C, F', H', W']` of a clip of the pipeline in `root`.

    Raises:
        ValueError: clips of this size cannot be encoded or cut into patches.
    """
    vae, transformer = read_json(root / "vae" / "config.json"), read_json(root / "transformer" / "config.json")
    if "block_out_channels" in vae:  # CogVideoX
        channels, time, space = (
            vae["latent_channels"],
            vae["temporal_compression_ratio"],
            len(vae["block_out_channels"]),
        )
        time, space = int(time), 2 ** (space - 1)
    else:
        channels, time, space = vae["z_dim"], vae.get("scale_factor_temporal", 4), vae.get("scale_factor_spatial", 8)
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


class Decoder:
    """Latents [N, C, F', H', W'] to clips [N, 3, F, H, W] in [-1, 1], on the CPU, with the pipeline's VAE in float32.

    The VAE is read when it is needed first, works on a GPU if there is one, and on one clip at a time.

    Args:
        path, download: as of the teacher.
    """

    def __init__(self, path: str, download: bool = False):
        self.root = local(path, download)

    @cached_property
    def vae(self) -> Any:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load(self.root, "vae", VAES, torch.float32).requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        if hasattr(config, "scaling_factor"):  # CogVideoX
            mean, std = torch.zeros(1), torch.full((1,), 1 / config.scaling_factor)
        else:
            mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        z = latents.float().cpu() * std.reshape(-1, 1, 1, 1) + mean.reshape(-1, 1, 1, 1)
        device = next(self.vae.parameters()).device
        clips = [self.vae.decode(one.to(device), return_dict=False)[0].clamp(-1, 1).cpu() for one in z.split(1)]
        return torch.cat(clips)

"""The codecs between clips and a pipeline's latents, and the sizes of both.

B: samples; C: latent channels; F, H, W: frames, height and width of a clip; with a prime (F') those
of latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from distillkit.pipelines.codec import PipelineCodec
from distillkit.pipelines.files import import_diffusers, read_index, read_json


def compression(root: Path) -> tuple[int, int, int]:
    """The sizes of a latent: channels, frames of a latent frame, and pixels along its side.

    The pipeline is in `root`.
    """
    vae = read_json(root / "vae" / "config.json")
    if "spatio_temporal_scaling" in vae:  # LTX
        halved = 2 ** sum(vae["spatio_temporal_scaling"])
        time = vae.get("temporal_compression_ratio") or vae["patch_size_t"] * halved
        return vae["latent_channels"], time, vae.get("spatial_compression_ratio") or vae["patch_size"] * halved
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


class LTXVAE(VAE):
    """The same for LTX.

    The pipeline decodes without noise by default. A decoder that draws noise of its own draws the
    same for every clip here.
    """

    kinds = ("AutoencoderKLLTXVideo",)

    def units(self):
        mean, std = (value.float().reshape(-1, 1, 1, 1) for value in (self.vae.latents_mean, self.vae.latents_std))
        return mean, std / self.config["scaling_factor"]

    def out_of(self, z):
        time = z.new_zeros(len(z)) if self.config["timestep_conditioning"] else None
        with torch.random.fork_rng([z.device] if z.is_cuda else []):
            torch.manual_seed(0)
            return self.vae.decode(z, time, return_dict=False)[0]

    def data_shape(self, event_shape):
        _, time, space = compression(self.root)
        _, frames, height, width = event_shape
        return 3, time * (frames - 1) + 1, space * height, space * width


class ImageVAE(VAE):
    """The same for clips whose first frame is given: it encodes that too, `conditions["image"]`.

    What the pipelines draw from the autoencoder's posterior is its mean here, so that all steps,
    and teacher and student, see the same.
    """

    @torch.no_grad()
    def conditions(self, cond, event_shape):
        image = cond["image"]
        if image.ndim == 2:
            return cond
        clip = self.data_shape(event_shape)
        if image.shape[1:] != (3, *clip[2:]):
            raise ValueError(
                f"the first frame of a clip is an image of shape {[3, *clip[2:]]}, got {list(image.shape[1:])}: resize it"
            )
        self.vae.to(image.device)
        codes = [self.code(one, clip[1]) for one in image.float().split(1)]
        return {**cond, "image": torch.cat(codes)}

    def code(self, image: Tensor, frames: int) -> Tensor:
        """The code [1, N] of an image [1, 3, H, W], which begins with its latents in their units.

        Args:
            image: in [-1, 1].
            frames: of a clip.
        """
        mean, std = (value.to(image.device) for value in self.units())
        return ((self.into(image[:, :, None]) - mean) / std).flatten(1)


class WanImageVAE(ImageVAE):
    """Of Wan: the code has the latents of a clip that is grey after the image.

    For Wan 2.1 the tokens of the pipeline's image encoder follow.
    """

    def code(self, image, frames):
        mean, std = (value.to(image.device) for value in self.units())
        clip = torch.cat([image[:, :, None], image.new_zeros(1, 3, frames - 1, *image.shape[2:])], 2)
        latents = ((self.into(clip) - mean) / std).flatten(1)
        return latents if self.look is None else torch.cat([latents, self.tokens(image).flatten(1)], 1)

    @cached_property
    def look(self) -> tuple[Any, Any] | None:
        """The image encoder, float32, and what prepares images for it; None if there is none."""
        if read_json(self.root / "transformer" / "config.json").get("image_dim") is None:
            return None
        import_diffusers()
        import transformers

        read_index(self.root)  # no code of its own
        options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
        try:
            encoder = transformers.CLIPVisionModel.from_pretrained(str(self.root / "image_encoder"), **options)
            prepare = transformers.CLIPImageProcessor.from_pretrained(
                str(self.root / "image_processor"), local_files_only=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"the image encoder in {self.root} does not load: {str(error).splitlines()[0]}") from None
        return encoder.requires_grad_(False).eval(), prepare

    def tokens(self, image: Tensor) -> Tensor:
        """The tokens [1, tokens, D] of an image: the encoder's last layer but one."""
        encoder, prepare = self.look
        pixels = ((image[0] + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        seen = prepare(images=Image.fromarray(pixels), return_tensors="pt").to(image.device)
        return encoder.to(image.device)(**seen, output_hidden_states=True).hidden_states[-2]


class CogVideoXImageVAE(ImageVAE):
    """Of CogVideoX, whose version 1.5 divides the image's latents by the scale twice."""

    def code(self, image, frames):
        code = super().code(image, frames)
        return code / self.config["scaling_factor"] ** 2 if self.config.get("invert_scale_latents") else code


class LTXImageVAE(LTXVAE, ImageVAE):
    """Of LTX, whose pipeline leaves the image's latents without the scaling factor."""

    def code(self, image, frames):
        return super().code(image, frames) / self.config["scaling_factor"]

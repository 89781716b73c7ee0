"""Stable Diffusion's upscaler from a directory of the package diffusers (extra `hf`).

B: photographs; C: latent channels; H, W: height and width of an observation, and of its latent.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.diffusion.denoiser import Cond, Denoiser
from distillkit.diffusion.process import DiscreteVariancePreserving
from distillkit.networks.blocks import Told
from distillkit.networks.dtypes import Dtype
from distillkit.pipelines.files import import_diffusers, load, local, read_index, read_json
from distillkit.pipelines.schedulers import table, variance_preserving
from distillkit.spec import Recorded
from distillkit.teachers.base import Teacher
from domains.super_resolution.codec import Latent
from domains.super_resolution.network import check_images

PIPELINE, UNET, VAES = "StableDiffusionUpscalePipeline", "UNet2DConditionModel", ("AutoencoderKL",)
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")  # of which the table is read
SCALING = 0.08333  # of its latents, whatever the VAE's configuration says, as in the pipeline
NULL = 4.0  # is added to observations that stand for the negative prompt


class VAE(Latent):
    """Latents [B, C, H, W] of order one, by the pipeline's VAE.

    Args:
        path: the pipeline's directory.
        factor, scale: as in `Latent`.
    """

    def __init__(self, path: str, factor: int = 4, scale: int = 4):
        super().__init__(path, factor, 1, scale, residual=False)

    def read(self, place: Path) -> nn.Module:
        return load(place, "vae", VAES, torch.float32)

    def into(self, autoencoder, x):
        return autoencoder.encode(x).latent_dist.mode() * SCALING

    def out_of(self, autoencoder, z):
        return autoencoder.decode(z / SCALING, return_dict=False)[0]


class UpscaleNetwork(Recorded, nn.Module):
    """The pipeline's U-Net: it sees noisy latents beside noised observations, and a text.

    The pipeline draws the observation's noise anew for each photograph. Here it follows from the
    photograph, see `grain`, so that all steps, and teacher and student, see the same.

    Args:
        config: config.json of the U-Net.
        texts: shape `[2, tokens, D]` of the embeddings of the prompt and of the negative prompt.
        num_steps: times in the table of the process.
        noise_level: place of the observation's noise in its table, and the class of the U-Net.
        low_process: that table.
    """

    def __init__(
        self,
        config: dict[str, Any],
        texts: list[int],
        num_steps: int,
        noise_level: int,
        low_process: DiscreteVariancePreserving,
    ):
        super().__init__()
        self.model = getattr(import_diffusers(), UNET).from_config(config)
        self.register_buffer("texts", torch.zeros(texts))
        self.embed = Told(texts[2])  # a vector that is added to all tokens of the text
        self.num_steps, self.noise_level, self.low_process = num_steps, noise_level, low_process

    def check_context(self, cond: Cond) -> None:
        """See `WithContext`: the observations must be images."""
        check_images(cond["low"])

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        """The U-Net's prediction, like x [B, C, H, W]; time: [B], a share of the table's length."""
        low = cond["low"].float()
        if low.shape[-2:] != x.shape[-2:]:
            raise ValueError(
                f"latents of {list(x.shape[-2:])} were made for observations of {list(low.shape[-2:])}: give these"
            )
        null = low.flatten(1).amax(1) > NULL / 2
        low = torch.where(null[:, None, None, None], low - NULL, low)
        level = torch.full((len(x),), self.noise_level, device=x.device)
        seen = self.low_process.add_noise(low, grain(low), level.to(low.dtype))
        text = self.texts[null.long()]
        if self.embed:
            text = text + self.embed(cond)[:, None]
        inputs, text = (y.to(self.model.dtype) for y in (torch.cat([x, seen.to(x.dtype)], dim=1), text))
        return self.model(inputs, self.num_steps * time, text, class_labels=level, return_dict=False)[0]


def grain(images: Tensor) -> Tensor:
    """Unit Gaussian noise that follows from images [B, 3, H, W] in [-1, 1] of 8 bits.

    Each image has a noise of its own, the same on every device but for rounding.
    """
    place = torch.arange(images[0].numel(), device=images.device)
    levels = ((images.float() + 1) * 127.5).round().long().flatten(1)
    key = (levels * mixed(place)).sum(1, keepdim=True)
    u, v = ((mixed(mixed(key) + 2 * place + i).float() + 0.5) / 2**32 for i in (0, 1))
    return ((-2 * u.log()).sqrt() * (math.tau * v).cos()).reshape(images.shape)  # Box and Muller's


def mixed(x: Tensor) -> Tensor:
    """Integers as others in [0, 2^32) without visible order (MurmurHash3's last step), int64."""
    x = x & 0xFFFFFFFF
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


class SDUpscale(Teacher):
    """StableDiffusionUpscalePipeline: photographs 4 times larger, by latent diffusion.

    Batches hold `data` and `low` as everywhere in the domain. The text encoder is run once, at the
    start, and dropped. The null condition is the negative prompt, so kappa is the pipeline's
    `guidance_scale`. The teacher samples with DDIM on the pipeline's times and ends with the
    denoised sample of the last one.

    Args:
        path: directory of the pipeline; with `download` also the name of a repository on the hub.
        prompt, negative_prompt: texts, the same for all photographs.
        noise_level: noise that is added to observations, a place in their own table: more noise
            hides more of their faults, and of their content.
        scale: scale of the data, which must be the pipeline's.
        crop: side of the data's photographs in training.
        steps: number of steps with which the teacher counts as at its best.
        download: fetch the pipeline from the hub.
        dtype: see `BaseTeacher`.
    """

    provides = frozenset({"denoiser", "classes", "decoder"})
    apart = Teacher.apart | {"codec", "scheduler"}
    guidable = True
    best = {"solver": "ddim", "steps": 75}

    def __init__(
        self,
        path: str,
        prompt: str = "",
        negative_prompt: str = "",
        noise_level: int = 20,
        scale: int = 4,
        crop: int = 256,
        steps: int = 75,
        download: bool = False,
        dtype: Dtype = "float32",
    ):
        checks.whole(1, steps=steps, crop=crop)
        root = local(path, download)
        index = read_index(root)
        if index.get("_class_name") != PIPELINE:
            raise ValueError(f"{root} holds a {index.get('_class_name')}, but what is needed here is a {PIPELINE}")
        scheduler, low_scheduler = (load(root, part, SCHEDULERS) for part in ("scheduler", "low_res_scheduler"))
        if scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"):
            raise ValueError(
                f"{root / 'scheduler'} cuts denoised samples (clip_sample, thresholding), which is not read: turn it off"
            )
        vae = read_json(root / "vae" / "config.json")
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        if factor != scale or crop % scale:
            raise ValueError(
                f"this upscaler makes photographs {factor} times larger, whose sides are multiples of {factor}, got scale "
                f"{scale} and crop {crop}: set data.scale and data.crop"
            )
        model = load(root, "unet", (UNET,), torch.float32)
        most = min(index.get("max_noise_level") or 350, model.config.num_class_embeds - 1)
        checks.whole(0, most, noise_level=noise_level)
        if model.config.in_channels != vae["latent_channels"] + 3:
            raise ValueError(
                f"the U-Net in {root} has {model.config.in_channels} input channels, not latents and photographs"
            )
        texts = embed(root, [prompt, negative_prompt])
        (process, prediction), low_process = variance_preserving(scheduler), table(low_scheduler.config)
        config = {key: value for key, value in model.config.items() if key[:1] != "_"}
        with torch.device("meta"):  # the U-Net is there already
            network = UpscaleNetwork(config, list(texts.shape), process.num_steps, noise_level, low_process)
        network.model, network.texts, network.embed = model, texts, Told(texts.shape[2])
        shape = (vae["latent_channels"], crop // scale, crop // scale)
        denoiser = Denoiser(network, process, prediction)
        super().__init__(denoiser, shape, context=("low",), codec=VAE(str(root), factor, scale), dtype=dtype)
        self.best = {"solver": "ddim", "steps": steps}
        self._id, self.scheduler = Path(path).name, import_diffusers().DDIMScheduler.from_config(scheduler.config)

    @property
    def id(self) -> str:
        return self._id

    def null_condition(self, cond: Cond) -> Cond:
        """The negative prompt, told by observations outside of their range."""
        return {**cond, "low": cond["low"] + NULL}

    def grid(self, steps: int) -> Tensor:
        """The pipeline's times."""
        self.scheduler.set_timesteps(steps)
        return self.scheduler.timesteps.double()


@torch.no_grad()
def embed(root: Path, prompts: list[str]) -> Tensor:
    """The text encoder's embeddings of prompts, [N, tokens, D], on the CPU."""
    absent = dict.fromkeys(("unet", "vae", "scheduler", "low_res_scheduler", "safety_checker", "watermarker"))
    cls = getattr(import_diffusers(), PIPELINE)
    try:
        pipeline = cls.from_pretrained(str(root), local_files_only=True, use_safetensors=True, **absent)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"the text encoder in {root} does not load: {str(error).splitlines()[0]}") from None
    return pipeline.encode_prompt(prompts, "cpu", 1, False)[0].float()

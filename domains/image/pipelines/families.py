"""The families of image pipelines by name."""

from domains.image.pipelines.dit import DiT
from domains.image.pipelines.pixart import PixArtAlpha, PixArtSigma
from domains.image.pipelines.pixels import DDIM, DDPM
from domains.image.pipelines.stable_diffusion import StableDiffusion, StableDiffusionXL

FAMILIES = {
    cls.__name__: cls for cls in (DDPM, DDIM, DiT, StableDiffusion, StableDiffusionXL, PixArtAlpha, PixArtSigma)
}

"""The families of image pipelines by name."""

from domains.image.pipelines.dit import DiT
from domains.image.pipelines.flux import Flux
from domains.image.pipelines.pixart import PixArtAlpha, PixArtSigma
from domains.image.pipelines.pixels import DDIM, DDPM
from domains.image.pipelines.sana import Sana
from domains.image.pipelines.stable_diffusion import StableDiffusion, StableDiffusionXL
from domains.image.pipelines.stable_diffusion_3 import StableDiffusion3

KINDS = (
    DDPM,
    DDIM,
    DiT,
    StableDiffusion,
    StableDiffusionXL,
    PixArtAlpha,
    PixArtSigma,
    StableDiffusion3,
    Flux,
    Sana,
)
FAMILIES = {kind.__name__: kind for kind in KINDS}

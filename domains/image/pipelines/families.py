"""The families of image pipelines by name."""

from domains.image.pipelines.dit import DiT
from domains.image.pipelines.flux import Flux
from domains.image.pipelines.flux_2 import Flux2
from domains.image.pipelines.pixart import PixArtAlpha, PixArtSigma
from domains.image.pipelines.pixels import DDIM, DDPM
from domains.image.pipelines.qwen_image import QwenImage
from domains.image.pipelines.sana import Sana
from domains.image.pipelines.stable_diffusion import StableDiffusion, StableDiffusionXL
from domains.image.pipelines.stable_diffusion_3 import StableDiffusion3
from domains.image.pipelines.z_image import ZImage

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
    Flux2,
    QwenImage,
    Sana,
    ZImage,
)
FAMILIES = {kind.__name__: kind for kind in KINDS}

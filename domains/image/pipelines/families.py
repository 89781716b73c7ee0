"""The families of image pipelines by name."""

from domains.image.pipelines.flux import Flux
from domains.image.pipelines.flux_2 import Flux2
from domains.image.pipelines.qwen_image import QwenImage
from domains.image.pipelines.sana import Sana
from domains.image.pipelines.stable_diffusion import StableDiffusion
from domains.image.pipelines.stable_diffusion_3 import StableDiffusion3
from domains.image.pipelines.z_image import ZImage

FAMILIES = {cls.__name__: cls for cls in (StableDiffusion, StableDiffusion3, Flux, Flux2, QwenImage, Sana, ZImage)}

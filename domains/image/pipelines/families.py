"""The families of image pipelines by name."""

from domains.image.pipelines.qwen_image import QwenImage
from domains.image.pipelines.stable_diffusion import StableDiffusion
from domains.image.pipelines.z_image import ZImage

FAMILIES = {cls.__name__: cls for cls in (StableDiffusion, QwenImage, ZImage)}

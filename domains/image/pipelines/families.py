"""The families of image pipelines by name."""

from domains.image.pipelines.stable_diffusion import StableDiffusion

FAMILIES = {cls.__name__: cls for cls in (StableDiffusion,)}

"""Tiny random image pipelines with tables of noise levels, saved as the released ones are."""

import torch
from tiny_pipelines import autoencoder, clip, texts, wake

LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's table


def pixels(folder, kind="DDPM", seed=0, **scheduler):
    """A tiny DDPMPipeline or DDIMPipeline in `folder`: images of 16 pixels, cut in sampling."""
    import diffusers

    torch.manual_seed(seed)
    unet = diffusers.UNet2DModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=3, out_channels=3, sample_size=16, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )  # fmt: skip
    made = getattr(diffusers, f"{kind}Scheduler")(**scheduler)
    pipeline = getattr(diffusers, f"{kind}Pipeline")(unet=wake(unet), scheduler=made)
    pipeline.save_pretrained(folder)
    return pipeline


def dit(folder, seed=0, **scheduler):
    """A tiny DiTPipeline in `folder`: images of 16 pixels, latents of 8, 1000 classes."""
    import diffusers

    torch.manual_seed(seed)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8
    )
    own = diffusers.DDIMScheduler(**{"clip_sample": False} | scheduler)
    pipeline = diffusers.DiTPipeline(
        transformer=wake(transformer), vae=autoencoder(seed, scaling_factor=0.18215), scheduler=own
    )
    pipeline.save_pretrained(folder)
    return pipeline


def stable_diffusion_xl(folder, seed=0, zeros=True, scheduler=None):
    """A tiny StableDiffusionXLPipeline in `folder`: images of 32 pixels, latents of 16."""
    import diffusers

    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, out_channels=4, cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, norm_num_groups=4, sample_size=16, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32, use_linear_projection=True,
    )  # fmt: skip
    released = LATENT | {"timestep_spacing": "leading", "steps_offset": 1}
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(seed, scaling_factor=0.13025), **clip(), unet=wake(unet),
        **{f"{name}_2": part for name, part in clip(projected=True).items()},
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(**released),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return pipeline


def pixart(folder, kind="Alpha", seed=0, side=8, **scheduler):
    """A tiny PixArtAlphaPipeline or PixArtSigmaPipeline in `folder`: images of 2 * side pixels.

    As of the released models, those of 256 pixels (side 128) of Alpha are told the images' size.
    """
    import diffusers

    torch.manual_seed(seed)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=24,
        sample_size=side, caption_channels=32, use_additional_conditions=side == 128 and kind == "Alpha",
    )  # fmt: skip
    pipeline = getattr(diffusers, f"PixArt{kind}Pipeline")(
        transformer=wake(transformer),
        vae=autoencoder(seed, scaling_factor=0.18215),
        scheduler=diffusers.DPMSolverMultistepScheduler(**scheduler),
        **texts("T5"),
    )
    pipeline.save_pretrained(folder)
    return pipeline

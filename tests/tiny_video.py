"""Tiny random video pipelines of the package diffusers, saved as the released ones are."""

from functools import partial

import torch
from tiny_pipelines import texts, wake


def wan_image(folder, looks=False, two=False, per_token=False, seed=0):
    """A tiny WanImageToVideoPipeline, as 2.1 (`looks`), 2.2 (`two`) or 2.2 TI2V (`per_token`)."""
    import diffusers
    import transformers

    torch.manual_seed(seed)
    mean, std = torch.randn(16).tolist(), (0.5 + torch.rand(16)).tolist()
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=mean, latents_std=std,
    )  # fmt: skip
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "ffn_dim": 32, "num_layers": 2}
    sizes |= {"in_channels": 16 if per_token else 36, "out_channels": 16, "rope_max_seq_len": 32}
    sizes |= {"image_dim": 8, "added_kv_proj_dim": 24} if looks else {}
    one, other = (wake(diffusers.WanTransformer3DModel(**sizes), seed) for seed in (3, 4))
    parts = {"transformer": one, **({"transformer_2": other, "boundary_ratio": 0.7} if two else {})}
    if looks:
        config = transformers.CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
        )
        square = {"height": 16, "width": 16}
        parts["image_encoder"] = transformers.CLIPVisionModel(config).eval()
        parts["image_processor"] = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=square)
    pipeline = diffusers.WanImageToVideoPipeline(
        vae=wake(vae), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), expand_timesteps=per_token,
        **parts, **texts("UMT5"),
    )  # fmt: skip
    # the pipeline's own needs the package ftfy, which repairs broken texts and leaves these alone
    pipeline._get_t5_prompt_embeds = partial(diffusers.WanPipeline._get_t5_prompt_embeds, pipeline)
    pipeline.save_pretrained(folder)
    return pipeline


def cogvideox_image(folder, newer=False, seed=0):
    """A tiny CogVideoXImageToVideoPipeline, as 1.0 or as 1.5: clips of 16 x 32 pixels."""
    import diffusers

    torch.manual_seed(seed)
    own = {"patch_size_t": 2, "ofs_embed_dim": 8} if newer else {"use_learned_positional_embeddings": True}
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=8, text_embed_dim=32,
        num_layers=2, sample_width=4, sample_height=2, sample_frames=9, patch_size=2, max_text_seq_length=16,
        use_rotary_positional_embeddings=True, **own,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4, scaling_factor=0.7, invert_scale_latents=newer,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    released = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0}
    released |= {"timestep_spacing": "trailing", "clip_sample": False}
    pipeline = diffusers.CogVideoXImageToVideoPipeline(
        transformer=wake(transformer),
        vae=vae.eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(**released),
        **texts("T5"),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def ltx(folder, image=False, timed=False, seed=0):
    """A tiny LTXPipeline or LTXImageToVideoPipeline: sides are multiples of 32, frames 8 k + 1.

    The decoder is told a time if `timed`.
    """
    import diffusers

    torch.manual_seed(seed)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), timestep_conditioning=timed,
        decoder_inject_noise=(timed, False, False, False, False), scaling_factor=0.8,
    )  # fmt: skip
    vae.latents_mean, vae.latents_std = torch.randn(8), 0.5 + torch.rand(8)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    cls = diffusers.LTXImageToVideoPipeline if image else diffusers.LTXPipeline
    pipeline = cls(transformer=wake(transformer), vae=vae.eval(), scheduler=scheduler, **texts("T5"))
    pipeline.save_pretrained(folder)
    return pipeline

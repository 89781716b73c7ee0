"""Tiny random pipelines of the package diffusers, saved as the released ones are."""

import torch

WORDS = ["[PAD]", "[UNK]", "a", "cat", "dog", "runs", "sleeps", "on", "the", "moon", "blurry"]


def texts(kind: str) -> dict:
    """A tokenizer of a few words and a text encoder."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    sizes = {"d_model": 32, "d_ff": 37, "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": len(WORDS)}
    config = getattr(transformers, f"{kind}Config")(**sizes, feed_forward_proj="gated-gelu")
    return {"tokenizer": tokenizer, "text_encoder": getattr(transformers, f"{kind}EncoderModel")(config).eval()}


def clip(projected: bool = False) -> dict:
    """A tokenizer of a few words, seven tokens long, and a text encoder of CLIP."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A [PAD]", special_tokens=[("[PAD]", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="[PAD]", model_max_length=7
    )
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"projection_dim": 32} if projected else {}
    config = transformers.CLIPTextConfig(
        **sizes, vocab_size=len(WORDS), max_position_embeddings=7, bos_token_id=1, eos_token_id=0, pad_token_id=0
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return {"tokenizer": tokenizer, "text_encoder": kind(config).eval()}


def autoencoder(seed: int = 0, latents: int = 4, **config):
    """A tiny AutoencoderKL: images of sides twice as long as the latents'."""
    import diffusers

    torch.manual_seed(seed)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=latents,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **config,
    )  # fmt: skip
    return vae.eval()


def stable_diffusion(folder, seed=0, **scheduler):
    """A tiny StableDiffusionPipeline in `folder`: images of 32 pixels, latents of 16."""
    import diffusers

    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, out_channels=4, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, norm_num_groups=4, sample_size=16,
    )  # fmt: skip
    released = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    released |= {"set_alpha_to_one": True, "steps_offset": 1}
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder(seed, scaling_factor=0.18215), **clip(), unet=wake(unet),
        scheduler=diffusers.DDIMScheduler(**released | scheduler),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return pipeline


def wake(model: torch.nn.Module, seed: int = 3) -> torch.nn.Module:
    """All layers of the transformer have a say, those that look at the text too."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5
    return model.eval()


def wan(folder, scheduler=None, two=False, per_token=False, seed=0):
    """A tiny WanPipeline in `folder`: clips of 4 k + 1 frames, sides multiples of 16."""
    import diffusers

    torch.manual_seed(seed)
    mean, std = torch.randn(16).tolist(), (0.5 + torch.rand(16)).tolist()
    vae = diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=mean, latents_std=std,
    )  # fmt: skip
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 32, "ffn_dim": 32, "num_layers": 2}
    one, other = (wake(diffusers.WanTransformer3DModel(**sizes, rope_max_seq_len=32), seed) for seed in (3, 4))
    parts = {"transformer": one, **({"transformer_2": other, "boundary_ratio": 0.7} if two else {})}
    pipeline = diffusers.WanPipeline(
        vae=vae.eval(),
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        expand_timesteps=per_token,
        **parts,
        **texts("UMT5"),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def cogvideox(folder, rotary=False, frames_in_patch=None, seed=0, **scheduler):
    """A tiny CogVideoXPipeline in `folder`: latents of 4 channels, sides multiples of 16."""
    import diffusers

    torch.manual_seed(seed)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=32,
        num_layers=2, sample_width=4, sample_height=2, sample_frames=9, patch_size=2, patch_size_t=frames_in_patch,
        max_text_seq_length=16, use_rotary_positional_embeddings=rotary,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=2, temporal_compression_ratio=4, scaling_factor=1.15258426,
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
    )  # fmt: skip
    released = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 3.0}
    released |= {"timestep_spacing": "trailing", "clip_sample": False}
    pipeline = diffusers.CogVideoXPipeline(
        transformer=wake(transformer),
        vae=vae.eval(),
        scheduler=diffusers.CogVideoXDDIMScheduler(**released | scheduler),
        **texts("T5"),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def upscaler(folder, seed=0, low=None, **scheduler):
    """A tiny StableDiffusionUpscalePipeline in `folder`: photographs 4 times larger."""
    import diffusers

    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=7, out_channels=4, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, norm_num_groups=4, num_class_embeds=1000, only_cross_attention=(True, False),
        use_linear_projection=True,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, scaling_factor=0.08333,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    released = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "scaled_linear", "clip_sample": False}
    released |= {"prediction_type": "v_prediction", "set_alpha_to_one": False, "steps_offset": 1}
    pipeline = diffusers.StableDiffusionUpscalePipeline(
        vae=vae.eval(),
        **clip(),
        unet=wake(unet),
        low_res_scheduler=diffusers.DDPMScheduler(**{"beta_schedule": "squaredcos_cap_v2"} | (low or {})),
        scheduler=diffusers.DDIMScheduler(**released | scheduler),
        max_noise_level=350,
    )
    pipeline.save_pretrained(folder)
    return pipeline

"""Tiny random Stable Diffusion 3, FLUX.1 and Sana, saved as the released ones are."""

import diffusers
import torch
import transformers
from tiny_pipelines import WORDS, autoencoder, clip, texts, wake


def third(parts: dict, number: int) -> dict:
    """Parts of a pipeline under the names of its encoder of this number."""
    return {f"{name}_{number}": part for name, part in parts.items()}


def t5(width: int) -> dict:
    """The tokenizer of `texts` and a T5 with tokens of this width."""
    config = transformers.T5Config(
        d_model=width, d_ff=37, d_kv=8, num_heads=4, num_layers=2, vocab_size=len(WORDS), feed_forward_proj="gated-gelu"
    )
    return texts("T5") | {"text_encoder": transformers.T5EncoderModel(config).eval()}


def stable_diffusion_3(folder, with_t5=True, seed=0, **scheduler):
    """A tiny StableDiffusion3Pipeline in `folder`: images of 32 pixels, latents of 16."""
    torch.manual_seed(seed)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=80, caption_projection_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=16,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=wake(transformer),
        vae=autoencoder(seed, 16, scaling_factor=1.5305, shift_factor=0.0609),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | scheduler),
        **clip(projected=True),
        **third(clip(projected=True), 2),
        **third(t5(80) if with_t5 else {"tokenizer": None, "text_encoder": None}, 3),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def flux(folder, dev=True, seed=0, **scheduler):
    """A tiny FluxPipeline in `folder`, FLUX.1-dev or -schnell: latents of half the pixels."""
    torch.manual_seed(seed)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=dev, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    released = {"shift": 3.0, "use_dynamic_shifting": True} if dev else {"shift": 1.0}
    pipeline = diffusers.FluxPipeline(
        transformer=wake(transformer),
        vae=autoencoder(seed, 16, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**released | scheduler),
        **clip(),
        **third(t5(32), 2),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def gemma() -> dict:
    """A tokenizer of a few words that begins each text, and a Gemma 2."""
    from tokenizers import processors

    tokenizer = texts("T5")["tokenizer"]
    begin = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", len(WORDS))])
    tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    tokenizer.backend_tokenizer.post_processor = begin
    config = transformers.Gemma2Config(
        vocab_size=len(WORDS) + 1, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=1024, pad_token_id=0, bos_token_id=len(WORDS),
    )  # fmt: skip
    return {"tokenizer": tokenizer, "text_encoder": transformers.Gemma2Model(config).eval()}


def sana(folder, scheduler=None, seed=0):
    """A tiny SanaPipeline in `folder`: images of 32 pixels, latents of 8."""
    torch.manual_seed(seed)
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
        sample_size=8, timestep_scale=0.7,
    )  # fmt: skip
    sizes = {"block_out_channels": (8, 8, 16), "layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), ())}
    vae = diffusers.AutoencoderDC(
        latent_channels=8, scaling_factor=0.41407,
        **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in sizes.items()},
    )  # fmt: skip
    released = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    pipeline = diffusers.SanaPipeline(
        transformer=wake(transformer),
        vae=vae.eval(),
        scheduler=scheduler or diffusers.DPMSolverMultistepScheduler(**released),
        **gemma(),
    )
    pipeline.save_pretrained(folder)
    return pipeline

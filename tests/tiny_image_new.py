"""Tiny random pipelines of Qwen-Image, Z-Image and FLUX.2, saved as the released ones are."""

import torch
from tiny_pipelines import WORDS, autoencoder, texts, wake

QWEN = {  # the released scheduler
    "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256,
    "max_image_seq_len": 8192, "shift_terminal": 0.02,
}  # fmt: skip
CHAT = "{% for message in messages %}a {{ message['content'] }} the{% endfor %}"
DECODER = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": len(WORDS),
}  # fmt: skip


def tokenizer():
    """That of a few words, which pads on the right; its template of a chat adds two words."""
    made = texts("T5")["tokenizer"]
    made.chat_template = CHAT
    return made


def qwen_image(folder, seed=0, **scheduler):
    """A tiny QwenImagePipeline in `folder`: images of sides four times as long as the latents'."""
    import diffusers
    import transformers

    torch.manual_seed(seed)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True]
    )
    config = transformers.Qwen2_5_VLConfig(
        text_config=DECODER | {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
    )
    pipeline = diffusers.QwenImagePipeline(
        transformer=wake(transformer),
        vae=vae.eval(),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**QWEN | scheduler),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def z_image(folder, seed=0, shift=3.0, **config):
    """A tiny ZImagePipeline in `folder`: images of sides twice as long as the latents'."""
    import diffusers
    import transformers

    torch.manual_seed(seed)
    sizes = {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32}
    transformer = diffusers.ZImageTransformer2DModel(**sizes, axes_dims=[4, 6, 6], axes_lens=[256, 64, 64], **config)
    pipeline = diffusers.ZImagePipeline(
        transformer=wake(transformer),
        vae=autoencoder(seed, 16, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**DECODER, head_dim=16)).eval(),
        tokenizer=tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def flux_2(folder, klein=False, seed=0, **scheduler):
    """A tiny Flux2Pipeline or Flux2KleinPipeline in `folder`: sides four times the patches'."""
    import diffusers
    import transformers

    torch.manual_seed(seed)
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=32, joint_attention_dim=3 * 32, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=not klein, **sizes,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.bn.running_mean.normal_(), vae.bn.running_var.uniform_(0.3, 3)
    decoder = DECODER | {"num_hidden_layers": 27 if klein else 30, "head_dim": 16}  # layers up to these are read
    if klein:
        text_encoder = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**decoder))
    else:
        vision = {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        config = transformers.Mistral3Config(
            text_config=decoder | {"model_type": "mistral"}, vision_config=vision | {"num_attention_heads": 2}
        )
        text_encoder = transformers.Mistral3ForConditionalGeneration(config)
    pipeline = (diffusers.Flux2KleinPipeline if klein else diffusers.Flux2Pipeline)(
        transformer=wake(transformer),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer() if klein else chatting(tokenizer()),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, "shift": 3.0} | scheduler),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def chatting(made):
    """A tokenizer for messages in parts, in place of FLUX.2's processor of texts and images."""
    made.chat_template = CHAT.replace("message['content']", "message['content'][0]['text']")
    return made

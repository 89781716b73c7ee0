"""Tiny random pipelines of sound of the package diffusers, saved as the released ones are."""

import sys
from types import ModuleType

import torch
from tiny_pipelines import WORDS, autoencoder, texts, wake

RATE = 16_000


def oobleck(seed: int = 0):
    """A tiny AutoencoderOobleck: stereo, four latent channels, eight samples of a latent."""
    import diffusers

    torch.manual_seed(seed)
    vae = diffusers.AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=8,
        decoder_input_channels=4, audio_channels=2, sampling_rate=RATE,
    )  # fmt: skip
    return vae.eval()


def cosine():
    """The module of Stable Audio's scheduler, whose source of draws wants the package torchsde."""
    sys.modules.setdefault("torchsde", ModuleType("torchsde"))
    from diffusers.schedulers import scheduling_cosine_dpmsolver_multistep

    return scheduling_cosine_dpmsolver_multistep


def stable_audio(folder, seed=0, **scheduler):
    """A tiny StableAudioPipeline in `folder`: sounds of 16 latents, which are 8 ms."""
    import diffusers
    from diffusers.pipelines.stable_audio import StableAudioProjectionModel

    torch.manual_seed(seed)
    transformer = diffusers.StableAudioDiTModel(
        sample_size=16, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        num_key_value_attention_heads=1, cross_attention_dim=16, cross_attention_input_dim=12, time_proj_dim=8,
        global_states_input_dim=24,
    )  # fmt: skip
    pipeline = diffusers.StableAudioPipeline(
        vae=oobleck(seed), transformer=wake(transformer), **tokens(texts("T5")),
        projection_model=StableAudioProjectionModel(32, 12, 0, 0.512),
        scheduler=cosine().CosineDPMSolverMultistepScheduler(**{"sigma_min": 0.3, "sigma_max": 500.0} | scheduler),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return pipeline


def stable_audio_3(folder, seed=0, stochastic=False, **scheduler):
    """A tiny StableAudio3Pipeline in `folder`: eight samples of a latent."""
    import diffusers
    import transformers
    from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(WORDS), "query_pre_attn_scalar": 8}
    module = transformers.T5GemmaModuleConfig(**sizes, layer_types=["full_attention"], pad_token_id=0)
    config = transformers.T5GemmaConfig(
        encoder=module, decoder=module, is_encoder_decoder=False, vocab_size=len(WORDS), pad_token_id=0
    )
    transformer = diffusers.StableAudio3DiTModel(
        io_channels=6, embed_dim=16, depth=2, num_heads=2, cond_token_dim=32, global_cond_dim=32, local_add_cond_dim=7,
        timestep_features_dim=8, num_memory_tokens=3,
    )  # fmt: skip
    vae = diffusers.AutoencoderSAME(
        patch_size=4, encoder_channels=8, encoder_c_mults=(2,), encoder_strides=(2,), encoder_transformer_depths=(1,),
        latent_dim=6, dim_heads=8, sampling_rate=RATE,
    )  # fmt: skip
    vae.bottleneck.running_std.fill_(0.7)
    pipeline = diffusers.StableAudio3Pipeline(
        vae=wake(vae),
        text_encoder=transformers.T5GemmaEncoderModel(config).eval(),
        tokenizer=tokens(texts("T5"))["tokenizer"],
        duration_embedder=StableAudio3DurationEmbedder(output_dim=32, fourier_dim=8),
        transformer=wake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            **{"num_train_timesteps": 1, "stochastic_sampling": stochastic} | scheduler
        ),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def clap() -> dict:
    """A tiny CLAP that hears two seconds: the model, its tokenizer of letters, its spectrograms."""
    import transformers

    small = {"hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    heard = {"num_mel_bins": 16, "spec_size": 64, "patch_stride": [4, 4], "patch_embeds_hidden_size": 8}
    heard |= {"depths": [1, 1], "num_attention_heads": [1, 1], "hidden_size": 16, "window_size": 4}
    config = transformers.ClapConfig(
        text_config={**small, "vocab_size": 40, "max_position_embeddings": 40, "projection_dim": 12, "pad_token_id": 1},
        audio_config={**heard, "projection_dim": 12, "num_classes": 2}, projection_dim=12,
    )  # fmt: skip
    letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    return {
        "text_encoder": transformers.ClapModel(config).eval(),
        "tokenizer": transformers.RobertaTokenizerFast(
            {letter: i for i, letter in enumerate(letters)}, [], model_max_length=30
        ),
        "feature_extractor": transformers.ClapFeatureExtractor(
            feature_size=16, max_length_s=2, truncation="rand_trunc"
        ),
    }


def clap_folder(folder):
    """The tiny CLAP saved in `folder` with its processor; its embeddings differ between inputs."""
    import transformers

    torch.manual_seed(0)
    parts = clap()
    for p in parts["text_encoder"].parameters():
        p.data += torch.randn(p.shape) / max(1, p[..., 0].numel() if p.ndim else 1) ** 0.5
    parts["text_encoder"].save_pretrained(folder)
    transformers.ClapProcessor(parts["feature_extractor"], parts["tokenizer"]).save_pretrained(folder)
    return folder


def vocoder_folder(folder):
    """A tiny vocoder in `folder`: eight bands at 8 kHz, 16 samples of a frame."""
    import transformers

    torch.manual_seed(0)
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=8_000, upsample_initial_channel=8, upsample_rates=[4, 4],
        upsample_kernel_sizes=[8, 8], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
    )  # fmt: skip
    transformers.SpeechT5HifiGan(config).save_pretrained(folder)
    return folder


def audioldm2(folder, seed=0, **scheduler):
    """A tiny AudioLDM2Pipeline in `folder`: eight mel bands, frames of ten samples."""
    import diffusers
    import transformers
    from diffusers.pipelines.audioldm2 import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel

    torch.manual_seed(seed)
    unet = AudioLDM2UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, in_channels=4, out_channels=4, sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=((None, 16, None, 32),) * 2, attention_head_dim=4,
    )  # fmt: skip
    vocoder = transformers.SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=RATE, upsample_initial_channel=8, upsample_rates=[5, 2],
        upsample_kernel_sizes=[11, 4], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]], normalize_before=False,
    )  # fmt: skip
    words = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS[2:])]
    encoder = texts("T5")["text_encoder"]
    encoder.resize_token_embeddings(len(words), mean_resizing=False)
    released = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear", "clip_sample": False}
    released |= {"set_alpha_to_one": True, "steps_offset": 1}
    pipeline = diffusers.AudioLDM2Pipeline(
        vae=wake(autoencoder(seed, scaling_factor=0.41, in_channels=1, out_channels=1)),
        **clap(),
        text_encoder_2=encoder,
        projection_model=AudioLDM2ProjectionModel(12, 32, 16),
        language_model=transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=10, n_positions=64, max_new_tokens=4)
        ).eval(),
        tokenizer_2=transformers.T5TokenizerFast([(word, 0.0) for word in words], extra_ids=0, model_max_length=12),
        unet=wake(unet),
        scheduler=diffusers.DDIMScheduler(**released | scheduler),
        vocoder=wake(transformers.SpeechT5HifiGan(vocoder)),
    )
    pipeline.save_pretrained(folder)
    return pipeline


def tokens(parts, length=10):
    """Parts whose tokenizer pads to this length."""
    parts["tokenizer"].model_max_length = length
    return parts


TEXTS = ["a cat runs", "a dog sleeps", "a cat sleeps on the moon"]


def captioned(folder, num=12, samples=320, channels=2):
    """Sounds of 16 bits in `folder`, a caption beside each.

    Sample n of file i is 1000 (i + 1) + n of 32768, halved in a second channel.
    """
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num):
        left = 1000 * (i + 1) + torch.arange(samples)
        sound = torch.stack([left, left // 2][:channels], 1).to(torch.int16)
        soundfile.write(folder / f"{i:02}.wav", sound.numpy(), RATE, subtype="PCM_16")
        (folder / f"{i:02}.txt").write_text(TEXTS[i % 3])
    return folder

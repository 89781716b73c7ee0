"""AudioLDM 2 (arXiv 2308.05734): a U-Net on latents of mel spectrograms."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional as F

from distillkit.pipelines import schedulers
from distillkit.pipelines.files import load, read_index, read_json
from distillkit.pipelines.texts import padded, trimmed
from domains.music.pipelines.sounds import Sound, Sounds


class Mel(Sound):
    """Latents [B, C, T, F] as sounds [B, 1, samples], by a pipeline's autoencoder and its vocoder.

    It has no way back from a sound: the pipeline does not say how its spectrograms are made.
    """

    kinds, reads = ("AutoencoderKL",), False

    @cached_property
    def heard(self) -> dict[str, Any]:
        """The configuration of the vocoder."""
        return read_json(self.root / "vocoder" / "config.json")

    @cached_property
    def vocoder(self) -> Any:
        """The network from log-mels [B, frames, bands] to sounds [B, samples], frozen, float32."""
        return load(self.root, "vocoder", ("SpeechT5HifiGan",), torch.float32).requires_grad_(False).eval()

    @property
    def sample_rate(self):
        return self.heard["sampling_rate"]

    def units(self):
        return torch.zeros(1), torch.tensor(1 / self.config["scaling_factor"])

    def whole(self):
        frame, stack = math.prod(self.heard["upsample_rates"]), 2 ** (len(self.config["block_out_channels"]) - 1)
        return frame * stack * math.ceil(int(self.seconds / (frame / self.sample_rate)) / stack)

    def into(self, x):
        raise ValueError(
            "this pipeline makes sounds and reads none: give samples that are encoded already, as `latent`"
        )

    def out_of(self, z):
        mel = self.vae.decode(z, return_dict=False)[0]
        return self.vocoder.to(z.device)(mel[:, 0])[:, None, : self.samples]

    def data_shape(self, event_shape):
        return 1, self.samples


class AudioLDM2(Sounds):
    """AudioLDM 2: predicts eps, for eight tokens that GPT-2 makes up and for those of FLAN-T5.

    A prompt is embedded by itself. The pipeline pads the prompts of a call, and the negative one,
    to one length, which moves the places that GPT-2 sees.
    """

    pipelines, kinds, part = ("AudioLDM2Pipeline",), ("AudioLDM2UNet2DConditionModel",), "unet"
    text_parts = ("text_encoder", "tokenizer", "projection_model", "language_model")
    codec, schedulers, steps = Mel, schedulers.TABLES, 200
    length = 512  # tokens of FLAN-T5, at most

    @classmethod
    def own_seconds(cls, root):
        vae, vocoder = (read_json(root / part / "config.json") for part in ("vae", "vocoder"))
        frames = cls.model_config(root)["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1)
        return frames * (math.prod(vocoder["upsample_rates"]) / vocoder["sampling_rate"])

    @classmethod
    def latent_shape(cls, root, size):
        if (kind := read_index(root)["text_encoder_2"][1]) != "T5EncoderModel":
            raise ValueError(
                f"{root} reads transcriptions ({kind}): only pipelines that read prompts with T5 are read here"
            )
        codec, config = cls.make_codec(root, size), cls.model_config(root)
        stack = 2 ** (len(codec.config["block_out_channels"]) - 1)
        frames = codec.whole() // math.prod(codec.heard["upsample_rates"])
        if not frames:
            least = math.prod(codec.heard["upsample_rates"]) / codec.sample_rate
            raise ValueError(
                f"a sound has at least one frame of {least:.3g} seconds, got {codec.seconds:.3g}: set teacher.seconds"
            )
        return config["in_channels"], frames // stack, codec.heard["model_in_dim"] // stack

    @classmethod
    def process(cls, scheduler, shape):
        return schedulers.variance_preserving(scheduler)

    @classmethod
    def read_settings(cls, root, shape, asked):
        return {}

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        made = [pipeline.encode_prompt([prompt], pipeline.device, 1, False) for prompt in prompts]
        text, mask, generated = zip(*made, strict=True)
        return {
            "text": torch.cat([padded(each, cls.length) for each in text]),
            "mask": torch.cat([F.pad(each, (0, cls.length - each.shape[1])) for each in mask]).bool(),
            "generated": torch.cat(generated),
        }

    @classmethod
    def trim(cls, tables):
        return trimmed(tables, tables["mask"], ["text", "mask"])

    def call(self, model, x, time, cond):
        return model(
            x,
            1000 * time,
            cond["generated"],
            encoder_hidden_states_1=cond["text"],
            encoder_attention_mask_1=cond["mask"],
            return_dict=False,
        )[0]

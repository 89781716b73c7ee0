"""Z-Image (arXiv 2511.22699): one stream of text and latents in patches of 2 x 2, a flow."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pad_sequence

from distillkit.pipelines.texts import padded, trimmed
from domains.image.pipelines.codec import VAE, latent_size
from domains.image.pipelines.patches import Patches


class ZImage(Patches):
    """Z-Image and Z-Image-Turbo: for the hidden states of Qwen3 before the last.

    The model's time runs from noise at 0 to data at 1, and it predicts x_0 - eps. Its pipeline
    guides `c + w (c - u)`: kappa is `1 + guidance_scale`, and 1 for Turbo. The pipeline's options
    cfg_normalization and cfg_truncation, off by default, are not followed.
    """

    pipelines, kinds = ("ZImagePipeline",), ("ZImageTransformer2DModel",)
    codec = VAE
    length = 512  # tokens of a prompt at most, the pipeline's default

    @classmethod
    def latent_shape(cls, root, size):
        config = cls.model_config(root)
        if 2 not in config["all_patch_size"] or config.get("siglip_feat_dim"):
            raise ValueError(f"the model in {root} wants other patches or more than a text: it is not read here")
        return config["in_channels"], *latent_size(root, size, 128, 2)

    @classmethod
    def encode(cls, pipeline, prompts, settings):
        text = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=cls.length)[
            0
        ]
        mask = pad_sequence([one.new_ones(len(one), dtype=torch.bool) for one in text], batch_first=True)
        text = pad_sequence(text, batch_first=True)
        return {"text": padded(text, cls.length), "text_mask": padded(mask[..., None], cls.length)[..., 0]}

    @classmethod
    def trim(cls, tables):
        return trimmed(tables, tables["text_mask"], ["text", "text_mask"])

    def call(self, model, x, time, cond):
        texts = [text[mask] for text, mask in zip(cond["text"], cond["text_mask"], strict=True)]
        out = model(list(x[:, :, None].unbind()), 1 - time, texts, return_dict=False)[0]  # its images are clips
        return -torch.stack(out)[:, :, 0]

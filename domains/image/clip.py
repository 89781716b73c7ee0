"""CLIP score (arXiv 2104.08718): how well images show their prompts.

N: images; C, H, W: channels, height, width; D: size of an embedding.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation.contrastive import CHUNK, Contrastive
from distillkit.evaluation.samples import eight_bits

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images, in [0, 1]


class ClipScore(Contrastive):
    """100 max(cos, 0) of the embeddings of image and prompt, averaged over the images.

    Args:
        path: folder of a `CLIPModel`, with its tokenizer.
        prompts: as in `Contrastive`.
    """

    name, kinds = "CLIP", ("CLIPModel", "AutoTokenizer")

    def __call__(self, samples: Tensor, prompt: Tensor) -> float:
        """The score of images [N, C, H, W] in [-1, 1] for the prompts with these numbers [N]."""
        return self.score(self.features(samples), prompt)

    @torch.no_grad()
    def features(self, samples: Tensor) -> Tensor:
        """Embeddings [N, D] float64 of images [N, C, H, W] in [-1, 1], each of length 1."""
        model = self.parts[0].to(self.device)
        seen = [model.vision_model(self.pixels(x)).pooler_output for x in samples.split(CHUNK)]
        return torch.cat([F.normalize(model.visual_projection(states)).double() for states in seen])

    def tokens(self, texts):
        model, tokenizer = self.parts
        options = {"padding": "max_length", "max_length": model.config.text_config.max_position_embeddings}
        return tokenizer(texts, truncation=True, return_tensors="pt", **options)

    def pixels(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] as the model sees them, [N, 3, S, S], on its device.

        The shorter side is resized to S (antialiased bicubic), the centre cropped.
        """
        side = self.parts[0].config.vision_config.image_size
        height, width = x.shape[-2:]
        size = side * width // min(height, width), side * height // min(height, width)
        left, top = ((length - side) // 2 for length in size)
        levels_NHWC = ((eight_bits(x) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1).movedim(1, -1).cpu()
        shown = [Image.fromarray(levels.numpy()).resize(size, Image.Resampling.BICUBIC) for levels in levels_NHWC]
        shown = [np.asarray(image.crop((left, top, left + side, top + side))) for image in shown]
        pixels = torch.from_numpy(np.stack(shown)).to(self.device).movedim(-1, 1) / 255
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (MEAN, STD))
        return (pixels - mean) / std

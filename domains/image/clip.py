"""CLIP score (arXiv 2104.08718): how well images show their prompts.

N: images; C, H, W: channels, height, width; D: size of an embedding.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from distillkit.errors import optional
from distillkit.evaluation.samples import eight_bits
from distillkit.teachers.foreign import check_foreign

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images, in [0, 1]
CHUNK = 16  # images, or texts, that the model sees at once


class ClipScore:
    """100 max(cos, 0) of the embeddings of image and prompt, averaged over the images.

    Args:
        path: folder of a `CLIPModel` of the package transformers, with safetensors and tokenizer.
        prompts: the texts by number.

    Attributes:
        device: where the model computes.

    Raises:
        ValueError: there is no such folder.
    """

    device = torch.device("cpu")

    def __init__(self, path: str, prompts: list[str]):
        self.root, self.prompts = Path(path).expanduser(), prompts
        if not (self.root / "config.json").is_file():
            raise ValueError(f"{path} holds no CLIP model: give data.clip the folder of one, with its config.json")
        self._known: dict[int, Tensor] = {}  # embeddings of prompts, on the CPU

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        check_foreign(self.root)
        transformers = optional("transformers", "hf", "CLIP is read with")
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            model = transformers.CLIPModel.from_pretrained(str(self.root), use_safetensors=True, **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(self.root), **options)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.root} does not load as a CLIPModel: {str(error).splitlines()[0]}") from None
        return model.float().requires_grad_(False).eval(), tokenizer

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The model as plain data."""
        digest = hashlib.sha256()
        for file in sorted(self.root.glob("*.safetensors")):
            with file.open("rb") as opened:
                while piece := opened.read(2**24):
                    digest.update(piece)
        return {"name": self.root.name, "sha256": digest.hexdigest()}

    @torch.no_grad()
    def __call__(self, samples: Tensor, prompt: Tensor) -> float:
        """The score of images [N, C, H, W] in [-1, 1] for the prompts with these numbers [N]."""
        asked, row = prompt.unique(return_inverse=True)
        cosine = self.closeness(samples, asked).gather(1, row[:, None].cpu())
        return float(100 * cosine.clamp_min(0).mean())

    @torch.no_grad()
    def closeness(self, samples: Tensor, prompts: Tensor) -> Tensor:
        """Cosines of the embeddings of all images and all prompts, float64 [N, P] on the CPU.

        Args:
            samples: images [N, C, H, W] in [-1, 1].
            prompts: numbers of prompts, int64 [P].
        """
        model, _ = self._parts
        model.to(self.device)
        self._embed(sorted({*prompts.tolist()} - self._known.keys()))
        texts = torch.stack([self._known[number] for number in prompts.tolist()]).to(self.device)
        found = []
        for x in samples.split(CHUNK):
            images = F.normalize(model.visual_projection(model.vision_model(self.pixels(x)).pooler_output))
            found.append((images @ texts.T).double().cpu())
        return torch.cat(found)

    def _embed(self, numbers: list[int]) -> None:
        """Embeds prompts [D] that are not known yet."""
        model, tokenizer = self._parts
        length = model.config.text_config.max_position_embeddings
        for start in range(0, len(numbers), CHUNK):
            some = numbers[start : start + CHUNK]
            options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
            tokens = tokenizer([self.prompts[number] for number in some], **options).to(self.device)
            states = model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
            self._known |= zip(some, F.normalize(model.text_projection(states)).cpu(), strict=True)

    def pixels(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] as the model sees them, [N, 3, S, S], on its device.

        The shorter side is resized to S (antialiased bicubic), the centre cropped.
        """
        side = self._parts[0].config.vision_config.image_size
        height, width = x.shape[-2:]
        size = side * width // min(height, width), side * height // min(height, width)
        left, top = ((length - side) // 2 for length in size)
        levels_NHWC = ((eight_bits(x) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1).movedim(1, -1).cpu()
        shown = [Image.fromarray(levels.numpy()).resize(size, Image.Resampling.BICUBIC) for levels in levels_NHWC]
        shown = [np.asarray(image.crop((left, top, left + side, top + side))) for image in shown]
        pixels = torch.from_numpy(np.stack(shown)).to(self.device).movedim(-1, 1) / 255
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (MEAN, STD))
        return (pixels - mean) / std

"""CLAP (arXiv 2211.06687): embeddings of sounds and of prompts, of the user's own model.

N: sounds; C: channels; T: samples; D: size of an embedding.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.errors import optional
from distillkit.teachers.foreign import check_foreign
from domains.music.resample import resample

CHUNK = 16  # sounds, or texts, that the model is given at once


class Clap:
    """Embeddings of sounds, their Frechet distance's features, and the CLAP score of prompts.

    A sound is mono and resampled to what the model expects. One longer than the model hears is
    heard in even parts, whose embeddings are averaged.

    Args:
        path: folder of a `ClapModel` of the package transformers, with safetensors, and of its
            `ClapProcessor`.
        prompts: the texts by number; none if sounds have no prompts.

    Attributes:
        device: where the model computes.

    Raises:
        ValueError: there is no such folder.
    """

    device = torch.device("cpu")

    def __init__(self, path: str, prompts: list[str] | None = None):
        self.root, self.prompts = Path(path).expanduser(), prompts or []
        if not (self.root / "config.json").is_file():
            raise ValueError(f"{path} holds no CLAP model: give data.clap the folder of one, with its config.json")
        self._known: dict[int, Tensor] = {}  # embeddings of prompts, on the CPU

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        """The model and its processor."""
        check_foreign(self.root)
        transformers = optional("transformers", "hf", "CLAP is read with")
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            model = transformers.ClapModel.from_pretrained(str(self.root), use_safetensors=True, **options)
            processor = transformers.ClapProcessor.from_pretrained(str(self.root), **options)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.root} does not load as a ClapModel: {str(error).splitlines()[0]}") from None
        return model.float().requires_grad_(False).eval(), processor

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
    def features(self, samples: Tensor, rate: int) -> Tensor:
        """Embeddings [N, D] float64 of sounds [N, C, T] in [-1, 1], each of length 1.

        Args:
            rate: samples a second, in Hz.
        """
        model, processor = self._parts
        hears = processor.feature_extractor
        model.to(self.device)
        found = []
        for x in samples.split(CHUNK):
            mono = resample(x.float().clamp(-1, 1).mean(1), rate, hears.sampling_rate).cpu()
            parts = mono.tensor_split(-(-mono.shape[-1] // hears.nb_max_samples), dim=-1)
            heard = [F.normalize(self._heard(part, hears)) for part in parts]
            found.append(F.normalize(torch.stack(heard).mean(0)).double())
        return torch.cat(found)

    def _heard(self, mono: Tensor, hears: Any) -> Tensor:
        """Embeddings [N, D] of sounds [N, T] that are not longer than the model hears."""
        inputs = hears(list(mono.numpy()), sampling_rate=hears.sampling_rate, return_tensors="pt")
        longer = torch.zeros_like(inputs["is_longer"])  # else one is drawn, and passes for longer than it is
        features = inputs["input_features"].to(self.device, torch.float32)
        model = self._parts[0]
        return model.audio_projection(model.audio_model(features, is_longer=longer.to(self.device)).pooler_output)

    @torch.no_grad()
    def score(self, features: Tensor, prompt: Tensor) -> float:
        """100 max(cos, 0) of the embeddings of sound [N, D] and prompt [N], averaged."""
        self._embed(sorted({*prompt.tolist()} - self._known.keys()))
        texts = torch.stack([self._known[number] for number in prompt.tolist()]).to(features)
        return float(100 * (features * texts).sum(1).clamp_min(0).mean())

    def _embed(self, numbers: list[int]) -> None:
        """Embeds prompts [D] that are not known yet."""
        model, processor = self._parts
        model.to(self.device)
        for start in range(0, len(numbers), CHUNK):
            some = numbers[start : start + CHUNK]
            options = {"padding": True, "truncation": True, "return_tensors": "pt"}
            tokens = processor.tokenizer([self.prompts[number] for number in some], **options).to(self.device)
            states = model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
            self._known |= zip(some, F.normalize(model.text_projection(states)).cpu(), strict=True)

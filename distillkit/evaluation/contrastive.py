"""Models that embed texts and data alike, of the user's own folders.

N: texts, or data; D: size of an embedding.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.errors import optional
from distillkit.teachers.foreign import check_foreign

CHUNK = 16  # data, or texts, that a model is given at once


class Contrastive(ABC):
    """Base of CLIP, CLAP: embeddings of prompts, and how well data fit to them.

    Args:
        path: folder of a model of the package transformers, with safetensors, and of what makes its
            inputs.
        prompts: the texts by number; none if data have no prompts.

    Attributes:
        name: of the model, in words.
        kinds: in the package transformers, the class of the model and that of what makes its
            inputs.
        device: where the model computes.

    Raises:
        ValueError: there is no such folder.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[str, str]]
    device = torch.device("cpu")

    def __init__(self, path: str, prompts: Sequence[str] | None = None):
        self.root, self.prompts = Path(path).expanduser(), list(prompts or [])
        if not (self.root / "config.json").is_file():
            raise ValueError(f"{path} holds no {self.name} model: give the folder of one, with its config.json")
        self._known: dict[int, Tensor] = {}  # embeddings of prompts, on the CPU

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The model, frozen, in eval mode, float32; and what makes its inputs."""
        check_foreign(self.root)
        transformers = optional("transformers", "hf", f"{self.name} is read with")
        model, inputs = (getattr(transformers, kind) for kind in self.kinds)
        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            model = model.from_pretrained(str(self.root), use_safetensors=True, **options)
            inputs = inputs.from_pretrained(str(self.root), **options)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.root} does not load as a {self.kinds[0]}: {str(error).splitlines()[0]}") from None
        return model.float().requires_grad_(False).eval(), inputs

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The model as plain data."""
        digest = hashlib.sha256()
        for file in sorted(self.root.glob("*.safetensors")):
            with file.open("rb") as opened:
                while piece := opened.read(2**24):
                    digest.update(piece)
        return {"name": self.root.name, "sha256": digest.hexdigest()}

    @abstractmethod
    def tokens(self, texts: list[str]) -> Mapping[str, Tensor]:
        """`input_ids` and `attention_mask` of texts, [N, length] each."""

    def score(self, features: Tensor, prompt: Tensor) -> float:
        """100 max(cos, 0) of embeddings of data [N, D] and of their prompts, averaged.

        Args:
            features: of length 1.
            prompt: the numbers of the prompts, [N].
        """
        return float(100 * (features * self.embedded(prompt).to(features)).sum(1).clamp_min(0).mean())

    @torch.no_grad()
    def embedded(self, prompt: Tensor) -> Tensor:
        """Embeddings [N, D] of the prompts with these numbers [N], of length 1, on the CPU."""
        numbers = prompt.tolist()
        lacking = sorted({*numbers} - self._known.keys())
        for start in range(0, len(lacking), CHUNK):
            some = lacking[start : start + CHUNK]
            found = self._embed([self.prompts[number] for number in some]).cpu()
            self._known |= zip(some, found, strict=True)
        return torch.stack([self._known[number] for number in numbers])

    def _embed(self, texts: list[str]) -> Tensor:
        model = self.parts[0].to(self.device)
        tokens = {name: value.to(self.device) for name, value in self.tokens(texts).items()}
        states = model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        return F.normalize(model.text_projection(states))

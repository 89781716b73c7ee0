"""A neural vocoder: the sound of a spectrogram by a trained network.

B: batch; C: channels; M: bands; F: frames.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit.errors import optional
from distillkit.pipelines.files import read_json
from distillkit.spec import Recorded


class HifiGan(Recorded):
    """HiFi-GAN (arXiv 2010.05646) as transformers keeps it, such as AudioLDM's and SpeechT5's.

    Its files say rate, bands and hop, and not of what spectrograms it was trained on: a codec must
    take windows, range, scale and floor from where the weights are from.

    Args:
        path: a folder with config.json and model.safetensors; if it is missing, only sounds raise
            an error.
        base: of the logarithms; null means e. SpeechT5's has 10.
    """

    def __init__(self, path: str, base: float | None = None):
        folder = Path(path).expanduser()
        self.path, self.base = path, base
        self._root = folder.resolve() if folder.is_dir() else None  # now, for what a folder may read is checked before

    def __deepcopy__(self, memo):
        return self

    def check(self, rate: int, num: int, hop: int) -> None:
        """Refuse a codec of another rate in Hz, number of bands or hop."""
        if self._root is None:
            return
        config = read_json(self._root / "config.json")
        try:
            needed = config["sampling_rate"], config["model_in_dim"], math.prod(config["upsample_rates"])
        except (KeyError, TypeError):
            raise ValueError(
                f"{self.path} holds no HiFi-GAN of transformers: its config.json lacks its rates"
            ) from None
        if needed != (rate, num, hop):
            raise ValueError(
                f"the vocoder {self.path} makes sounds of sample_rate={needed[0]} num={needed[1]} hop={needed[2]}, and the codec "
                f"has {rate}, {num} and {hop}: give it the vocoder's"
            )

    @cached_property
    def network(self) -> Any:
        """The network, frozen, in eval mode, float32."""
        if self._root is None:
            raise ValueError(
                f"there is no folder {self.path}, whose vocoder makes sounds: put it back, or take samples undecoded, with "
                f"decode=False"
            )
        kind = optional("transformers", "hf", "vocoders are read with").SpeechT5HifiGan
        try:
            found = kind.from_pretrained(self._root, local_files_only=True, use_safetensors=True)
        except OSError as error:
            raise ValueError(f"{self.path} holds no vocoder in model.safetensors: save it by transformers") from error
        return found.float().requires_grad_(False).eval()

    def __call__(self, logs: Tensor) -> Tensor:
        """Sounds [B, C, F hop] of natural logarithms of mel magnitudes [B, C, M, F]."""
        network = self.network.to(logs.device)
        with torch.autocast(logs.device.type, enabled=False):
            made = network((logs / math.log(self.base or math.e)).flatten(0, 1).mT)
        return made.reshape(*logs.shape[:2], -1).clamp(-1, 1)

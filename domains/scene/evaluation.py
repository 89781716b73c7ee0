"""How near clips are to those that the camera would have seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distillkit.evaluation.references import References
from distillkit.evaluation.samples import check, check_finite, eight_bits, outside
from domains.super_resolution.measures import psnr

CHUNK = 32  # clips that are compared at once


class SceneEvaluator:
    """Compares clips with the held-out ones, which it knows by their coarse reconstructions.

    - `error` (the headline): root mean square difference of pixels, in units of [-1, 1], the mean
      over clips;
    - `psnr`: in decibels, likewise;
    - `outside`: share of values outside of [-1, 1].

    Args:
        held_out: data sets with `data` and `coarse`.
    """

    headline = "error"
    better = {"error": "lower", "psnr": "higher", "outside": "lower"}
    device = torch.device("cpu")

    def __init__(self, held_out: Sequence[Any]):
        self.held_out = held_out
        self.references = References(held_out, "coarse")

    def describe(self) -> dict[str, Any]:
        return {"domain": "scene", "reference": f"the clips of {sum(map(len, self.held_out))} held-out scenes"}

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        check_finite(samples)
        rows, errors = self.references.rows(cond["coarse"]), []
        for part in torch.arange(len(samples)).split(CHUNK):
            real = self.references.samples([rows[i] for i in part.tolist()])
            check(samples, real.shape[1:])
            errors.append((eight_bits(samples[part]) - real).double().square().flatten(1).mean(1))
        errors = torch.cat(errors)
        return {
            "error": float(errors.sqrt().mean()),
            "psnr": float(psnr(errors, 2).mean()),
            "outside": outside(samples),
        }

    def baselines(self, cond: dict[str, Tensor]) -> dict[str, Tensor]:
        """What needs no model: the reconstruction itself, `coarse`."""
        return {"coarse": cond["coarse"]}

    def floor(self, num_samples: int = 250) -> dict[str, float]:
        """Metrics of real clips, without PSNR, which says nothing then."""
        real = self.held_out[-1]
        batch = real[torch.arange(num_samples) % len(real)]
        return {name: value for name, value in self(batch["data"], batch).items() if name != "psnr"}

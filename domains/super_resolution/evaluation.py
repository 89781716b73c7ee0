"""How good enlarged photographs are: perception and distortion, side by side.

N: samples; H, W: height, width; D: features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distillkit.evaluation import metrics
from distillkit.evaluation.extractor import load_extractor
from distillkit.evaluation.perceptual import Dists, Lpips, NoReference
from distillkit.evaluation.references import References
from distillkit.evaluation.samples import BEYOND, OUTSIDE, check, check_finite, eight_bits, out_of_range
from domains.super_resolution import features as extractors
from domains.super_resolution import measures
from domains.super_resolution.resize import enlarged, shrunk

PIXELS = 2**20  # of images in one pass
PLACES = 400  # of an image, evenly spread, whose features are compared as a set
LEAST = 6  # pixels of a side without its border, which SSIM and the gradients need

Batch = dict[str, Tensor]


class SuperResolutionEvaluator:
    """Compares enlarged photographs with the held-out ones, which it knows by their observations.

    Perception:

    - `frechet` (the headline): Frechet distance between the features of the samples' parts and
      those of the same photographs' parts. At one mean squared error, on 96 squares of the test
      photographs: bicubic 142, blurred 58, noisy 235, bent by some pixels, so that all is sharp and
      plausible, 0.45. A sharpened bicubic image gets 228, one with noise 261.
    - `hf_ratio`: energy above half the largest frequency, of samples over photographs, on
      brightness. Blurred samples have about 0, noisy ones more than 1.

    Distortion, of each sample from its photograph, and the mean over samples:

    - `psnr_y`, `ssim_y`: on brightness (Y of BT.601 of 8-bit images), without a border as wide as
      the scale, as in papers. Equal images get 100 dB.
    - `distance`: of features, place by place, as LPIPS without its weights.
    - `gmsd`: how unevenly gradients are alike, on brightness.
    - `consistency`: PSNR of samples made small again, to their observations, in decibels. It is
      good where real photographs have it, which is 100 dB if nothing but size was lost.

    `outside` is the share of values clearly beyond [-1, 1], `outside_by` how far, in widths of that
    range. All are cut to it and rounded to 8 bits before they are measured.

    Once for each model come `lpips` and `dists`, if there are weights, and pyiqa's metrics.

    Args:
        held_out: one or several data sets, len() and data[indices] -> {"data": [N, 3, H, W],
            "low"}, the last of which stands in for samples where real data are measured.
        scale: how many times larger photographs are than their observations.
        lpips: path of AlexNet's or VGG16's weights, see `distillkit.evaluation.perceptual`.
        dists: path of VGG16's weights.
        no_reference: names of pyiqa's metrics, such as `musiq`.

    Raises:
        ValueError: photographs are too small, or a file holds no such weights.
    """

    headline = "frechet"
    device = torch.device("cpu")  # of the networks and of all features

    def __init__(
        self,
        held_out: Sequence[Any],
        scale: int,
        lpips: str | None = None,
        dists: str | None = None,
        no_reference: Sequence[str] = (),
    ):
        self.held_out, self.scale = list(held_out), scale
        self.references = References(held_out, "low", _levels)
        side = min(held_out[0][torch.zeros(1, dtype=torch.long)]["data"].shape[-2:])
        if side < 2 * scale + LEAST:
            raise ValueError(
                f"photographs of {side} pixels a side are too small to be measured at scale {scale}: they need "
                f"{2 * scale + LEAST}, so give larger squares (data.crop)"
            )
        self.judges = {"lpips": Lpips(lpips)} if lpips else {}
        self.judges |= {"dists": Dists(dists)} if dists else {}
        self.alone = NoReference(no_reference) if no_reference else None

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        better = {"frechet": "lower", "psnr_y": "higher", "ssim_y": "higher", "distance": "lower", "gmsd": "lower"}
        better |= {"hf_ratio": "target", "consistency": "target", **OUTSIDE, "teacher_psnr_y": "higher"}
        return better | dict.fromkeys(self.judges, "lower") | (self.alone.better if self.alone else {})

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        judges = {name: {"name": judge.name, "sha256": judge.backbone.sha256} for name, judge in self.judges.items()}
        return {
            "domain": "super_resolution",
            "scale": self.scale,
            "features": {"name": "damages of photographs", "sha256": _sha256(), "places": PLACES},
            "reference": "held-out photographs of the same observations",
            "num_reference": sum(map(len, self.held_out)),
            "pixels": "rounded to 8 bits",
            "brightness": "Y of BT.601",
            "border": self.scale,
            "outside": f"more than {BEYOND} beyond [-1, 1]",
            **judges,
            **({"no_reference": self.alone.names} if self.alone else {}),
        }

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of samples [N, 3, H, W] in [-1, 1], made for the observations `cond["low"]`."""
        each, ours, theirs = [], [], []
        for x, real, low in self._pairs(samples, cond):
            maps, real_maps = (self._maps(image) for image in (x, real))
            ours.append(_places(maps[-1]))
            theirs.append(_places(real_maps[-1]))
            each.append(self._measure(x, real, low) | {"distance": extractors.distance(maps, real_maps)})
        found = {name: metrics.Estimate.mean(torch.cat([part[name] for part in each])) for name in each[0]}
        fine, real_fine = found.pop("fine"), found.pop("real_fine")
        raw = metrics.Points(torch.cat(theirs))
        sets = (metrics.Points(metrics.standardise(x, raw)) for x in (metrics.Points(torch.cat(ours)), raw))
        return {
            "frechet": metrics.frechet_distance(*sets, each=len(raw) // len(samples)),
            **{name: found[name] for name in ("psnr_y", "ssim_y", "distance", "gmsd")},
            "hf_ratio": fine / real_fine if real_fine else 1.0,
            "consistency": found["consistency"],
            **out_of_range(samples),
        }

    @torch.no_grad()
    def thorough(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics by the networks of others, if there are any."""
        found: dict[str, list[Tensor]] = {}
        for x, real, _ in self._pairs(samples, cond) if self.judges or self.alone else ():
            x, real = (image.to(self.device) for image in (x, real))
            own = {name: judge.to(self.device)(x, real) for name, judge in self.judges.items()}
            for name, values in (own | (self.alone(x) if self.alone else {})).items():
                found.setdefault(name, []).append(values.cpu().double())
        return {name: metrics.Estimate.mean(torch.cat(parts)) for name, parts in found.items()}

    def paired(self, samples: Tensor, reference: Tensor, cond: Batch) -> dict[str, float]:
        """`teacher_psnr_y`: PSNR of samples to a teacher's from the same noise, on brightness."""
        pairs = zip(*(x.split(_chunk(samples)) for x in (samples, reference)), strict=True)
        found = [measures.psnr_y(*(measures.luma(x, self.scale) for x in pair)) for pair in pairs]
        return {"teacher_psnr_y": metrics.Estimate.mean(torch.cat(found))}

    def baselines(self, cond: Batch) -> dict[str, Tensor]:
        """What needs no model: the observations enlarged, `bicubic`."""
        return {"bicubic": enlarged(cond["low"], [self.scale * side for side in cond["low"].shape[-2:]])}

    def floor(self, num_samples: int = 250) -> dict[str, float]:
        """Metrics of real photographs, without PSNR and SSIM, which say nothing then."""
        real = self.held_out[-1]
        batch = real[torch.arange(num_samples) % len(real)]
        found = self(batch["data"], batch) | self.thorough(batch["data"], batch)
        return {name: value for name, value in found.items() if name not in ("psnr_y", "ssim_y")}

    @cached_property
    def critic(self) -> extractors.Critic:
        """The shipped network."""
        return load_extractor(extractors.Critic, extractors.SHIPPED).to(self.device)

    @torch.no_grad()
    def _maps(self, x: Tensor) -> list[Tensor]:
        return self.critic.maps(x.to(self.device))

    def _measure(self, x: Tensor, real: Tensor, low: Tensor) -> dict[str, Tensor]:
        """Measures [N] of samples by pixels."""
        y, real_y = (measures.luma(image, self.scale) for image in (x, real))
        again = (shrunk(x, self.scale) - low).double().square().mean((1, 2, 3))
        return {
            "psnr_y": measures.psnr_y(y, real_y),
            "ssim_y": measures.ssim_y(y, real_y),
            "gmsd": measures.gmsd(y, real_y),
            "fine": measures.fine_energy(y),
            "real_fine": measures.fine_energy(real_y),
            "consistency": measures.psnr(again, 2),
        }

    def _pairs(self, samples: Tensor, cond: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Samples, photographs and observations in 8 bits, some at a time."""
        check_finite(samples)
        rows = self.references.rows(cond["low"])
        for part in torch.arange(len(samples)).split(_chunk(samples)):
            real = self.references.samples([rows[i] for i in part.tolist()])
            check(samples, real.shape[1:])
            yield tuple(eight_bits(x) for x in (samples[part], real, cond["low"][part]))


def _places(features: Tensor) -> Tensor:
    """Features [N, D, h, w] as points [N * places, D], evenly spread over each image."""
    points = features.flatten(2)
    chosen = torch.linspace(0, points.shape[2] - 1, min(PLACES, points.shape[2]), dtype=torch.float64).round().long()
    return points[..., chosen.to(points.device)].movedim(1, 2).flatten(0, 1)


def _levels(low: Tensor) -> Tensor:
    """An observation [3, H, W] in [-1, 1] as a file would keep it."""
    return ((eight_bits(low) + 1) * 127.5).round().to(torch.uint8)


def _chunk(samples: Tensor) -> int:
    """How many samples of this size are measured at once."""
    return max(1, PIXELS // (samples.shape[-2] * samples.shape[-1]))


def _sha256() -> str:
    return hashlib.sha256(extractors.SHIPPED.read_bytes()).hexdigest()

"""How good clips between two views are: beside the true ones, in time, and as a set.

N: samples; F: frames; H, W: height and width in pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distillkit.evaluation import metrics
from distillkit.evaluation.extractor import load_extractor, packed
from distillkit.evaluation.references import References
from distillkit.evaluation.samples import BEYOND, OUTSIDE, check, eight_bits, out_of_range
from distillkit.students.leap import LeapStudent
from domains.scene.warping import warp_error
from domains.super_resolution import features as extractors
from domains.super_resolution import measures
from domains.video.i3d import load as load_i3d
from domains.video.look import AVERAGES, averages

CHUNK = 32  # clips in one pass
PLACES = 16  # of a frame, evenly spread, whose features are compared as a set
BESIDE = ("psnr", "psnr_worst", "ssim")  # besides the error: metrics of clips beside true ones
LEVELS = 32  # clips for which a student's choice of a level is compared with each fixed one

Batch = dict[str, Tensor]


class SceneEvaluator:
    """Compares clips with the true ones, which it knows by their coarse ones.

    Each clip beside the true one, without the two end frames, which are given; the mean over clips:

    - `error` (the headline): root mean square difference of pixels, on [-1, 1].
    - `psnr`: the same in decibels; equal clips get 100.
    - `psnr_worst`: of the frame of a clip that has the lowest.
    - `ssim`: of frames, on brightness (Y of BT.601 of 8-bit frames).
    - `warp_error`: root mean square difference, on [-1, 1], of neighbouring frames where the true
      geometry says that they show the same place; a true clip's is not 0, for pixels lie between
      pixels. It is taken over all frames, and left out where no depths are known.

    As sets:

    - `frechet`: Frechet distance between features of the samples' frames and of the
      true ones', in the network that tells damages of photographs (`domains.super_resolution`),
      which notices blur, noise and holes. Coarse clips, made of true pixels, do well here.
    - `video`: Frechet distance between features of clips: averages over their parts and over the
      changes, or I3D's.

    `outside` is the share of values clearly beyond [-1, 1], `outside_by` how far, in widths of that
    range. All are cut to it and rounded to 8 bits before they are measured.

    Of a student that chooses its level, beside the same student at each fixed level, on the first
    32 conditions: `level`, the mean of those that it chooses; `level_gap`, how much larger its mean
    squared error is than that at the best fixed level, as a share, which is negative where it
    chooses better than any.

    Args:
        held_out: one or several data sets, the last of which stands in for samples where real data
            are measured.
        i3d: path of I3D's weights, see `domains.video.i3d`.
    """

    headline = "error"
    device = torch.device("cpu")  # of the networks and of all features

    def __init__(self, held_out: Sequence[Any], i3d: str | None = None):
        self.held_out, self.references = list(held_out), References(held_out, "coarse", eight_bits)
        self.i3d = i3d and load_i3d(i3d)
        first = held_out[-1][torch.zeros(1, dtype=torch.long)]
        self.event_shape, self.measured = tuple(first["data"].shape[1:]), "depth" in first

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        better = {"error": "lower", "psnr": "higher", "psnr_worst": "higher", "ssim": "higher"}
        better |= {"warp_error": "target"} if self.measured else {}
        return better | {
            "frechet": "lower",
            "video": "lower",
            **OUTSIDE,
            "level_gap": "lower",
            "teacher_psnr": "higher",
        }

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "scene",
            "features": {
                "name": "damages of photographs",
                "sha256": hashlib.sha256(extractors.SHIPPED.read_bytes()).hexdigest(),
                "places": PLACES,
            },
            "video_features": {"name": "I3D", "sha256": hashlib.sha256(packed(self.i3d)).hexdigest()}
            if self.i3d
            else AVERAGES,
            "reference": "held-out clips of the same coarse clips",
            "num_reference": sum(map(len, self.held_out)),
            "pixels": "rounded to 8 bits",
            "brightness": "Y of BT.601",
            "outside": f"more than {BEYOND} beyond [-1, 1]",
        }

    @torch.no_grad()
    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of clips [N, 3, F, H, W] in [-1, 1] for the coarse clips `cond["coarse"]`."""
        check(samples, self.event_shape)
        each, sets = [], []
        for x, batch in self._pairs(samples, cond):
            real = eight_bits(batch["data"])
            each.append(self._measure(x, real, batch))
            sets.append([*map(self._places, (x, real)), *map(self._clips, (x, real))])
        found = {name: _mean(torch.cat([part[name] for part in each])) for name in each[0]}
        ours, theirs, clips, true = (torch.cat(parts).double() for parts in zip(*sets, strict=True))
        return {
            **found,
            "frechet": _frechet(ours, theirs, len(samples)),
            "video": _frechet(clips, true),
            **out_of_range(samples),
        }

    def paired(self, samples: Tensor, reference: Tensor, cond: Batch) -> dict[str, float]:
        """`teacher_psnr`: PSNR to a teacher's clips from the same noise, between the ends."""
        pairs = zip(*(eight_bits(x).split(CHUNK) for x in (samples, reference)), strict=True)
        return {"teacher_psnr": metrics.Estimate.mean(torch.cat([_psnr(_gaps(*pair).mean(1)) for pair in pairs]))}

    def baselines(self, cond: Batch) -> dict[str, Tensor]:
        """What needs no model: the coarse clips, and the end frames faded into each other."""
        share = torch.linspace(0, 1, cond["coarse"].shape[2])[:, None, None].to(cond["first"])
        first, last = (cond["first"][:, :, [k]] for k in (0, -1))
        return {"coarse": cond["coarse"], "cross-fade": (1 - share) * first + share * last}

    def of_student(self, student: Any, cond: Batch) -> dict[str, float]:
        """`level` and `level_gap` of a student that chooses its level; nothing of others."""
        if not isinstance(student, LeapStudent):
            return {}
        cond = {name: value[:LEVELS] for name, value in cond.items()}
        num = len(cond["coarse"])
        real = self.references.samples(self.references.rows(cond["coarse"]))

        def error(one: Any) -> float:
            return float((one.sample(num, cond, seed=0).clamp(-1, 1) - real).double().square().mean())

        best = min(error(student.with_level(level)) for level in student.actions)
        chosen = student.levels({name: value.to(student.device) for name, value in cond.items()})
        return {"level": float(chosen.mean()), "level_gap": error(student) / best - 1}

    def floor(self, num_samples: int = 250) -> dict[str, float]:
        """Metrics of true clips, whose error is 0; without PSNR and SSIM, which say no more."""
        real = self.held_out[-1]
        batch = real[torch.arange(num_samples) % len(real)]
        found = self(batch["data"], batch)
        return {name: value for name, value in found.items() if name not in BESIDE}

    @cached_property
    def critic(self) -> extractors.Critic:
        """The shipped network of features of frames."""
        return load_extractor(extractors.Critic, extractors.SHIPPED).to(self.device)

    def _places(self, clips: Tensor) -> Tensor:
        """Features of places of frames, [N F places, D], on the CPU."""
        found = self.critic.maps(_frames(clips).to(self.device))[-1].flatten(2)
        chosen = torch.linspace(0, found.shape[2] - 1, min(PLACES, found.shape[2]), dtype=torch.float64).round().long()
        return found[:, :, chosen.to(found.device)].mT.flatten(0, 1).cpu()

    def _clips(self, clips: Tensor) -> Tensor:
        """Features of clips, [N, D], on the CPU."""
        clips = clips.to(self.device)
        return (self.i3d.to(clips.device)(clips) if self.i3d else averages(clips)[0]).cpu()

    def _measure(self, x: Tensor, real: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Measures [N] of clips beside the true ones."""
        gaps, inner = _gaps(x, real), [_frames(clips[:, :, _between(clips)]) for clips in (x, real)]
        found = {"error": gaps.mean(1).sqrt(), "psnr": _psnr(gaps.mean(1)), "psnr_worst": _psnr(gaps.amax(1))}
        found["ssim"] = measures.ssim_y(*map(measures.luma, inner)).reshape(len(x), -1).mean(1)
        return found | ({"warp_error": warp_error(x, batch["cameras"], batch["depth"])} if self.measured else {})

    def _pairs(self, samples: Tensor, cond: Batch) -> Iterator[tuple[Tensor, Batch]]:
        """Samples in 8 bits with the batch of their true clips, some at a time."""
        rows = self.references.rows(cond["coarse"])
        names = ("data", "cameras", "depth") if self.measured else ("data",)
        for part in torch.arange(len(samples)).split(CHUNK):
            yield eight_bits(samples[part]), self.references.batch([rows[i] for i in part.tolist()], names)


def _between(clips: Tensor) -> slice:
    """The frames of clips between the ends; all of those that are nothing but ends."""
    return slice(1, -1) if clips.shape[2] > 2 else slice(None)


def _gaps(x: Tensor, real: Tensor) -> Tensor:
    """Mean squared differences of frames between the ends, [N, F], float64."""
    return (x - real)[:, :, _between(x)].double().square().mean((1, 3, 4))


def _psnr(error: Tensor) -> Tensor:
    """Decibels of mean squared errors on [-1, 1]."""
    return measures.psnr(error, 2)


def _frames(clips: Tensor) -> Tensor:
    """The frames of clips [N, C, F, H, W], [N F, C, H, W]."""
    return clips.transpose(1, 2).flatten(0, 1)


def _frechet(ours: Tensor, theirs: Tensor, samples: int | None = None) -> metrics.Estimate:
    """The Frechet distance of two sets [n, D] of so many samples, in the second's std as units."""
    raw, each = metrics.Points(theirs), len(ours) // (samples or len(ours))
    sets = (metrics.Points(metrics.standardise(x, raw)) for x in (metrics.Points(ours), raw))
    return metrics.frechet_distance(*sets, each=each)


def _mean(values: Tensor) -> metrics.Estimate:
    """The mean over clips [N]; NaN counts as the mean, for those have no such measure."""
    return metrics.Estimate.mean(values.double().where(values.isfinite(), values.double().nanmean()))

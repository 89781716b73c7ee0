"""How good videos are: the distributions of clips, of frames and of motion, and the classes.

N: clips; C: channels; T: frames; H, W: height, width; D: features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from distillkit.evaluation import metrics
from distillkit.evaluation.extractor import load_extractor, packed
from distillkit.evaluation.samples import BEYOND, OUTSIDE, batches, check, eight_bits, out_of_range
from domains.video import features as extractors
from domains.video.clip import CLASSES, FRAMES, SIDE
from domains.video.i3d import load as load_i3d
from domains.video.look import AVERAGES, CHUNK, Look, averages, look, motion_apart

MOST_TRAINING = 2000  # training clips, evenly spread, among which the nearest is sought
NEIGHBOURS = 5

Batch = dict[str, Tensor]


class VideoEvaluator:
    """Compares clips with held-out ones.

    Features of a classifier:

    - `frechet` (the headline): Frechet video distance, between Gaussians fitted to the features of
      clips, each in units of its standard deviation over the reference. Its floor is well above 0,
      because there are many features and few samples.
    - `frame_frechet`: the same for single frames.
    - `coverage` (k = 5), in the features of clips.
    - `nearest_train`: mean distance to the nearest training clip, in the features of clips.
    - `class_agreement`, `motion_agreement`: share of clips in which the classifier sees the class
      that was asked for.

    Pixels:

    - `motion`: mean size of a frame's difference from the one before (root mean square over pixels;
      the range is 2).
    - `motion_gap`: Wasserstein-1 distance between the distributions of these sizes, in units of
      their mean over the reference.
    - `spectrum`: root mean square difference, in decibels, between mean powers at each temporal
      frequency.
    - `flicker`: second differences in time over first ones.
    - `first_error`: root mean square difference between a clip's first frames and its context
      frames.
    - `outside`: share of values clearly outside of [-1, 1]. All are cut to it before they are
      measured.

    A still video has motion 0, a motion gap of 1, and tens of decibels in the spectrum.

    Args:
        train: the training data, len() and train[indices] -> batch.
        held_out: one or two data sets. Samples are compared with the first (validation data). The
            last (test data) stands in for samples where real data are measured. Samples made from a
            test clip's context frames have no twin in the reference.
        classes: `{name: number of classes}`; if empty the features are averages over parts of the
            clip.
        i3d: path of I3D's weights: its logits are then the features of clips.
    """

    headline = "frechet"
    device = torch.device("cpu")  # of the extractors and of all features

    def __init__(self, train: Any, held_out: Sequence[Any], classes: dict[str, int], i3d: str | None = None):
        self.train, self.reference, self.real, self.classes = train, held_out[0], held_out[-1], dict(classes)
        self.i3d = i3d and load_i3d(i3d)
        self.event_shape = tuple(self.reference[torch.zeros(1, dtype=torch.long)]["data"].shape[1:])

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        better = {"frechet": "lower", "frame_frechet": "lower", "coverage": "higher", "nearest_train": "target"}
        better |= {"motion": "target", "motion_gap": "lower", "spectrum": "lower", "flicker": "target"}
        better |= {_agreement(name): "higher" for name in self.classes}
        return better | {"first_error": "lower", **OUTSIDE}

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "video",
            "features": {"name": "I3D", "sha256": hashlib.sha256(packed(self.i3d)).hexdigest()}
            if self.i3d
            else self.extractor[1],
            "reference": "validation data",
            "num_reference": len(self.reference),
            "num_train": min(len(self.train), MOST_TRAINING),
            "pixels": "rounded to 8 bits",
            "outside": f"more than {BEYOND} beyond [-1, 1]",
            "neighbours": NEIGHBOURS,
        }

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of samples [N, C, T, H, W] in [-1, 1], made for the conditions `cond`."""
        check(samples, self.event_shape)
        ours, theirs = self._look([samples]), self._reference
        clips, frames = (
            metrics.Points(metrics.standardise(own, raw))
            for own, raw in zip((ours.clips, ours.frames), self._raw, strict=True)
        )
        real, real_frames = self._real
        k = min(NEIGHBOURS, len(real) - 1)
        found = {
            "frechet": metrics.frechet_distance(clips, real),
            "frame_frechet": metrics.frechet_distance(frames, real_frames, each=len(frames) // len(clips)),
            "coverage": metrics.density_coverage(real, clips, k)[1],
            "nearest_train": metrics.nearest_distance(clips, self._training)[0],
            "motion": float(ours.change.mean()),
            **motion_apart(ours, theirs),
            "flicker": metrics.Estimate.mean(ours.flicker),
        }
        found |= out_of_range(samples)
        for name, seen in ours.classes.items():
            if name in cond:
                found[_agreement(name)] = metrics.Estimate.mean(seen == cond[name].to(seen))
        if "first" in cond:
            begun = eight_bits(samples[:, :, : cond["first"].shape[2]])
            found["first_error"] = float((begun - cond["first"]).square().mean().sqrt())
        return found

    def floor(self, num_samples: int = 250) -> dict[str, float]:
        """Metrics of test clips.

        Give `num_samples` the number of samples of the model beside it: the distances are biased by
        it.
        """
        batch = self.real[torch.arange(num_samples) % len(self.real)]
        return self(batch["data"], batch)

    @cached_property
    def extractor(self) -> tuple[extractors.Classifier | None, dict[str, Any]]:
        """The classifier and its description: the shipped one if it reads this data, or a new one.

        A new one is fitted to the training data.
        """
        if not self.classes:
            return None, AVERAGES
        if self.event_shape == (1, FRAMES, SIDE, SIDE) and self.classes == CLASSES:
            net = load_extractor(extractors.Classifier, extractors.SHIPPED).to(self.device)
            right = extractors.accuracy(net, self.reference)
            if min(right.values()) > 0.9:
                sha256 = hashlib.sha256(extractors.SHIPPED.read_bytes()).hexdigest()
                return net, {"name": "moving digits classifier", "sha256": sha256, "held_out_accuracy": _rounded(right)}
        net = extractors.train_classifier(self.train, self.classes, extractors.STEPS).to(self.device)
        facts = {
            "name": f"classifier fitted to the training data ({extractors.STEPS} steps, seed 0)",
            "sha256": hashlib.sha256(packed(net)).hexdigest(),
            "held_out_accuracy": _rounded(extractors.accuracy(net, self.reference)),
        }
        return net, facts

    @cached_property
    def _reference(self) -> Look:
        return self._look(batch["data"] for batch in batches(self.reference, CHUNK))

    def _look(self, parts: Iterable[Tensor]) -> Look:
        """The measurements of clips that come in parts."""
        chunks = (x.to(self.device) for part in parts for x in part.split(CHUNK))
        return look(map(eight_bits, chunks), self._features)

    @cached_property
    def _raw(self) -> tuple[metrics.Points, metrics.Points]:
        """Features of the reference's clips and frames."""
        return metrics.Points(self._reference.clips), metrics.Points(self._reference.frames)

    @cached_property
    def _real(self) -> tuple[metrics.Points, metrics.Points]:
        """The same in units of their standard deviations, as all features that are compared."""
        return tuple(metrics.Points(metrics.standardise(raw, raw)) for raw in self._raw)

    @cached_property
    def _training(self) -> metrics.Points:
        parts = (batch["data"].to(self.device) for batch in batches(self.train, CHUNK, MOST_TRAINING))
        clips = torch.cat([self._features(eight_bits(x))[0] for x in parts])
        return metrics.Points(metrics.standardise(clips, self._raw[0]))

    @torch.no_grad()
    def _features(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Features of clips [N, D] and of their frames [N, T, D'], and the classes seen."""
        clips, frames, classes = seen(self.extractor[0], x) if self.extractor[0] else averages(x)
        return self.i3d.to(x.device)(x) if self.i3d else clips, frames, classes


def seen(net: extractors.Classifier, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A classifier's features of clips [N, D] and of frames [N, T, D'], and the classes it sees."""
    frames = net.frames(x)
    clips = net.clip(frames)
    return clips, frames, {name: logits.argmax(1) for name, logits in net.logits(clips).items()}


def _agreement(name: str) -> str:
    return "class_agreement" if name == "label" else f"{name}_agreement"


def _rounded(right: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in right.items()}

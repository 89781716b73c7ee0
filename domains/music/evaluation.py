"""How good music is: the distributions of sounds, the classes, pitch and rhythm by formulas.

N: sounds; C: channels; T: samples; M: bands; D: features; K: onsets.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation import metrics
from distillkit.evaluation.extractor import load_extractor, packed
from distillkit.evaluation.samples import BEYOND, OUTSIDE, batches, check, out_of_range
from domains.music import features as extractors
from domains.music import measures
from domains.music.clap import Clap
from domains.music.clip import CHORD, CLASSES, EIGHTH, RATE, RHYTHMS, SAMPLES, shuffled
from domains.music.features import spectrogram
from domains.music.tones import BAR

CHUNK, MOST_NUMBERS = 64, 2**26  # sounds in one pass of the classifier, and numbers in them
MOST_TRAINING = 2000  # training clips, evenly spread, among which the nearest is sought
NEIGHBOURS = 5
AVERAGES = {"name": "averages of the log-mel spectrogram over parts of the sound"}
PARTS = (16, 4)  # of bands and of time

# By rhythm: the semitones of its voices above the root, without octaves, and the seconds between
# its onsets, see `domains.music.tones`.
BARS = tuple(BAR * seconds for seconds in EIGHTH)
VOICES = {"note": CHORD[:1], "chord": CHORD[:3], "pulse": CHORD[:1], "arpeggio": CHORD[:3]}
PERIODS = {"note": BARS, "chord": BARS, "pulse": EIGHTH, "arpeggio": EIGHTH}

Batch = dict[str, Tensor]


class Look(NamedTuple):
    """Measurements of a set of sounds."""

    features: Tensor  # [N, D], float64
    spectrum: Tensor  # mean logarithms of mel magnitudes, [M]
    levels: Tensor  # dB, [N]
    classes: dict[str, Tensor]  # that the classifier sees, [N]


class MusicEvaluator:
    """Compares sounds with held-out ones.

    Features of a classifier:

    - `frechet` (the headline): Frechet audio distance, between Gaussians fitted to the features of
      sounds, each in units of its standard deviation over the reference. Its floor is well above 0,
      because there are many features and few samples.
    - `coverage` (k = 5).
    - `nearest_train`: mean distance to the nearest training clip.
    - `diversity`: mean distance of two samples.
    - `timbre_agreement`, `rhythm_agreement` ...: share of sounds in which the classifier sees the
      class that was asked for.

    Formulas:

    - `log_spectral`: root mean square difference, in dB, between the mean log-mel spectra of
      samples and reference.
    - `pair_spectral`: mean log-spectral distance, in dB, of samples from the teacher's of the same
      noise.
    - `pitch_error`: median distance, in cents, of the pitch from the one that was asked for.
    - `pitch_agreement`: share of sounds whose pitch is at most 50 cents from it.
    - `onset_f`: F-measure of onsets, within 50 ms, of the rhythm that was asked for at the tempo
      that fits best; not for sounds whose beginning was given.
    - `loudness`: mean level in dB; a full-scale square wave has 0.
    - `outside`: share of values clearly outside of [-1, 1], and `outside_by`: how far, in widths of
      that range. All are cut to it before they are measured.
    - `clap_frechet`, `clap_score`: see `domains.music.clap`, where a model was given; the score is
      that of the condition `prompt`, or of `label` where the classes are captions.

    Args:
        train: the training data, len() and train[indices] -> batch; None where there are no sounds
            of it: then `nearest_train` is left out, and classes count as none.
        held_out: one or two data sets. Samples are compared with the first (validation data). The
            last (test data) stands in for samples where real data are measured.
        classes: `{name: number of classes}`; if empty, or if they are prompts, the features are
            averages over parts of the spectrogram.
        rate: samples a second, in Hz.
        pitches: the MIDI numbers of the classes `pitch`, if there are such.
        clap: the user's CLAP, or None.
    """

    headline = "frechet"
    device = torch.device("cpu")  # of the extractors and of all features

    def __init__(
        self,
        train: Any,
        held_out: Sequence[Any],
        classes: dict[str, int],
        rate: int,
        pitches: Sequence[int] | None = None,
        clap: Clap | None = None,
    ):
        self.train, self.reference, self.real, self.rate = train, held_out[0], held_out[-1], rate
        self.classes = {} if train is None else {name: num for name, num in classes.items() if name != "prompt"}
        self.pitches, self.clap, self.rhythms = pitches, clap, self.classes == CLASSES
        self.event_shape = tuple(self.reference[torch.zeros(1, dtype=torch.long)]["data"].shape[1:])
        self.seconds = self.event_shape[-1] / rate
        self.chunk = max(1, min(CHUNK, MOST_NUMBERS // math.prod(self.event_shape)))
        self.look = lru_cache(maxsize=3)(self._looked)  # by identity: pairs share their samples

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        better = {"frechet": "lower", "coverage": "higher"}
        better |= {} if self.train is None else {"nearest_train": "target"}
        better |= {"diversity": "target"} | {_agreement(name): "higher" for name in self.classes}
        better |= {"log_spectral": "lower", "pair_spectral": "lower"}
        better |= {"pitch_error": "lower"} if self.pitches is not None else {}
        better |= {"onset_f": "higher"} if self.rhythms else {}
        better |= {"loudness": "target", **OUTSIDE}
        better |= {"clap_frechet": "lower"} if self.clap else {}
        return better | ({"clap_score": "higher"} if self.clap and self.clap.prompts else {})

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "music",
            "features": self.extractor[1],
            "reference": "validation data",
            "num_reference": len(self.reference),
            **({} if self.train is None else {"num_train": min(len(self.train), MOST_TRAINING)}),
            "sample_rate": self.rate,
            "seconds": self.seconds,
            "spectrum": {"window": extractors.window(self.rate), "floor": extractors.FLOOR},
            "outside": f"more than {BEYOND} beyond [-1, 1]",
            "neighbours": NEIGHBOURS,
            **({"pitch_agreement": f"{measures.NEAR:g} cents"} if self.pitches is not None else {}),
            **({"onset_f": f"{1000 * measures.TOLERANCE:g} ms"} if self.rhythms else {}),
            **({"clap": self.clap.facts} if self.clap else {}),
        }

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of samples [N, C, T] in [-1, 1], made for the conditions `cond`."""
        check(samples, self.event_shape)
        ours = self.look(samples)
        points = metrics.Points(metrics.standardise(ours.features, self._raw))
        found = {
            "frechet": metrics.frechet_distance(points, self._points),
            "coverage": metrics.density_coverage(self._points, points, min(NEIGHBOURS, len(self._points) - 1))[1],
            **({} if self.train is None else {"nearest_train": metrics.nearest_distance(points, self._training)[0]}),
            "diversity": spread_of(points),
        }
        for name, seen in ours.classes.items():
            if name in cond and not (name == "pitch" and self.pitches is not None):
                found[_agreement(name)] = metrics.Estimate.mean(seen == cond[name].to(seen))
        apart = measures.decibels(ours.spectrum - self._reference.spectrum)
        found["log_spectral"] = float(apart.square().mean().sqrt())
        if self.pitches is not None and "pitch" in cond:
            found |= self._pitch(samples, cond)
        if self.rhythms and "rhythm" in cond and "first" not in cond:
            found["onset_f"] = self._onset_f(samples, cond["rhythm"])
        return found | {"loudness": metrics.Estimate.mean(ours.levels), **out_of_range(samples)}

    def paired(self, samples: Tensor, reference: Tensor, cond: Batch) -> dict[str, float]:
        """The log-spectral distance from references of the same noise, one by one."""
        pairs = zip(samples.split(self.chunk), reference.split(self.chunk), strict=True)
        apart = [measures.log_spectral_distance(*(self._spectrogram(x) for x in pair)) for pair in pairs]
        return {"pair_spectral": metrics.Estimate.mean(torch.cat(apart))}

    def thorough(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """What CLAP hears, whose model is large."""
        if self.clap is None:
            return {}
        self.clap.device = self.device
        heard = self.clap.features(samples, self.rate)
        found = {"clap_frechet": metrics.frechet_distance(heard, self._heard)}
        text = cond.get("prompt", cond.get("label"))  # captions may be classes
        scored = self.clap.prompts and text is not None
        return found | ({"clap_score": self.clap.score(heard, text)} if scored else {})

    def floor(self, num_samples: int = 250) -> dict[str, float]:
        """Metrics of test clips.

        Give `num_samples` the number of samples of the model beside it: the distances are biased by
        it.
        """
        batch = self.real[shuffled(len(self.real), num_samples)]
        return self(batch["data"], batch) | self.thorough(batch["data"], batch)

    @cached_property
    def extractor(self) -> tuple[extractors.Classifier | None, dict[str, Any]]:
        """The classifier and its description: the shipped one if it reads this data, or a new one.

        A new one is fitted to the training data.
        """
        if not self.classes:
            return None, AVERAGES
        if (self.event_shape, self.classes, self.rate) == ((1, SAMPLES), CLASSES, RATE):
            net = load_extractor(extractors.Classifier, extractors.SHIPPED).to(self.device)
            right = extractors.accuracy(net, self.reference)
            if min(right.values()) > 0.9:
                sha256 = hashlib.sha256(extractors.SHIPPED.read_bytes()).hexdigest()
                return net, {"name": "tones classifier", "sha256": sha256, "held_out_accuracy": _rounded(right)}
        net = extractors.train_classifier(self.train, self.classes, self.rate, extractors.STEPS).to(self.device)
        facts = {
            "name": f"classifier fitted to the training data ({extractors.STEPS} steps, seed 0)",
            "sha256": hashlib.sha256(packed(net)).hexdigest(),
            "held_out_accuracy": _rounded(extractors.accuracy(net, self.reference)),
        }
        return net, facts

    def _pitch(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Distances of pitches from those that were asked for."""
        pitches = torch.tensor(self.pitches, dtype=torch.double)
        lowest, highest = float(pitches.min()) - measures.BESIDE, float(pitches.max()) + measures.BESIDE
        asked, cents = pitches[cond["pitch"].cpu()], torch.zeros(len(samples), dtype=torch.double)
        rhythm = cond["rhythm"].cpu() if self.rhythms else torch.zeros(len(samples), dtype=torch.long)
        for kind in rhythm.unique().tolist():
            for rows in (rhythm == kind).nonzero()[:, 0].split(self.chunk):
                x = self._cut(samples[rows])
                heard = measures.pitch(x, self.rate, lowest, highest, VOICES[RHYTHMS[kind]])
                cents[rows] = 100 * (heard.double().cpu() - asked[rows]).abs()
        return {
            "pitch_error": float(cents.median()),
            "pitch_agreement": metrics.Estimate.mean(cents <= measures.NEAR),
        }

    def _onset_f(self, samples: Tensor, rhythm: Tensor) -> float:
        rhythm, total = rhythm.cpu(), 0.0
        for kind in rhythm.unique().tolist():
            for rows in (rhythm == kind).nonzero()[:, 0].split(self.chunk):
                found = measures.onsets(self._cut(samples[rows]), self.rate)
                total += float(measures.onset_f(found, PERIODS[RHYTHMS[kind]], self.seconds).sum())
        return total / len(samples)

    def _cut(self, x: Tensor) -> Tensor:
        return x.to(self.device).float().clamp(-1, 1)

    def _spectrogram(self, x: Tensor) -> Tensor:
        return spectrogram(self._cut(x), self.rate)

    def _looked(self, samples: Tensor) -> Look:
        return self._look([samples])

    @torch.no_grad()
    def _look(self, parts: Iterable[Tensor]) -> Look:
        """The measurements of sounds that come in parts."""
        found, spectra, levels, classes = [], [], [], []
        for x in (self._cut(x) for part in parts for x in part.split(self.chunk)):
            features, seen, mels = self._features(x)
            found.append(features.double())
            classes.append(seen)
            spectra.append(mels.double().mean((1, 3)))
            levels.append(measures.level(x))
        names = classes[0]
        return Look(
            torch.cat(found),
            torch.cat(spectra).mean(0),
            torch.cat(levels),
            {name: torch.cat([seen[name] for seen in classes]) for name in names},
        )

    def _features(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Features [N, D] of sounds, the classes seen, and logarithms of mel magnitudes."""
        mels, net = spectrogram(x, self.rate), self.extractor[0]
        if net is None:
            return F.adaptive_avg_pool2d(mels, PARTS).flatten(1), {}, mels
        features = net.features(mels)
        return features, {name: logits.argmax(1) for name, logits in net.logits(features).items()}, mels

    @cached_property
    def _reference(self) -> Look:
        return self._look(batch["data"] for batch in batches(self.reference, self.chunk))

    @cached_property
    def _raw(self) -> metrics.Points:
        """Features of the reference."""
        return metrics.Points(self._reference.features)

    @cached_property
    def _points(self) -> metrics.Points:
        """The same in units of their standard deviations, as all features that are compared."""
        return metrics.Points(metrics.standardise(self._raw, self._raw))

    @cached_property
    def _training(self) -> metrics.Points:
        look = self._look(batch["data"] for batch in batches(self.train, self.chunk, MOST_TRAINING))
        return metrics.Points(metrics.standardise(look.features, self._raw))

    @cached_property
    def _heard(self) -> metrics.Points:
        """CLAP's embeddings of the reference."""
        parts = batches(self.reference, self.chunk)
        return metrics.Points(torch.cat([self.clap.features(batch["data"], self.rate) for batch in parts]))


def spread_of(points: metrics.Points) -> float:
    """Mean distance of two different points."""
    return points.mean_distance * len(points) / max(1, len(points) - 1)


def _agreement(name: str) -> str:
    return "class_agreement" if name == "label" else f"{name}_agreement"


def _rounded(right: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 4) for name, share in right.items()}

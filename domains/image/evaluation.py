"""How good images are: distances in feature space to data that nobody trained on.

N: images; C, H, W: channels, height, width; D: features.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillkit.errors import install
from distillkit.evaluation import metrics
from distillkit.evaluation.extractor import load_extractor, packed
from distillkit.evaluation.samples import BEYOND, OUTSIDE, batches, check, eight_bits, out_of_range
from domains.image import features as extractors
from domains.image.clip import ClipScore

MOST_REFERENCES = 10_000  # larger held-out sets are thinned out evenly
MOST_TRAINING = 50_000  # the same for the training data
PIXEL_SIDE = 16
CHUNK, MOST_NUMBERS = 256, 2**26  # images in one pass of the extractor, and numbers in them


class ImageEvaluator:
    """Compares images with held-out data (validation and test together), in a feature space.

    - `frechet`, the headline: between Gaussians fitted to the features.
    - `kernel`: MMD^2.
    - `precision` and `recall` (k = 3); `density` and `coverage` (k = 5).
    - `class_agreement`: share of samples in which the classifier sees the class that was asked for.
    - `nearest_train`: mean distance to the nearest training sample. Compare it with that of the
      real data: a model that copies its training data comes out far below.
    - `outside`: share of values clearly beyond [-1, 1], and `outside_by`: how far, in widths of
      that range. All values are cut to it before they are measured, as a file would keep them.
    - `clip`: the CLIP score of images and their prompts, where a model was given.

    Args:
        train: the training data, len() and train[indices] -> {"data": [N, C, H, W], "label": [N]};
            None where there are no images of it: then `nearest_train` and most of the floor are
            left out.
        held_out: one or several data sets of the same kind.
        classes: {"label": number of classes}, or empty.
        features: `auto` (the shipped extractor for digits, else a classifier fitted to the training
            labels, else pixels), `pixels`, or `inception:/path/to/weights`.
        clip: the CLIP score of the prompts, or None.
        most_training: training images that samples are compared with; more are thinned out evenly.
    """

    headline = "frechet"
    device = torch.device("cpu")  # of the extractor and of all features
    neighbours = {"precision_recall": 3, "density_coverage": 5}
    kernel = {"subsets": 50, "size": 1000, "seed": 0}
    needs = {"frechet": 2, "kernel": 2, "precision": 4, "recall": 4, "density": 6, "coverage": 6}  # images of both sets

    def __init__(
        self,
        train: Any,
        held_out: Any,
        classes: dict[str, int],
        features: str = "auto",
        clip: ClipScore | None = None,
        most_training: int = MOST_TRAINING,
    ):
        kind, _, path = features.partition(":")
        if kind not in ("auto", "pixels", "inception") or (kind == "inception") != bool(path):
            raise ValueError(f"features must be auto, pixels or inception:/path/to/weights, got {features!r}")
        self.train = train
        self.held_out = list(held_out) if isinstance(held_out, list | tuple) else [held_out]
        self.num_classes = classes.get("label")
        one = self.held_out[0] if train is None else train
        self.event_shape = tuple(one[torch.zeros(1, dtype=torch.long)]["data"].shape[1:])
        self.chunk = max(1, min(CHUNK, MOST_NUMBERS // math.prod(self.event_shape)))
        self.clip, self.most_training = clip, most_training
        self.choice, self.path = kind, Path(path).expanduser() if path else None

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        better = {"frechet": "lower", "kernel": "lower", "precision": "higher", "recall": "higher"}
        better |= {"density": "target", "coverage": "higher", **OUTSIDE}
        better |= {} if self.train is None else {"nearest_train": "target"}
        better |= {"clip": "higher"} if self.clip else {}
        return better | ({"class_agreement": "higher"} if self._sees_classes else {})

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        return {
            "domain": "image",
            "features": self.extractor.facts
            | {
                "dimensions": self._reference.shape[1],
                "standardised": self.extractor.standardised,
            },
            "reference": "validation and test data",
            "num_reference": len(self._reference),
            **({} if self.train is None else {"num_train": len(self._training)}),
            "pixels": "rounded to 8 bits",
            "outside": f"more than {BEYOND} beyond [-1, 1]",
            "neighbours": dict(self.neighbours),
            "kernel": dict(self.kernel),
            **({"clip": self.clip.facts} if self.clip else {}),
        }

    def __call__(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """Metrics of samples [N, C, H, W] in [-1, 1], made for the conditions `cond`."""
        check(samples, self.event_shape)
        raw = self._raw([samples])
        scaled = self._scaled(raw)
        found = self._compare(scaled)
        if self.train is not None:
            found["nearest_train"], _ = metrics.nearest_distance(scaled, self._training)
        found |= out_of_range(samples)
        if self._sees_classes and "label" in cond:
            found["class_agreement"] = self._agreement(raw, cond["label"])
        return found

    def thorough(self, samples: Tensor, cond: dict[str, Tensor]) -> dict[str, float]:
        """The CLIP score, whose model is large."""
        if self.clip is None:
            return {}
        self.clip.device = self.device
        return {"clip": self.clip(samples, cond["prompt"])}

    def floor(self, num_samples: int | None = None) -> dict[str, float]:
        """Metrics of real data: training images against the held-out data.

        Give `num_samples` the number of samples of the model beside it: the distances are biased by
        it, alike for both; by default it is the number held out. Where the training data would look
        perfect by construction (its own nearest neighbour, the labels its classifier was fitted to)
        the value is that of the held-out data.
        """
        found = {}
        if self.clip:
            size, total = min(num_samples or MOST_REFERENCES, len(self.held_out[-1])), 0.0
            for batch in batches(self.held_out[-1], self.chunk, size):
                total += len(batch["data"]) * self.thorough(batch["data"], batch)["clip"]
            found["clip"] = total / size
        if self.train is None:
            return found
        size = min(num_samples or len(self._reference), len(self._training))
        rows = torch.from_numpy(np.random.RandomState(0).permutation(len(self._training))[:size])
        found |= self._compare(metrics.Points(self._training.points_ND[rows.to(self.device)]))
        found["nearest_train"], _ = metrics.nearest_distance(self._reference, self._training)
        found |= dict.fromkeys(OUTSIDE, 0.0)
        if self._sees_classes:
            label_N = torch.cat([batch["label"] for batch in self._held_out()])
            found["class_agreement"] = self._agreement(self._raw_reference, label_N)
        return found

    @cached_property
    def extractor(self) -> "Extractor":
        if self.choice == "inception":
            return inception(self.path, self.device)
        if self.choice == "pixels" or not self.num_classes:
            return pixels()
        if shipped := self._shipped():
            return shipped
        net = extractors.train_classifier(self.train, self.num_classes, extractors.STEPS).to(self.device)
        sha256 = hashlib.sha256(packed(net)).hexdigest()
        name = f"classifier fitted to the training data ({extractors.STEPS} steps, seed 0)"
        return classifier(net, name, sha256, self._accuracy(net))

    def _shipped(self) -> "Extractor | None":
        """The extractor for digits, if the data has their shape and the classifier can read it."""
        if self.event_shape != (1, 8, 8) or self.num_classes != 10:
            return None
        net = load_extractor(extractors.Classifier, extractors.SHIPPED).to(self.device)
        if (right := self._accuracy(net)) < 0.9:
            return None
        return classifier(net, "digits classifier", hashlib.sha256(extractors.SHIPPED.read_bytes()).hexdigest(), right)

    def _accuracy(self, net: nn.Module) -> float:
        parts = [(extractors.accuracy(net, part), len(part)) for part in self.held_out]
        return sum(right * size for right, size in parts) / sum(size for _, size in parts)

    @property
    def _sees_classes(self) -> bool:
        return self.extractor.predict is not None

    def _compare(self, features: metrics.Points) -> dict[str, float]:
        """Metrics of features against the reference, but for those that are `too_few`."""
        real, left, found = self._reference, self.too_few(len(features)), {}
        if "frechet" not in left:
            found["frechet"] = metrics.frechet_distance(features, real)
            found["kernel"] = metrics.kernel_distance(features, real, **self.kernel)
        enough = {name: k for name, k in self.neighbours.items() if name.partition("_")[0] not in left}
        return found | metrics.prdc(real, features, **enough) if enough else found

    def too_few(self, num_samples: int) -> list[str]:
        """The metrics left out because so many samples, or the images held out, are too few."""
        least = min(num_samples, len(self._reference))
        return [name for name, needed in self.needs.items() if least < needed]

    def _scaled(self, raw: metrics.Points) -> metrics.Points:
        return metrics.Points(metrics.standardise(raw, self._raw_reference)) if self.extractor.standardised else raw

    @cached_property
    def _raw_reference(self) -> metrics.Points:
        return self._raw(batch["data"] for batch in self._held_out())

    @cached_property
    def _reference(self) -> metrics.Points:
        return self._scaled(self._raw_reference)

    @cached_property
    def _training(self) -> metrics.Points:
        return self._scaled(self._raw(batch["data"] for batch in batches(self.train, self.chunk, self.most_training)))

    def _held_out(self) -> Iterator[dict[str, Tensor]]:
        total = sum(map(len, self.held_out))
        for part in self.held_out:
            yield from batches(part, self.chunk, max(1, MOST_REFERENCES * len(part) // total))

    @torch.no_grad()
    def _raw(self, images: Iterable[Tensor]) -> metrics.Points:
        parts = (x.to(self.device) for part in images for x in part.split(self.chunk))
        return metrics.Points(torch.cat([self.extractor(eight_bits(x)) for x in parts]))

    @torch.no_grad()
    def _agreement(self, raw: metrics.Points, label_N: Tensor) -> metrics.Estimate:
        seen_N = self.extractor.predict(raw.points_ND.float())
        return metrics.Estimate.mean(seen_N == label_N.to(seen_N))


@dataclass
class Extractor:
    """Images [N, C, H, W] in [-1, 1] to features [N, D], on the device of its network.

    `predict` gives the class numbers [N] of features, where it can. `standardised` says whether
    every feature counts alike. Learned features do. Pixels keep their common unit, since one that
    is almost constant would count most. Inception's keep theirs, as in the published numbers.
    """

    facts: dict[str, Any]
    features: Callable[[Tensor], Tensor]
    predict: Callable[[Tensor], Tensor] | None = None
    standardised: bool = False

    def __call__(self, x_NCHW: Tensor) -> Tensor:
        return self.features(x_NCHW)


def pixels() -> Extractor:
    """The pixels themselves, shrunk to 16 x 16."""
    facts = {"name": f"pixels, at most {PIXEL_SIDE} x {PIXEL_SIDE}"}
    return Extractor(facts, lambda x_NCHW: extractors.shrunk(x_NCHW, PIXEL_SIDE).flatten(1))


def classifier(net: extractors.Classifier, name: str, sha256: str, held_out_accuracy: float) -> Extractor:
    facts = {"name": name, "sha256": sha256, "held_out_accuracy": round(held_out_accuracy, 4)}
    return Extractor(
        facts,
        net.features,
        lambda features_ND: net.head(features_ND).argmax(1),
        standardised=True,
    )


def inception(path: Path, device: torch.device) -> Extractor:
    """InceptionV3's 2048 features, as in the published FID numbers; the user has the weights."""
    if not path.is_file():
        raise ValueError(f"no Inception weights at {path}; give data.features=inception:/path/to/weights.pth")
    try:
        torch.load(
            path, map_location="cpu", weights_only=True
        )  # torch-fidelity would execute whatever a pickle asks for
    except Exception as error:
        raise ValueError(
            f"{path} holds no plain weights ({type(error).__name__}); use those of torch-fidelity"
        ) from None
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)
    except ImportError as error:
        raise ValueError(f"Inception features need torch-fidelity ({error}): {install('vision')}") from None
    except Exception as error:
        raise ValueError(f"{path} does not load as Inception weights ({error}); use those of torch-fidelity") from None
    facts = {"name": "InceptionV3", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}

    def features(x_NCHW: Tensor) -> Tensor:
        x_uint8 = ((x_NCHW + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return net(x_uint8)

    return Extractor(facts, features)

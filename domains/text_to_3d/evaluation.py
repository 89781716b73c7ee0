"""How well renders show the solids that were asked for, and how well scenes are them.

N: images; P: prompts; D: features; H, W: height, width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distillkit.evaluation import metrics
from distillkit.evaluation.extractor import load_extractor
from distillkit.evaluation.samples import BEYOND, OUTSIDE, check, eight_bits, out_of_range
from distillkit.students.base import Student
from domains.image.clip import ClipScore
from domains.image.prompts import PromptEvaluator as WithoutSolids
from domains.text_to_3d import features as extractors
from domains.text_to_3d import shapes
from domains.text_to_3d.solids import COLOURS, PROMPTS, SHAPES, painted, seen
from domains.text_to_3d.views import VIEWS, view_of
from domains.threed.evaluation import CELLS, Surfaces, chamfer
from domains.threed.meshes import Mesh

REFERENCES = 64  # views of each prompt that the samples' distribution is compared with
SIDE = 32  # pixels at which the classifier looks
CHUNK = 256  # images in one pass of it
BEST_PSNR = 60.0  # decibels, of equal images
FRONT = VIEWS.index("front")

Batch = dict[str, Tensor]


class Evaluator:
    """Measures renders of the embedded solids, or a teacher's images of them.

    The truth, which no method sees, is the solid of the prompt, seen by the same camera.

    In the features of a classifier:

    - `frechet` (the headline): between Gaussians fitted to the features of samples and of true
      renders by other cameras, each in units of its standard deviation over these.
    - `rank`: mean rank of the right prompt among all by the classifier's probabilities, 1 is best.
    - `r_precision`: share of prompts that come first by the mean over their views.
    - `view_agreement`: share of samples in which the classifier sees the camera's word.
    - `janus`: share of the views from elsewhere in which it sees a front.

    In pixels:

    - `solid_rank`, `solid_r_precision`: the same as above by the squared distance from the true
      renders of all solids by the same camera.
    - `psnr_to_solid`: against the true render, at most 60. A teacher which is told a word and not
      the camera cannot have a high one.
    - `outside`: share of values clearly outside of [-1, 1], and `outside_by`: how far, in widths of
      that range. All are cut to it before they are measured.

    Of scenes themselves, the mean over the scenes of the prompts (see `shapes`):

    - `chamfer`: from the surface to that of the solid, in the unit of the world, in which the cube
      has side 2: the mean over both ways of the mean distance to the nearest of the cells that the
      other passes through. A scene without a surface counts as a point in the middle.
    - `opacity`, `decided`, `floaters`: see `shapes.occupancy`.

    Args:
        train: the training data, len() and train[indices] -> batch; its cameras see the reference.
        held_out: one or two data sets; the last stands in for samples where real data are measured.
        clip: the CLIP score of the prompts, which gives `clip` and `clip_r_precision`, or None.
    """

    headline, beside = "frechet", "psnr_to_solid"
    device = torch.device("cpu")  # of the classifier, the features and the truth

    def __init__(self, train: Any, held_out: Sequence[Any], clip: ClipScore | None = None):
        self.train, self.real, self.clip = train, held_out[-1], clip
        everything = self.real[torch.arange(len(self.real))]
        self.asked, self.event_shape = everything["prompt"].unique(), tuple(everything["data"].shape[1:])
        self._views = Views(self.event_shape[-1])

    @property
    def better(self) -> dict[str, str]:
        """Which way each metric is good; `target` means close to the value of real data."""
        better = {"frechet": "lower", "rank": "lower", "r_precision": "higher", "solid_rank": "lower"}
        better |= {"solid_r_precision": "higher", "psnr_to_solid": "higher", "view_agreement": "higher"}
        better |= {"janus": "lower", **OUTSIDE}
        better |= {"chamfer": "lower", "opacity": "target", "decided": "higher", "floaters": "lower"}
        return better | ({"clip": "higher", "clip_r_precision": "higher"} if self.clip else {})

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data; numbers under different protocols are not comparable."""
        path = extractors.SHIPPED
        accuracy = extractors.accuracy(self.extractor, self.real)
        return {
            "domain": "text_to_3d",
            "features": {
                "name": "solids classifier",
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "held_out_accuracy": {kind: round(share, 4) for kind, share in accuracy.items()},
            },
            "reference": f"{REFERENCES} true renders of each prompt by training cameras",
            "num_prompts": len(PROMPTS),
            "pixels": "rounded to 8 bits",
            "outside": f"more than {BEYOND} beyond [-1, 1]",
            "best_psnr": BEST_PSNR,
            "surface_cells": CELLS,
            "opacity_cells": shapes.CELLS,
            "half_of_the_light_in": shapes.HALF,
            **({"clip": self.clip.facts} if self.clip else {}),
        }

    def __call__(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """Metrics of samples [N, 3, H, W] in [-1, 1], made for `prompt` and `camera`."""
        check(samples, self.event_shape)
        x, prompt, camera = (each.to(self.device) for each in (eight_bits(samples), cond["prompt"], cond["camera"]))
        raw = self._raw(x)
        found = {"frechet": metrics.frechet_distance(metrics.standardise(raw, self._raw_reference), self._reference)}
        found["rank"], found["r_precision"] = ranked(self.extractor.prompts(raw), prompt)
        error = self._errors(x, camera)
        found["solid_rank"], found["solid_r_precision"] = ranked(-error, prompt)
        own = error.gather(1, prompt[:, None])[:, 0]
        found["psnr_to_solid"] = metrics.Estimate.mean((10 * torch.log10(4 / own)).clamp_max(BEST_PSNR))
        word, wanted = self.extractor.logits(raw)["view"].argmax(1), view_of(camera)
        found["view_agreement"] = metrics.Estimate.mean(word == wanted)
        if (elsewhere := wanted != FRONT).any():
            found["janus"] = float((word[elsewhere] == FRONT).double().mean())
        return found | {**out_of_range(samples)}

    def thorough(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """What a CLIP model says, which is large: its score, and the R-precision by it."""
        return by_clip(self.clip, self.device, samples, cond["prompt"]) if self.clip else {}

    def of_student(self, student: Student, cond: Batch) -> dict[str, float]:
        """Metrics of the student's scenes of the prompts in `cond`; none if it has no scenes."""
        return averaged([of_scene(scene) for scene in shapes.scenes(student, cond)])

    def floor(self, num_samples: int = 250) -> dict[str, float]:
        """Metrics of held-out true renders, and the opacity of the solids.

        They have no PSNR, for they are the truth. Give `num_samples` the number of samples of the
        model beside it: the distance is biased by it.
        """
        batch = self.real[torch.arange(num_samples) % len(self.real)]
        found = self(batch["data"], batch) | self.thorough(batch["data"], batch)
        del found["psnr_to_solid"]
        volumes = [shapes.true_mesh(_shape(prompt)).volume for prompt in self.asked.tolist()]
        return found | {"opacity": float(np.mean(volumes)) / 8}

    @cached_property
    def extractor(self) -> extractors.Classifier:
        """The shipped classifier."""
        return load_extractor(extractors.Classifier, extractors.SHIPPED).to(self.device)

    @cached_property
    def _raw_reference(self) -> Tensor:
        rows = np.random.RandomState(0).permutation(len(self.train))[:REFERENCES]
        camera = self.train[torch.from_numpy(rows)]["camera"].to(self.device)
        return self._raw(torch.cat([eight_bits(self._views(prompt, camera)) for prompt in self.asked.tolist()]))

    @cached_property
    def _reference(self) -> metrics.Points:
        return metrics.Points(metrics.standardise(self._raw_reference, self._raw_reference))

    @torch.no_grad()
    def _raw(self, x: Tensor) -> Tensor:
        """Features [N, 64] of images."""
        small = x if x.shape[-1] == SIDE else F.interpolate(x, [SIDE, SIDE], mode="bilinear", antialias=True)
        return torch.cat([self.extractor(part) for part in small.split(CHUNK)])

    def _errors(self, x: Tensor, camera: Tensor) -> Tensor:
        """Mean squared distances [N, P] of images from the true renders of all solids."""
        truths = (eight_bits(self._views(prompt, camera)) for prompt in range(len(PROMPTS)))
        return torch.stack([(x - truth).square().mean((1, 2, 3)) for truth in truths], 1)


def of_scene(scene: shapes.Scene) -> dict[str, float]:
    """What a scene is, beside the solid of its prompt; see `Evaluator`."""
    both = shapes.mesh(scene), shapes.true_mesh(_shape(scene.prompt))
    own, true = (Surfaces([Mesh(each.vertices / 2, each.faces)]) for each in both)  # in a cube of side 1
    return {"chamfer": 2 * float(chamfer(own, true)), **shapes.occupancy(shapes.opacities(scene))}


class PromptEvaluator(WithoutSolids):
    """Measures renders for a user's prompts, without any truth.

    As `domains.image.prompts.PromptEvaluator`, and:

    - `clip_r_precision`: share of prompts that come first among all by the mean over their samples
      of what the CLIP model says, where one was given.
    - `opacity`, `decided`, `floaters`: of scenes themselves, see `shapes.occupancy`.

    Args:
        event_shape, features, clip: as in `domains.image.prompts.PromptEvaluator`.
    """

    def __init__(self, event_shape: tuple[int, ...], features: str = "averages", clip: ClipScore | None = None):
        super().__init__(event_shape, features, clip)
        self.better = self.better | {"decided": "higher", "floaters": "lower"}
        self.better |= {"clip_r_precision": "higher"} if clip else {}

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data."""
        return super().describe() | {"domain": "text_to_3d", "opacity_cells": shapes.CELLS}

    def thorough(self, samples: Tensor, cond: Batch) -> dict[str, float]:
        """What a CLIP model says, which is large."""
        return by_clip(self.clip, self.device, samples, cond["prompt"]) if self.clip else {}

    def of_student(self, student: Student, cond: Batch) -> dict[str, float]:
        """Metrics of the student's scenes of the prompts in `cond`; none if it has no scenes."""
        return averaged([shapes.occupancy(shapes.opacities(scene)) for scene in shapes.scenes(student, cond)])


def by_clip(clip: ClipScore, device: torch.device, samples: Tensor, prompt: Tensor) -> dict[str, float]:
    """The CLIP score of images [N, C, H, W] for their prompts, int64 [N], and the R-precision."""
    clip.device = device
    cosine = clip.features(samples).cpu() @ clip.embedded(torch.arange(len(clip.prompts))).double().T
    own = cosine.gather(1, prompt[:, None].cpu())
    return {"clip": float(100 * own.clamp_min(0).mean()), "clip_r_precision": ranked(cosine, prompt.cpu())[1]}


def averaged(found: list[dict[str, float]]) -> dict[str, float]:
    """The means of numbers by name; nothing of nothing."""
    return {name: float(np.mean([each[name] for each in found])) for name in (found[0] if found else ())}


class Views:
    """True renders of all prompts by the same cameras; a camera sees each shape but once.

    Args:
        side: pixels along a side.
    """

    def __init__(self, side: int):
        self.side, self._known = side, {}

    def __call__(self, prompt: int, camera: Tensor) -> Tensor:
        """Renders [N, 3, side, side] in [-1, 1] of a prompt by cameras [N, 13]."""
        shape, colour = divmod(prompt, len(COLOURS))
        cameras, row = camera.unique(dim=0, return_inverse=True)  # conditions repeat
        key = shape, hashlib.sha256(cameras.cpu().numpy().tobytes()).digest(), camera.device
        if key not in self._known:
            while len(self._known) >= 2 * len(SHAPES):
                self._known.pop(next(iter(self._known)))
            self._known[key] = seen(shape, cameras, self.side)
        looks = self._known[key]
        return painted(looks, torch.full([len(looks)], colour, device=looks.device))[row]


def ranked(scores: Tensor, right: Tensor) -> tuple[metrics.Estimate, float]:
    """How well scores find the right prompt.

    Args:
        scores: of each prompt for each sample, [N, P], higher is better.
        right: the right one, int64 [N].

    Returns:
        The mean rank of the right prompt, 1 is best, where ties share their ranks; and the share of
        right prompts that come first, alone, by the mean of the scores over all of their samples.
    """
    asked, row = right.unique(return_inverse=True)
    total = scores.new_zeros(len(asked), scores.shape[1]).index_add_(0, row, scores)
    mean = total / torch.bincount(row)[:, None]
    return metrics.Estimate.mean(_rank(scores, right)), float((_rank(mean, asked) == 1).double().mean())


def _shape(prompt: int) -> int:
    """The number in `solids.SHAPES` of a prompt's shape."""
    return prompt // len(COLOURS)


def _rank(scores: Tensor, right: Tensor) -> Tensor:
    own = scores.gather(1, right[:, None].to(scores.device))
    return 0.5 + (scores > own).sum(1) + (scores == own).sum(1) / 2

"""Photographs `data` [B, 3, sH, sW] and their observations `low` [B, 3, H, W], float32 in [-1, 1].

B: batch; H, W: height and width of an observation; s: the scale between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData, split
from distillkit.errors import did_you_mean
from distillkit.sources import Source, drawn
from domains.image.reading import SUFFIXES
from domains.super_resolution.degradation import DEGRADATIONS, bicubic
from domains.super_resolution.measures import psnr
from domains.super_resolution.pairs import matched
from domains.super_resolution.photographs import SCALES, Photographs, look, small
from domains.super_resolution.squares import TEST, VAL, HeldOut, Squares

Parts = tuple[Squares, HeldOut, HeldOut]


class SuperResolutionData(DistillData):
    """Base of all photographs: how they are cut, degraded, measured and shown.

    With a tower of easier scales, a batch has the observation at each of them too (`low_2`), and
    each is made from the one before by bicubic interpolation, `low` from the last; only the first
    is degraded.

    Args:
        scale: how many times smaller an observation is: 2, 3, 4 or 8.
        crop: side of the photographs' squares, in pixels, divisible by the scale.
        degradation: how observations are made: `bicubic`, `realesrgan` or `realesrgan_light`.
        tower: rising scales, each of which divides the next one and the last one the scale.
        held_out: number of squares of the validation and of the test data each.
        seed: of the split and of all squares.
        workers: processes that decode training batches; 0 leaves it to threads, None chooses.
        lpips, dists: paths of weights, by which samples are measured too, see `evaluation`.
        no_reference: names of pyiqa's metrics, the same.
        batch_size: squares in a batch.
    """

    domain = "super_resolution"
    context = ("low",)
    classes = {}
    asks = {"low": "the small photographs, [n, 3, height, width] in [-1, 1]"}
    pictured = 16
    provides = DistillData.provides | {"reward"}

    def __init__(
        self,
        scale: int = 4,
        crop: int = 48,
        degradation: str = "bicubic",
        tower: Sequence[int] = (),
        held_out: int = 250,
        seed: int = 0,
        workers: int | None = 0,
        lpips: str | None = None,
        dists: str | None = None,
        no_reference: Sequence[str] = (),
        batch_size: int = 16,
    ):
        super().__init__(batch_size=batch_size)
        if scale not in SCALES:
            raise checks.Unfit("scale", scale, "be 2, 3, 4 or 8")
        checks.whole(16, 4096, crop=crop)
        if crop % scale:
            raise checks.Unfit("crop", crop, f"be divisible by the scale {scale}")
        if degradation not in DEGRADATIONS:
            known = ", ".join(DEGRADATIONS)
            raise ValueError(
                f"degradation must be one of {known}, got {degradation!r}{did_you_mean(str(degradation), DEGRADATIONS)}"
            )
        checks.whole(2, 8, tower=list(tower))
        if any(hard % easy or hard == easy for easy, hard in pairwise((*tower, scale))):
            raise checks.Unfit("tower", list(tower), f"be rising scales, each a divisor of the next, below {scale}")
        checks.whole(1, 100_000, held_out=held_out)
        checks.workers(workers=workers)
        checks.seed(seed=seed)
        self.scale, self.crop, self.degradation, self.tower = scale, crop, degradation, tuple(tower)
        self.held_out, self.seed, self.workers = held_out, seed, workers
        self.lpips, self.dists, self.no_reference = lpips, dists, tuple(no_reference)
        self.event_shape = (3, crop, crop)
        self.easier = [{"low": f"low_{easy}"} for easy in self.tower]

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """`provides`, and `tower` where batches hold easier observations."""
        return cls.provides | ({"tower"} if arguments.get("tower") else set())

    def parts(self, train: Photographs, val: Photographs, test: Photographs) -> Parts:
        """The data sets of three kinds of photographs."""
        common = {"crop": self.crop, "finish": self.settings().finish, "seed": self.seed}
        val, test = (HeldOut(each, part=part, num=self.held_out, **common) for each, part in ((val, VAL), (test, TEST)))
        return Squares(train, **common), val, test

    def finish(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Batch:
        """A batch of photographs, degraded by a seed each."""
        (data,) = images
        batch, last, reached = {"data": data}, data, 1
        for scale in (*self.tower, self.scale):
            degrade = DEGRADATIONS[self.degradation] if reached == 1 else bicubic
            last, reached = degrade(last, scale // reached, seeds), scale
            batch["low" if scale == self.scale else f"low_{scale}"] = last
        return batch

    def setup(self, stage: str | None = None) -> None:
        """As in `DistillData`; what a run will be measured with is read before it trains."""
        super().setup(stage)
        if stage == "fit":
            self.evaluator()

    def reward(self, samples: Tensor, batch: Batch) -> Tensor:
        """PSNR [B] to the batch's photographs, of all colours, in decibels."""
        return psnr((samples - batch["data"]).square().mean((1, 2, 3)), 2)

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.super_resolution.evaluation import SuperResolutionEvaluator

        return SuperResolutionEvaluator(held_out, self.scale, self.lpips, self.dists, self.no_reference)

    @property
    def media(self) -> ModuleType:
        """`domains.super_resolution.media`."""
        from domains.super_resolution import media

        return media


class Photos(SuperResolutionData):
    """Fifteen photographs that scikit-image and scikit-learn ship, read from their installed files.

    Held out are `coffee` (validation), `china` and `chelsea` (test): natural scenes with wood and
    metal, a building and trees, fur. The two `motorcycle` show one scene and stay together.

    Not ours, and not copied. By scikit-image's documentation CC0: coffee (R. Michetti), chelsea
    (S. van der Walt), camera (L. Varshney), brick, grass, gravel; public domain: astronaut, hubble
    (NASA), rocket (SpaceX); without known restrictions: coins (Brooklyn Museum), ihc (CMMI); of the
    Middlebury stereo benchmark of 2014 (Scharstein et al.): motorcycle. By scikit-learn's
    documentation CC BY 2.0: china (danielbuechele), flower (vultilion).

    Args:
        crop: at most 300, as high as the smallest photograph.
        kwargs: as in `SuperResolutionData`.
    """

    TRAIN = (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "coins.png",
        "flower.jpg",
        "grass.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "rocket.jpg",
    )
    VAL, TEST = ("coffee.png",), ("china.jpg", "chelsea.png")

    def __init__(self, crop: int = 48, **kwargs):
        super().__init__(crop=crop, **kwargs)
        checks.whole(16, 300, why="the smallest photograph is 300 pixels high", crop=crop)

    def load(self) -> Parts:
        return self.parts(*(shipped(names) for names in (self.TRAIN, self.VAL, self.TEST)))


class PhotoFolder(SuperResolutionData):
    """Photographs of a folder and its sub-folders: png, jpg, jpeg, webp, bmp, of any sizes.

    Which part a photograph belongs to follows from a hash of its name. Files that are damaged,
    smaller than a square or of more than 67 million pixels are found before training, named in a
    warning and left out; what was found is kept in `.distillkit-photos.json` in the folder, where
    it may be written. For a file that breaks later the next one stands in. Of the decoded
    photographs 512 MB are kept, and of a larger folder so many are in use at a time, see `Squares`.

    Args:
        path: the folder.
        val, test: shares of the photographs for validation and test, in (0, 1).
        kwargs: as in `SuperResolutionData`.
    """

    def __init__(self, path: str, val: float = 0.1, test: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        checks.shares(val=val, test=test)
        self.path, self.shares = path, (val, test)

    def load(self) -> Parts:
        source = Source(self.path, SUFFIXES, "photo")
        facts = source.facts(look)
        faults = {path: fact["fault"] or small(fact["size"], self.crop) for path, fact in facts.items()}
        paths = source.without({path: why for path, why in faults.items() if why})
        photographs = {source.name(path): ((path,), (facts[path]["size"],)) for path in paths}
        return self.parts(*shared_out(photographs, self.shares, self.seed, source.root))


class PhotoPairs(SuperResolutionData):
    """Photographs in one folder and their observations in another; nothing is degraded.

    A photograph and its observation have one name, or that of the observation has the scale behind
    it, as in DIV2K: `0001.png` and `0001x4.png`. Up to s - 1 pixels that a photograph has beyond s
    times its observation are cut at its right and lower edges. What has no partner or another size
    is named in a warning and left out; otherwise as `PhotoFolder`.

    Args:
        path: the folder that has both: `HR`, and `LR/x4` for scale 4.
        high, low: or the two folders themselves.
        val, test: shares of the pairs for validation and test, in (0, 1).
        kwargs: as in `SuperResolutionData`, without `degradation` and `tower`.
    """

    def __init__(
        self,
        path: str | None = None,
        high: str | None = None,
        low: str | None = None,
        val: float = 0.1,
        test: float = 0.1,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if (high is None) != (low is None) or (path is None) == (high is None):
            raise ValueError(
                "give data.high and data.low, the two folders, or data.path, the folder that has HR and LR/x4"
            )
        if given := [name for name in ("degradation", "tower") if kwargs.get(name) not in (None, (), [], "bicubic")]:
            raise ValueError(f"{given[0]} has no meaning for pairs, whose observations are given: leave it out")
        checks.shares(val=val, test=test)
        home = Path(path or "").expanduser()
        self.high = high or str(home / "HR")
        self.low = low or str(_either(home / "LR", f"x{self.scale}", f"X{self.scale}"))
        self.shares = val, test

    def load(self) -> Parts:
        high, low = (Source(path, SUFFIXES, "photo") for path in (self.high, self.low))
        pairs = matched(high, low, self.scale, self.crop)
        photographs = {high.name(paths[0]): (paths, sizes) for paths, sizes in pairs.items()}
        return self.parts(*shared_out(photographs, self.shares, self.seed, high.root, self.scale))

    def finish(self, images: Sequence[Tensor], seeds: Sequence[int]) -> Batch:
        data, low = images
        return {"data": data, "low": low}


def shared_out(
    photographs: dict[str, tuple[tuple[Path, ...], Sequence[Sequence[int]]]],
    shares: tuple[float, float],
    seed: int,
    root: Path,
    scale: int = 1,
) -> list[Photographs]:
    """The photographs of training, validation and test, by a hash of their names.

    Args:
        photographs: paths and sizes, by name.
        shares: of validation and test.
        seed: of the hash.
        root: their folder.
        scale: as in `Photographs`.
    """
    names = sorted(photographs)
    val, test = (max(1, round(share * len(names))) for share in shares)
    if len(names) - val - test < 1:
        raise ValueError(
            f"{root} holds {len(names)} photographs that can be used, too few to train, validate and test on with "
            f"val={shares[0]} and test={shares[1]}: give at least 3, or smaller shares"
        )
    parts = split([0] * len(names), val, test, order=drawn(names, seed))
    return [Photographs(*zip(*(photographs[names[i]] for i in part), strict=True), scale) for part in parts]


def _either(folder: Path, name: str, other: str) -> Path:
    """The folder of the other name if it is there alone."""
    return folder / (other if (folder / other).is_dir() and not (folder / name).is_dir() else name)


def shipped(names: Sequence[str]) -> Photographs:
    """Photographs in installed packages.

    Raises:
        ValueError: one is not there.
    """
    folders = []
    for package, inside in (("skimage", "data"), ("sklearn", "datasets/images")):
        found = find_spec(package)
        folders += [Path(place) / inside for place in (found.submodule_search_locations or ())] if found else []
    paths = [next((folder / name for folder in folders if (folder / name).is_file()), None) for name in names]
    if missing := [name for name, path in zip(names, paths, strict=True) if path is None]:
        raise ValueError(
            f"the photographs {', '.join(missing)} are not among the files of scikit-image and scikit-learn here: "
            f"pip install 'scikit-image>=0.22' scikit-learn, or give data=photo_folder data.path=/path/to/folder"
        )
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append((image.size,))
    return Photographs([(path,) for path in paths], sizes)

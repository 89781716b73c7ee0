"""Scenes `data` [B, N, 3] and partial scans `part` [B, n, 3], float32 in metres.

B: batch; N, n: points of a scene and of a partial scan. z is the height above the sensor; of a crop
x = y = 0 is the middle, of a whole scan the sensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor

from distillkit import checks
from distillkit.data import DistillData
from distillkit.errors import did_you_mean
from distillkit.sources import drawn, first_whole, listed
from domains.lidar import streets
from domains.lidar.crops import TEST, TRAIN, VAL, Crops, Cut
from domains.lidar.recordings import KEPT, Recordings
from domains.lidar.views import View, Views

Parts = tuple[Crops, Crops, Crops]
REWARDS = ("chamfer", "jsd_bev", "jsd_3d", "f_score")  # metrics of single scenes
VISIT = 32  # crops of a view, on average, while it is kept


class LidarData(DistillData):
    """Base of the data of point sets: how scenes are cut, measured and shown.

    The partial scan has some of the beams of one scan; the scene has the points of all scans around
    it. Sets have a fixed size: random points of larger ones, those of smaller ones several times.

    Args:
        crop: side of the squares in metres that are cut out of scenes, in [2, 100]; None for whole
            scans.
        num_full, num_part: N and n; N must be a multiple of n.
        beams: beams of the partial scan; None for all that the sensor has.
        max_range: metres from the sensor beyond which nothing counts, in whole scans and metrics.
        reward_metric: metric by which samples are preferred, see `domains.lidar.measures.reward`.
        legacy_iou: measure IoU as the code of ScoreLiDAR does, see `LidarEvaluator`.
        held_out: number of crops of the validation and of the test data each.
        seed: of the split and of all crops.
        batch_size: crops in a batch.
    """

    domain = "lidar"
    context = ("part",)
    classes = {}
    asks = {"part": "the partial scans, [n, points, 3] in metres, the sensor's height at z = 0"}
    pictured = 4
    provides = frozenset({"data", "numbers", "points", "reward"})

    def __init__(
        self,
        crop: float | None = 12.8,
        num_full: int = 2400,
        num_part: int = 300,
        beams: int | None = 16,
        max_range: float = 50.0,
        reward_metric: str = "chamfer",
        legacy_iou: bool = False,
        held_out: int = 64,
        seed: int = 0,
        batch_size: int = 4,
    ):
        super().__init__(batch_size=batch_size)
        checks.whole(1, 1_000_000, num_full=num_full, num_part=num_part)
        if num_full % num_part:
            raise checks.Unfit("num_full", num_full, f"be a multiple of num_part, {num_part}")
        if crop is not None:
            checks.within("[2, 100]", crop=crop)
        if beams is not None:
            checks.whole(1, 256, beams=beams)
        checks.within("[5, 200]", max_range=max_range)
        if reward_metric not in REWARDS:
            raise checks.Unfit("reward_metric", reward_metric, f"be one of {', '.join(REWARDS)}")
        checks.whole(1, 100_000, held_out=held_out)
        checks.seed(seed=seed)
        self.cut = Cut(crop, max_range, num_full, num_part, beams)
        self.reward_metric, self.legacy_iou = reward_metric, legacy_iou
        self.held_out, self.seed = held_out, seed
        self.event_shape = (num_full, 3)

    def parts(self, train: Views, val: Views, test: Views) -> Parts:
        """The data sets of three kinds of views."""
        held_out = (
            Crops(views, self.cut, self.seed, part, self.held_out) for views, part in ((val, VAL), (test, TEST))
        )
        return Crops(train, self.cut, self.seed, TRAIN), *held_out

    def reward(self, samples: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        from domains.lidar.measures import reward

        return reward(samples, batch, self.reward_metric)

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.lidar.evaluation import LidarEvaluator

        return LidarEvaluator(held_out, self.cut.max_range, self.legacy_iou)

    @property
    def media(self) -> ModuleType:
        """`domains.lidar.media`."""
        from domains.lidar import media

        return media


class Streets(LidarData):
    """Procedural streets, scanned by ray casting; they ship with the project.

    Each of 24 training, 4 validation and 4 test scenes has three scans of 64 beams.

    Args:
        kwargs: as in `LidarData`.
    """

    def load(self) -> Parts:
        return self.parts(*(streets.kept(part, self.seed) for part in ("train", "val", "test")))


class Scans(LidarData):
    """Recorded scans in a folder: SemanticKITTI, nuScenes or loose files, see `trees.find`.

    A sequence is in one part of the data alone. Of fewer than three sequences the last scans are
    for tests, and those before them for validation; they share their maps with training.

    Args:
        path: the folder.
        val, test: names of the sequences of validation and of test data; or shares of all
            sequences, or of all scans, in (0, 1).
        train: names of the sequences of training; None for all others.
        kwargs: as in `LidarData`.
    """

    def __init__(
        self,
        path: str,
        val: list[str] | float = 0.1,
        test: list[str] | float = 0.1,
        train: list[str] | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if isinstance(val, list) != isinstance(test, list) or (train and not isinstance(val, list)):
            raise ValueError("give the names of the sequences of data.val and of data.test, or a share for each")
        if not isinstance(val, list):
            checks.shares(val=val, test=test)
        self.path, self.train_names, self.val_names, self.test_names = path, train, val, test

    def load(self) -> Parts:
        named = isinstance(self.val_names, list)
        wanted = [*self.train_names, *self.val_names, *self.test_names] if self.train_names else None
        recordings = Recordings(self.path, wanted and [*dict.fromkeys(wanted)], self.cut.max_range)
        names = recordings.sequences
        if named:
            for name in {*self.val_names, *self.test_names} - {*names}:
                raise ValueError(f"{self.path} has no sequence {name!r}{did_you_mean(name, names)}: {listed(names)}")
            rest = [name for name in names if name not in {*self.val_names, *self.test_names}]
            parts = [recordings.of(each) for each in (self.train_names or rest, self.val_names, self.test_names)]
        else:
            by_name = len(names) >= 3
            order = drawn(names, self.seed) if by_name else [*range(len(recordings))]
            val, test = (max(1, round(share * len(order))) for share in (self.val_names, self.test_names))
            cut = [order[: -val - test], order[-val - test : -test], order[-test:]]
            parts = [recordings.of([names[i] for i in each]) if by_name else each for each in cut]
        if not all(map(len, parts)):
            raise ValueError(
                f"{self.path} holds {len(recordings)} scans in {len(names)} sequences, too few to train, validate and test "
                f"on: give at least three sequences or scans, or name the same ones with data.val and data.test"
            )
        return self.parts(*(Part(recordings, numbers) for numbers in parts))


class Part(Sequence):
    """Some of the recordings, as `Views`; for a scan that cannot be read the next one stands in.

    Args:
        recordings: all of them.
        numbers: those of the part.

    Attributes:
        kept: how many views are in memory at a time.
        together: neighbouring indices of crops that share so many views; None if all are kept.
    """

    kept = KEPT // 2

    def __init__(self, recordings: Recordings, numbers: Sequence[int]):
        self.recordings, self.numbers = recordings, numbers
        self.together = None if len(numbers) <= self.kept else VISIT * self.kept

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> View:
        whole, _ = first_whole(number, len(self), lambda i: self.recordings.scan(self.numbers[i]))
        return self.recordings[self.numbers[whole]]

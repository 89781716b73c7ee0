"""Images `data` [B, C, H, W] float32 in [-1, 1] and, where there are classes, `label` [B] int64.

N: images; B: batch; C, H, W: channels, height, width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillkit import checks
from distillkit.data import Batch, DistillData, TensorData, split
from distillkit.errors import optional
from distillkit.evaluation.extractor import load_extractor
from distillkit.feeding import in_parallel
from distillkit.files import read_npz
from distillkit.sources import Source, drawn, first_whole
from domains.image.features import JUDGE, Classifier
from domains.image.reading import SUFFIXES, cropped, decoded, fault, from_uint8, why


class ImageData(DistillData):
    """Base of all image data: how it is measured and shown.

    Args:
        batch_size: images in a batch.
        features: what the evaluation compares images by: `auto` (the shipped extractor for digits,
            else a classifier fitted to the labels, else pixels), `pixels`, or
            `inception:/path/to/weights`.
    """

    domain = "image"

    def __init__(self, batch_size: int = 64, features: str = "auto"):
        super().__init__(batch_size=batch_size)
        self.features = features

    def build_evaluator(self, held_out: Sequence[Any]) -> Any:
        from domains.image.evaluation import ImageEvaluator

        return ImageEvaluator(self.train, held_out, self.classes, features=self.features)

    @property
    def media(self) -> ModuleType:
        """`domains.image.media`."""
        from domains.image import media

        return media

    @property
    def controls(self) -> dict[str, type]:
        """`domains.image.controls`."""
        from domains.image.controls import CONTROLS

        return CONTROLS


class Digits(ImageData):
    """Scikit-learn's 1,797 handwritten digits, [1, 8, 8], x = grey / 8 - 1, ten classes; std 0.75.

    The split never changes (train 1,297, val 250, test 250, classes in proportion): the shipped
    weights saw the training part alone.
    """

    provides = ImageData.provides | {"reward", "reward_gradient"}

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        from sklearn.datasets import load_digits

        source = load_digits()
        data_NCHW = torch.from_numpy(source.images).float()[:, None] / 8 - 1
        label_N = torch.from_numpy(source.target).long()
        self.event_shape, self.classes = (1, 8, 8), {"label": 10}
        return _in_memory(data_NCHW, label_N, split(label_N.tolist(), val=250, test=250))

    def reward(self, samples: Tensor, batch: Batch) -> Tensor:
        """Log-probability [B] of the batch's `label`, as a classifier sees it, in [-1, 1] alone.

        It is not the classifier of the evaluation: the same design and training data, another
        seed. What pleases the one by its weaknesses may still please the other.
        """
        logits = self._judge.to(samples.device)(samples.clamp(-1, 1))
        return logits.log_softmax(1).gather(1, batch["label"][:, None])[:, 0]

    @cached_property
    def _judge(self) -> Classifier:
        return load_extractor(Classifier, JUDGE)


class NpzImages(ImageData):
    """Images in one .npz file.

    Keys: `images` (or OpenAI's `arr_0`) uint8 [N, H, W] or [N, H, W, C] with C = 1, 3 or 4
    (transparency goes over white); optionally `labels` (or `arr_1`) integers [N]. Only uint8: a
    float array does not say its range.

    Args:
        path: the file.
        num_classes: where the labels present do not tell.
        val: share of the images for validation, in (0, 1).
        test: share of the images for the test, in (0, 1).
        seed: of the split.
        batch_size, features: as in `ImageData`.
    """

    def __init__(
        self,
        path: str,
        num_classes: int | None = None,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        batch_size: int = 64,
        features: str = "auto",
    ):
        super().__init__(batch_size, features)
        if num_classes is not None:
            checks.whole(1, num_classes=num_classes)
        checks.shares(val=val, test=test)
        checks.seed(seed=seed)
        self.path, self.num_classes, self.val_share, self.test_share, self.seed = path, num_classes, val, test, seed

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        path = _existing(self.path, "an .npz file")
        arrays = read_npz(path, ("images", "arr_0", "labels", "arr_1"))
        images = arrays.get("images", arrays.get("arr_0"))
        if images is None:
            raise ValueError(f"{path} has neither `images` nor `arr_0`; np.savez writes it with images=...")
        data_NCHW = from_uint8(images, str(path))
        label_N = _labels(arrays.get("labels", arrays.get("arr_1")), len(images), self.num_classes, str(path))
        self.event_shape = tuple(data_NCHW.shape[1:])
        self.classes = {} if label_N is None else {"label": self.num_classes or int(label_N.max()) + 1}
        groups = [0] * len(images) if label_N is None else label_N.tolist()
        parts = split(groups, *counts(len(images), self.val_share, self.test_share), seed=self.seed)
        return _in_memory(data_NCHW, label_N, parts)


class TorchvisionData(ImageData):
    """A torchvision data set that lies on disk already; nothing is downloaded.

    The official test split is the test split; validation images are taken from the official
    training split.

    Args:
        name: MNIST, FashionMNIST, KMNIST, CIFAR10 or CIFAR100.
        root: folder that torchvision would have downloaded to.
        val: share of the training images for validation, in (0, 1).
        seed: of the split.
        batch_size, features: as in `ImageData`.
    """

    known = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")

    def __init__(
        self,
        name: str,
        root: str,
        val: float = 0.1,
        seed: int = 0,
        batch_size: int = 64,
        features: str = "auto",
    ):
        super().__init__(batch_size, features)
        if name not in self.known:
            raise ValueError(f"name must be one of {', '.join(self.known)}, got {name!r}")
        checks.shares(val=val)
        checks.seed(seed=seed)
        self.name, self.root, self.val_share, self.seed = name, root, val, seed

    def load(self) -> tuple[TensorData, TensorData, TensorData]:
        root = _existing(self.root, "a folder", folder=True)
        datasets = optional("torchvision.datasets", "vision", f"{self.name} is read with")
        try:
            both = [getattr(datasets, self.name)(root, train=train, download=False) for train in (True, False)]
        except Exception as error:  # of files that lack, or are cut off
            raise ValueError(
                f"{self.name} is not, or not whole, under {root} ({why(error)}); get it once by "
                f"torchvision.datasets.{self.name}(root, download=True)"
            ) from None
        (data, label), (test_data, test_label) = [
            (
                from_uint8(np.asarray(part.data), self.name),
                _labels(np.asarray(part.targets), len(part.data), None, self.name),
            )
            for part in both
        ]
        self.event_shape, self.classes = tuple(data.shape[1:]), {"label": int(label.max()) + 1}
        self.names = {"label": [*map(str, both[0].classes)]}
        train, val, _ = split(label.tolist(), *counts(len(data), self.val_share, None), seed=self.seed)
        rest = (torch.arange(0), torch.arange(0))
        (train, _, _), (val, _, _) = (_in_memory(data, label, (rows, *rest)) for rows in (train, val))
        return train, val, TensorData({"data": test_data, "label": test_label})


class ImageFolder(ImageData):
    """Images in a folder, decoded batch by batch: png, jpg, jpeg, webp, bmp.

    Sub-folders of the first level are the classes, in alphabetical order; images lying flat have
    none. The centred square of the shorter side is resized to `resolution` (antialiased bicubic).
    Files that are damaged or of more than 67 million pixels are found before training, named in a
    warning and left out, see `fault`; what was found is kept in `.distillkit-images.json` in the
    folder, where it may be written. For a file that breaks later the next one stands in. Which part
    a file belongs to follows from a hash of its name.

    Args:
        path: the folder.
        resolution: height and width, in pixels.
        channels: 1 (grey) or 3 (RGB).
        flip: add every training image's mirror image.
        val: share of the images for validation, in (0, 1).
        test: share of the images for the test, in (0, 1).
        seed: of the split.
        workers: processes that decode training batches; 0 leaves it to threads, None chooses.
        batch_size, features: as in `ImageData`.
    """

    def __init__(
        self,
        path: str,
        resolution: int = 64,
        channels: int = 3,
        flip: bool = False,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        workers: int | None = 0,
        batch_size: int = 64,
        features: str = "auto",
    ):
        super().__init__(batch_size, features)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
        checks.whole(1, 10_000, resolution=resolution)
        checks.workers(workers=workers)
        checks.shares(val=val, test=test)
        checks.seed(seed=seed)
        self.path, self.resolution, self.channels, self.flip = path, resolution, channels, flip
        self.val_share, self.test_share, self.seed, self.workers = val, test, seed, workers

    def load(self) -> tuple["Files", "Files", "Files"]:
        source = Source(self.path, SUFFIXES, "image")
        facts = source.facts(lambda path: {"fault": fault(path)})
        paths = source.without({path: facts[path]["fault"] for path in facts if facts[path]["fault"]})
        names, label = source.classes(paths)
        self.event_shape = (self.channels, self.resolution, self.resolution)
        self.classes, self.names = ({"label": len(names)}, {"label": names}) if names else ({}, {})
        order = drawn([source.name(path) for path in paths], self.seed)
        parts = split(label or [0] * len(paths), *counts(len(paths), self.val_share, self.test_share), order=order)
        decode = self.settings().decode
        train, val, test = (
            Files(
                [paths[i] for i in rows],
                {"label": [label[i] for i in rows]} if label else {},
                decode,
            )
            for rows in parts
        )
        train.mirrored = self.flip
        return train, val, test

    def decode(self, path: Path) -> Tensor:
        """One file as [C, resolution, resolution] in [-1, 1]."""
        image = cropped(decoded(path, self.channels), self.resolution)
        return from_uint8(np.asarray(image)[None], str(path))[0]


class Files:
    """Images that are decoded when they are asked for: `files[indices]` gives a batch, in parallel.

    Args:
        paths: the files, or whatever else `decode` takes.
        classes: of each file, by the name of the condition.
        decode: gives one image; raises a `ValueError` that names a file which it cannot read.
    """

    def __init__(self, paths: Sequence[Any], classes: Mapping[str, Sequence[int]], decode: Callable[[Any], Tensor]):
        self.paths, self.decode = list(paths), decode
        self.names = list(classes)
        for name, values in classes.items():
            setattr(self, name, torch.tensor(values, dtype=torch.long))
        self.mirrored = False  # then the second half of the indices are the mirror images

    @property
    def different(self) -> Tensor:
        """The rows of the images, of equal ones in a row the first; without mirror images."""
        return torch.tensor([i for i, path in enumerate(self.paths) if not i or path != self.paths[i - 1]])

    def __len__(self) -> int:
        return len(self.paths) * (2 if self.mirrored else 1)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        num = len(self.paths)

        def read(i: int) -> tuple[int, Tensor]:
            row, image = first_whole(i % num, num, lambda row: self.decode(self.paths[row]))
            return row, image.flip(-1) if i >= num else image

        rows, images = zip(*in_parallel(read, indices.tolist()), strict=True)
        return {"data": torch.stack(images), **{name: getattr(self, name)[list(rows)] for name in self.names}}


def counts(total: int, val: float, test: float | None) -> tuple[int, int]:
    """Shares as numbers of images; at least one in each part, and two to train on."""
    counts = max(1, round(val * total)), 0 if test is None else max(1, round(test * total))
    if total - sum(counts) < 2:
        raise ValueError(
            f"{total} images are too few for a split into train, val and test with val={val}, test={test}: give at least 4, "
            f"or smaller shares"
        )
    return counts


def _in_memory(data: Tensor, label: Tensor | None, parts: Sequence[Tensor]) -> tuple[TensorData, ...]:
    columns = {"data": data} if label is None else {"data": data, "label": label}
    return tuple(TensorData({name: column[rows] for name, column in columns.items()}) for rows in parts)


def _labels(labels: np.ndarray | None, total: int, num_classes: int | None, source: str) -> Tensor | None:
    if labels is None:
        if num_classes is not None:
            raise ValueError(f"num_classes={num_classes} was given, but {source} has no `labels`")
        return None
    if labels.shape != (total,) or labels.dtype.kind not in "iu":
        raise ValueError(f"{source} must hold one integer label per image, got {labels.dtype} {list(labels.shape)}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        bound = "..." if num_classes is None else num_classes - 1
        raise ValueError(f"{source} has labels from {lowest} to {highest}, but they must lie in 0..{bound}")
    if num_classes is None and highest >= total:
        raise ValueError(
            f"{source} has labels up to {highest} for {total} images: number its classes 0, 1, 2 and so on, or give "
            f"data.num_classes={highest + 1}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _existing(path: str, kind: str, folder: bool = False) -> Path:
    found = Path(path).expanduser()
    if not (found.is_dir() if folder else found.is_file()):
        raise ValueError(f"{path} is not {kind}; give the path of one that exists")
    return found

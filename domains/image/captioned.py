"""Images of any size with captions, for pipelines: `data` [B, 3, H, W] in [-1, 1], `prompt` [B].

`prompt` int64 is the caption's number among `read_prompts(path)`, as the teacher counts them. Where
the samples have classes instead of captions batches have `label` int64 [B].

B: batch; H, W: height, width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from distillkit import checks
from distillkit.data import Rows, split
from distillkit.errors import optional
from distillkit.pipelines.captions import CAPTIONS, captions_of, numbered
from distillkit.pipelines.data import SampleData, samples_of
from distillkit.pipelines.prompts import read_prompts
from distillkit.pipelines.saved import read_saved
from distillkit.pipelines.shards import Sample, read_shards
from distillkit.sources import Source, drawn
from domains.image.clip import ClipScore
from domains.image.data import Files, ImageData, counts
from domains.image.evaluation import ImageEvaluator
from domains.image.pipelines import ImagePipeline
from domains.image.reading import SUFFIXES, cropped, decoded, fault, from_uint8

MOST_SEEN = 2000  # training images that samples are compared with
COLUMNS = ("image", "img")  # of a saved data set


class Found(NamedTuple):
    """The samples of a source, in its order.

    Args:
        items: what `read` takes.
        names: of the items, which decide the part that an item belongs to. An image with several
            captions is as many items of one name, one after the other.
        captions: of the items, or None.
        labels: of the items, or None; captions come first.
    """

    items: list[Any]
    names: list[str]
    captions: list[str | None] | None
    labels: list[int | None] | None


class PipelineImages(SampleData, ImageData):
    """Base of images of the size that a pipeline makes, decoded batch by batch.

    The largest centred part of an image in the shape of the teacher's samples is resized to it
    (antialiased bicubic). Samples without caption are left out. An image with several captions is
    as many samples, all in one part. For one that breaks during a run the next one stands in. Which
    part a sample belongs to follows from a hash of its name. Evaluation asks for the captions of
    held-out samples, and compares with their images, each of them once.

    Args:
        path: the source.
        pipeline, download: `path` and `download` of the teacher.
        size: `height` and `width` in pixels, those of the teacher; None is the pipeline's own.
        flip: add every training image's mirror image.
        num_classes: where classes are the condition and those present do not tell their number.
        val, test: shares of the samples, in (0, 1).
        seed: of the split.
        workers: processes that decode training batches; 0 leaves it to threads, None chooses.
        batch_size: images in a batch.
        features: `pixels`, or `inception:/path/to/weights`, see `ImageEvaluator`.
        clip: folder of a CLIP model, see `ClipScore`; None leaves the metric out.

    Attributes:
        prompts: the captions by number; empty where there are classes.
    """

    pictured = SampleData.pictured

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        size: dict[str, int | float | None] | None = None,
        download: bool = False,
        flip: bool = False,
        num_classes: int | None = None,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        workers: int | None = 0,
        batch_size: int = 1,
        features: str = "pixels",
        clip: str | None = None,
    ):
        ImageData.__init__(self, batch_size, features)
        if pipeline is None:
            raise ValueError(
                "these images need a teacher that says their size: give teacher=diffusers teacher.path=DIR"
            )
        checks.workers(workers=workers)
        checks.shares(val=val, test=test)
        checks.seed(seed=seed)
        if num_classes is not None:
            checks.whole(1, num_classes=num_classes)
        self.path, self.flip, self.num_classes = path, flip, num_classes
        self.shares, self.seed, self.workers, self.clip = (val, test), seed, workers, clip
        self.event_shape = samples_of(ImagePipeline, pipeline, size, download).shape

    prompts: list[str] = []

    @abstractmethod
    def find(self) -> Found:
        """The samples of the source."""

    @abstractmethod
    def read(self, item: Any) -> Image.Image:
        """One image, 8-bit RGB.

        Raises:
            ValueError: it cannot be decoded; names the item.
        """

    def load(self) -> tuple[Files, Files, Files]:
        found = self.find()
        if found.captions is not None:
            self.prompts = read_prompts(self.path)
            name, known = "prompt", numbered(found.captions, self.prompts, self.path)
        else:
            name, known = "label", found.labels or [None]
        kept = [i for i, value in enumerate(known) if value is not None]
        if not kept:
            raise ValueError(f"{self.path} holds no image with a caption or a class: give images with captions")
        self.classes = {name: len(self.prompts) or self.num_classes or 1 + max(known[i] for i in kept)}
        items, column = [found.items[i] for i in kept], [known[i] for i in kept]
        rows_of: dict[str, list[int]] = {}  # by the name of the image
        for row, i in enumerate(kept):
            rows_of.setdefault(found.names[i], []).append(row)
        images = [*rows_of.values()]
        groups = [column[rows[0]] if name == "label" else 0 for rows in images]
        parts = split(groups, *counts(len(images), *self.shares), order=drawn([*rows_of], self.seed))
        decode = self.settings().decode
        chosen = ([row for image in part.tolist() for row in images[image]] for part in parts)
        train, val, test = (
            Files([items[i] for i in rows], {name: [column[i] for i in rows]}, decode) for rows in chosen
        )
        train.mirrored = self.flip
        return train, val, test

    def decode(self, item: Any) -> Tensor:
        """One image as [3, H, W] in [-1, 1]."""
        image = cropped(self.read(item), *self.event_shape[1:])
        return from_uint8(np.asarray(image)[None], str(item))[0]

    def build_evaluator(self, held_out: Sequence[Any]) -> ImageEvaluator:
        clip = ClipScore(self.clip, self.prompts) if self.clip and self.prompts else None
        once = [Rows(part, part.different) for part in held_out]
        return ImageEvaluator(self.train, once, {}, self.features, clip, MOST_SEEN)


class Captioned(PipelineImages):
    """Images in a folder and their captions: png, jpg, jpeg, webp, bmp.

    Captions stand in `captions.csv`, `metadata.csv` or `metadata.jsonl` (columns `file` or
    `file_name`, and `caption`, `prompt` or `text`; a row for each caption), else in a .txt file
    beside each image. Images
    that are damaged are found before training, see `ImageFolder`.

    Args:
        path: the folder.
        pipeline, size, download, flip, val, test, seed, workers, batch_size, features, clip: as in
            `PipelineImages`.
    """

    def find(self) -> Found:
        source = Source(self.path, SUFFIXES, "image", beside=(*CAPTIONS, ".txt"))
        facts = source.facts(lambda path: {"fault": fault(path)})
        captions = dict(zip(source.files, captions_of(source.root, [*map(source.name, source.files)]), strict=True))
        faults = {path: facts[path]["fault"] or "has no caption" for path in facts}
        paths = source.without(
            {path: why for path, why in faults.items() if facts[path]["fault"] or not captions[path]}
        )
        pairs = [(path, text) for path in paths for text in captions[path]]
        return Found([path for path, _ in pairs], [source.name(path) for path, _ in pairs], [t for _, t in pairs], None)

    def read(self, item: Path) -> Image.Image:
        return decoded(item, 3)


class WebDataset(PipelineImages):
    """Images in tar files in the layout of webdataset, read in place.

    A sample is KEY.jpg, .jpeg, .png or .webp with KEY.txt, its caption, or KEY.json with the key
    `caption`, `prompt` or `text`; where no sample has a caption KEY.cls is the number of its class.

    Args:
        path: a folder, or a pattern such as `DIR/part-{000..099}.tar`, see `read_shards`.
        pipeline, size, download, flip, val, test, seed, workers, batch_size, features, clip: as in
            `PipelineImages`.
    """

    def find(self) -> Found:
        samples = [sample for sample in read_shards(self.path) if _image(sample)]
        if not samples:
            raise ValueError(f"the shards of {self.path} hold no images: give ones with {', '.join(SUFFIXES)} members")
        captions, labels = [sample.caption for sample in samples], [sample.label for sample in samples]
        names = [f"{sample.shard.name}/{sample.key}" for sample in samples]
        return Found(samples, names, captions if any(captions) else None, labels)

    def read(self, item: Sample) -> Image.Image:
        return decoded(BytesIO(item.read(_image(item))), 3, item)


def _image(sample: Sample) -> str | None:
    """The ending of the member of a sample that is an image."""
    return next((ending for ending in sample.members if f".{ending}" in SUFFIXES), None)


class HuggingFace(PipelineImages):
    """Images that the package `datasets` has saved to disk, in the column `image`.

    Captions are the column `caption`, `prompt` or `text`, else classes the column `label`.

    Args:
        path: a folder that `save_to_disk` has made; of several splits the one called `train`.
        pipeline, size, download, flip, val, test, seed, workers, batch_size, features, clip: as in
            `PipelineImages`.
    """

    def find(self) -> Found:
        saved = read_saved(self.path)
        column = next((name for name in COLUMNS if name in saved.rows.column_names), None)
        if column is None:
            raise ValueError(f"{self.path} has no column {' or '.join(COLUMNS)}: rename the one with the images")
        kind = optional("datasets", "hf", "data sets saved by Hugging Face's package are read with").Image
        self._images, self._column = (
            saved.rows.cast_column(column, kind(decode=False)),
            column,
        )  # decoded here, in bounds
        rows = list(range(len(saved.rows)))
        return Found(rows, [*map(str, rows)], saved.captions, saved.labels)

    def read(self, item: int) -> Image.Image:
        name = f"row {item} of {self.path}"
        found = self._images[item][self._column]
        if not found or not found.get("bytes"):  # a path may lead anywhere
            raise ValueError(f"{name} holds no image, or only the path of one: save the data set with its images")
        return decoded(BytesIO(found["bytes"]), 3, name)

"""Sounds with captions, for pipelines: `data` [B, C, N] in [-1, 1], `prompt` int64 [B].

`prompt` is the caption's number among `read_prompts(path)`, as the teacher counts them.
B: batch; C: channels; N: samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from distillkit.pipelines.captions import captions_of, numbered
from distillkit.pipelines.data import SampleData, samples_of
from distillkit.pipelines.files import read_index
from distillkit.pipelines.prompts import read_prompts
from domains.music.folder import Sounds
from domains.music.pipelines import MusicPipeline


class Captioned(Sounds, SampleData):
    """Clips from the sounds in a folder and their captions, as a pipeline makes sounds.

    Rate, channels and length of the clips are those of the pipeline's sounds. All clips of a file
    have its captions. Captions stand in `captions.csv`, `metadata.csv` or `metadata.jsonl` (columns
    `file` or `file_name`, and `caption`, `prompt` or `text`; a row for each caption), else in a
    .txt file beside each sound. Files without one are left out. Evaluation asks for the captions of
    held-out clips, and compares with their sounds.

    Where the pipeline makes sounds and reads none these data are not enough for methods that look
    at samples, but evaluation compares with them.

    Args:
        path: the folder.
        pipeline, download: `path` and `download` of the teacher.
        size: `seconds` of a clip, those of the teacher; None is the pipeline's own.
        stride, random_crop, val, test, seed, workers: as in `Sounds`.
        batch_size, clap: as in `MusicData`.

    Attributes:
        prompts: the captions by number.
    """

    provides = frozenset()
    pictured = SampleData.pictured

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        size: dict[str, int | float | None] | None = None,
        download: bool = False,
        stride: float | None = None,
        random_crop: bool = True,
        val: float = 0.1,
        test: float = 0.1,
        seed: int = 0,
        workers: int | None = 0,
        batch_size: int = 1,
        clap: str | None = None,
    ):
        if pipeline is None:
            raise ValueError(
                "these sounds need a teacher that says their form: give teacher=diffusers teacher.path=DIR"
            )
        made = samples_of(MusicPipeline, pipeline, size, download)
        rate, (channels, samples) = made.codec.sample_rate, made.shape
        super().__init__(
            path, rate, channels, samples, stride, random_crop, val, test, seed, workers, 0, batch_size, clap
        )
        self.provides, self.prompts = SampleData.provides if made.codec.reads else frozenset(), []

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """Samples to learn from, where the pipeline in `pipeline` reads sounds.

        One that cannot be read does: what is wrong is said when it is.
        """
        with suppress(ValueError, KeyError, OSError, AttributeError):
            kind = read_index(Path(str(arguments["pipeline"])).expanduser())["_class_name"]
            return SampleData.provides if MusicPipeline.families[kind].codec.reads else frozenset()
        return SampleData.provides

    def said(self, source):
        self.prompts = read_prompts(self.path)
        captions = captions_of(source.root, [source.name(path) for path in source.files])
        said = {
            path: [{"prompt": text} for text in texts]
            for path, texts in zip(source.files, captions, strict=True)
            if texts
        }
        return said, {path: "has no caption" for path in source.files if path not in said}

    def columns(self, source, files, words):
        self.classes = {"prompt": len(self.prompts)}
        return {"prompt": numbered([each["prompt"] for each in words], self.prompts, self.path)}

    def warn(self, source, facts):
        super().warn(source, facts)
        clip, lasting = self.samples / self.rate, [about["samples"] / about["rate"] for about in facts.values()]
        if short := [seconds for seconds in lasting if seconds < clip]:
            warnings.warn(
                f"{source.root}: {len(short)} of {len(lasting)} sounds are shorter than the {clip:.3g} seconds of the "
                f"teacher's and go on with silence; the longest of all has {max(lasting):.3g}: lower teacher.seconds for less "
                f"silence",
                stacklevel=2,
            )

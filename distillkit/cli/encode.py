"""The verb encode: the latents of a data set, made once by a pipeline's autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillkit import devices
from distillkit.capabilities import imported
from distillkit.cli import config
from distillkit.errors import Arguments, UsageError, number, one_line


def encode(argv: Sequence[str]) -> int:
    """`encode domain=image data=... teacher=diffusers teacher.path=DIR --out LATENTS`."""
    parser = Arguments(
        prog="distillkit encode",
        description="Encode a data set once: data=latents data.path=LATENTS trains on it without the autoencoder.",
    )
    parser.add_argument("words", nargs="*", help="domain, data and teacher, as for fit")
    parser.add_argument("--out", type=Path, required=True, help="the folder; what is finished in it is kept")
    parser.add_argument("--shard", type=number(int, 1, 2**20), default=512, help="samples in a file (default 512)")
    parser.add_argument("--batch", type=number(int, 1, 2**16), default=16, help="samples read at once (default 16)")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="on disk (default float32)")
    devices.add_flag(parser)
    args = parser.parse_intermixed_args(list(argv))
    handed = config.hand_over(config.compose(args.words)[0], ("data", "teacher"))
    from distillkit.pipelines.files import local
    from distillkit.pipelines.latents import LatentData, Writing
    from distillkit.pipelines.teacher import PipelineTeacher

    teacher = handed.get("teacher") or {}
    kind = imported(teacher["class_path"]) if "class_path" in teacher else None
    if not (isinstance(kind, type) and issubclass(kind, PipelineTeacher)):
        raise UsageError("latents are made by the autoencoder of a pipeline: say teacher=diffusers teacher.path=DIR")
    try:
        data = made(handed["data"])
        root = local(teacher["init_args"]["path"], teacher["init_args"].get("download", False))
        codec = kind.family(root).make_codec(root, teacher["init_args"])
        if codec is None:
            raise ValueError(f"the pipeline in {root} works on data themselves: there is nothing to encode")
        if not codec.reads:
            raise ValueError(f"the pipeline in {root} makes samples and reads none: there is nothing to encode with")
        if "data" not in data.provides or isinstance(data, LatentData):
            raise ValueError(f"{type(data).__name__} has no samples to encode: choose other data=...")
        data.setup()
        writing = Writing(args.out, data, codec, args.shard, args.dtype)
        encoded = writing.run(args.device, args.batch)
    except ValueError as error:
        raise UsageError(str(error)) from error
    total = sum(writing.plan["counts"].values())
    print(f"{total} samples in {args.out}, {encoded} of them encoded now: data=latents data.path={args.out}")
    return 0


def made(described: dict[str, Any]) -> Any:
    """The data of a composed configuration, checked as `fit` does."""
    from jsonargparse import ArgumentError, ArgumentParser

    from distillkit.data import DistillData

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DistillData, "data")
    try:
        return parser.instantiate(parser.parse_object({"data": described})).data
    except ArgumentError as error:
        raise UsageError(one_line(error)) from error

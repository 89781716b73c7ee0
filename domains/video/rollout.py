"""Videos longer than a clip: a student that is given the first frame goes on, clip by clip, from its own last frame.

python -m domains.video.rollout STUDENT --clips 4 -n 8 --out long

A frame does not say where things are going, so each clip chooses its motion anew, and errors are passed on from clip to clip:
the student was never trained on frames that it made itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit.callbacks.finish import save_picture
from distillkit.diffusion.denoiser import Cond
from distillkit.errors import Arguments, UsageError, one_line
from distillkit.student import Student
from distillkit.student_verbs import _build, _load, _new


def rollout(student: Student, cond: Cond, clips: int, seed: int = 0) -> Tensor:
    """Samples [N, C, 1 + clips (T - 1), H, W]: the given first frame is there once, as are those where clips meet.

    Args:
        student: made for a first frame.
        cond: `first` [N, C, H, W] and the student's classes, which hold for all clips.
        clips: how many in a row.
        seed: of the noise; every clip has its own.

    Raises:
        ValueError: the student is not made for a first frame, or there is no clip to make.
    """
    if tuple(student.context) != ("first",):
        raise ValueError(
            "this student is not given a first frame, so it cannot go on: train one with vars.context=[first]"
        )
    if clips < 1:
        raise ValueError(f"clips must be at least 1, got {clips}")
    parts, num = [], len(cond["first"])
    for k in range(clips):
        made = student.sample(num, cond, seed * clips + k)
        parts.append(made[:, :, min(k, 1) :])
        cond = {**cond, "first": made[:, :, -1].clamp(-1, 1)}
    return torch.cat(parts, dim=2)


def main(argv: Sequence[str]) -> int:
    """The command line; its exit code: 0 done, 2 wrong usage."""
    parser = Arguments(prog="domains.video.rollout", description="Draw videos longer than a clip from a student.")
    parser.add_argument("student", help="a student folder made with vars.context=[first], or the run folder around it")
    parser.add_argument("--clips", type=int, default=4, help="clips in a row (default 4)")
    parser.add_argument("-n", type=int, default=8, help="how many videos (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--out", type=Path, default=Path("long"), help="a new folder for the files (default long)")
    try:
        args = parser.parse_args(argv)
        if args.n < 1:
            raise UsageError(f"-n must be at least 1, got {args.n}")
        out, student = _new(args.out), _load(args.student)
        data = _build(student, "data")["data"]
        try:
            cond = data.conditions(args.n)
            samples = rollout(student, cond, args.clips, args.seed)
        except ValueError as error:
            raise UsageError(str(error)) from error
    except UsageError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    save_picture(out / "samples.png", data.media.picture(samples, cond))
    for path in [out / "samples.png", *data.media.save(samples, cond, out)]:
        print(f"file: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

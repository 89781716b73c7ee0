"""Both stages, one after the other: a structure student, then a features student.

The first says which voxels a shape has, the second what its surface is like.

python -m domains.threed.chain sample STRUCTURE FEATURES -n 8 --out shapes
python -m domains.threed.chain fit --out runs/shapes method=dmd model.num_steps=2

`fit` distils both stages with the words of `python -m distillkit fit` and then samples.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.errors import Arguments, Failure, UsageError, exit_code
from distillkit.evaluation.pictures import save_picture
from distillkit.students.base import Student
from distillkit.students.provenance import allow, load
from domains.threed import media
from domains.threed.lattice import CHANNELS, shell, voxel_sets

STAGES = ("structure", "features")
OTHER_NOISE = 2**32  # apart from the first stage's seed, so that the second does not draw the same numbers again


def sample_chain(
    structure: Student, features: Student, n: int, cond: Cond | None = None, seed: int = 0
) -> tuple[Tensor, Cond]:
    """`n` shapes from noise, by both students.

    Args:
        structure: samples [n, 1, R, R, R], occupied where positive.
        features: a student of the same classes whose context is `coords` and `mask`.
        n: how many.
        cond: the structure student's conditions; default: all classes in turn.
        seed: of the noise of both.

    A structure without any voxel gives a sample whose mask is false everywhere.

    Returns:
        Samples of the second stage [n, N, 11], and the conditions that they were made for:
        `coords`, `mask` and classes.

    Raises:
        ValueError: the two are no pair.
    """
    if len(structure.event_shape) != 4 or structure.context:
        raise ValueError(
            f"the first student must make volumes [1, R, R, R], this one makes {list(structure.event_shape)}: "
            f"give a student of stage=structure"
        )
    if set(features.context) != {"coords", "mask"} or features.event_shape[-1] != CHANNELS:
        raise ValueError(
            f"the second student must make features [N, {CHANNELS}] for coords and mask, this one makes "
            f"{list(features.event_shape)} for {' and '.join(features.context) or 'nothing'}: give one of stage=features"
        )
    if structure.classes != features.classes:
        raise ValueError(
            f"the students know different classes, {structure.classes or 'none'} and {features.classes or 'none'}: "
            f"distil both on the same shapes"
        )
    cond = structure.default_condition(n) if cond is None else dict(cond)
    solid = structure.sample(n, cond, seed)[:, 0] > 0
    coords, mask = voxel_sets(shell(solid))
    cond |= {"coords": coords, "mask": mask}
    return features.sample(n, cond, seed + OTHER_NOISE), cond


def sample(argv: Sequence[str]) -> None:
    """`sample STRUCTURE FEATURES`: meshes, coloured points and a picture."""
    parser = Arguments(prog="domains.threed.chain sample", description="Draw shapes from a student of each stage.")
    parser.add_argument("structure", help="a student folder of stage=structure, or the run folder around it")
    parser.add_argument("features", help="the same of stage=features")
    parser.add_argument("-n", type=int, default=8, help="how many (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument("--label", type=int, help="one class for all (default: classes in turn)")
    parser.add_argument("--out", type=Path, default=Path("shapes"), help="a new folder for the files (default shapes)")
    allow(parser)
    args = parser.parse_args(argv)
    if args.n < 1:
        raise UsageError(f"-n must be at least 1, got {args.n}")
    if args.out.exists():
        raise UsageError(f"{args.out} exists already; give another place with --out")
    students = [load(folder, args.trust) for folder in (args.structure, args.features)]
    try:
        cond = None if args.label is None else {"label": torch.full((args.n,), args.label)}
        samples, cond = sample_chain(*students, args.n, cond, args.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    there = cond["mask"].any(1)
    if not there.all():
        print(f"{int((~there).sum())} of {args.n} structures came out empty and are left out")
    if not there.any():
        raise Failure("no structure has a voxel: the first student has not learnt anything yet")
    samples, cond = samples[there], {name: value[there] for name, value in cond.items()}
    save_picture(args.out / "shapes.png", media.picture(samples, cond))
    files = media.save(samples, cond, args.out)
    print(f"{len(samples)} shapes in {args.out}: shapes.png and {len(files)} files")


def fit(argv: Sequence[str]) -> None:
    """`fit [words]`: OUT/structure and OUT/features by the same words, and OUT/shapes."""
    parser = Arguments(prog="domains.threed.chain fit", description="Distil both stages, then draw shapes.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/threed-chain"), help="a new folder (default %(default)s)"
    )
    parser.add_argument("-n", type=int, default=8, help="shapes to draw (default 8)")
    parser.add_argument("words", nargs="*", help="for both `python -m distillkit fit domain=threed stage=...`")
    args = parser.parse_intermixed_args(argv)
    if any(word.startswith(("stage=", "domain=")) for word in args.words):
        raise UsageError("domain and stage are set for you: leave them out")
    for stage in STAGES:
        words = ["fit", "domain=threed", f"stage={stage}", *args.words, "--out", str(args.out / stage)]
        code = subprocess.run([sys.executable, "-m", "distillkit", *words], check=False).returncode
        if code:
            raise Failure(f"stage {stage} was not distilled (exit code {code}), so there is nothing to chain")
    sample([*(str(args.out / stage) for stage in STAGES), "-n", str(args.n), "--out", str(args.out / "shapes")])


def choose(argv: Sequence[str]) -> None:
    verbs = {"sample": sample, "fit": fit}
    if not argv or argv[0] not in verbs:
        raise UsageError("say `python -m domains.threed.chain sample STRUCTURE FEATURES` or `... fit [words]`")
    verbs[argv[0]](argv[1:])


def main(argv: Sequence[str]) -> int:
    return exit_code(choose, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

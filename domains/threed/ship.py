"""Trains the classifiers in whose features solids are compared; writes their card.

python -m domains.threed.ship --out domains/threed/weights/features
"""

from __future__ import annotations

from pathlib import Path

from distillkit.evaluation.extractor import arguments, ship
from distillkit.files import write_text
from domains.threed.data import FeaturesData, ShapeData, StructureData
from domains.threed.features import STEPS, accuracy, train_classifier
from domains.threed.solids import Solids

CARD = """# Feature extractors for procedural solids

Two convolutional classifiers of voxel grids (`domains.threed.features.Classifier`), one for each stage. Their 64 units
before the head, with mean and deviation of those of the first layer, are the features in which the evaluation takes the
Frechet distance; their predictions give the class agreement.

- Data: the training split of `domains.threed.solids.Solids` with its defaults (2,000 procedural shapes, five categories,
  16^3 voxels). They never saw the validation and test splits (250 shapes each).
{lines}
- Training: {steps} steps of AdamW, batches of 64, seed {seed}.

Made by

    {command}
"""

LINE = """- `{name}.safetensors` ({channels} channels, {parameters:,} parameters, {kilobytes:.0f} kB): accuracy {val:.3f} on the
  validation split, {test:.3f} on the test split; {seconds:.0f} s on one CPU core; sha256 `{sha256}`"""


def main(argv: list[str] | None = None) -> None:
    args = arguments("domains.threed.ship", STEPS, argv)
    stages = {"structure": StructureData, "features": FeaturesData}
    lines = [line(args.out, name, stage(Solids()), args.steps, args.seed) for name, stage in stages.items()]
    write_text(args.out / "README.md", CARD.format(lines="\n".join(lines), **vars(args)))


def line(out: Path, name: str, data: ShapeData, steps: int, seed: int) -> str:
    """One stage's classifier, trained and written to `out`, as a line of the card."""
    data.setup()
    classes = data.classes["label"]
    net, facts = ship(
        out / f"{name}.safetensors", lambda: train_classifier(data.train, classes, data.side, steps, seed)
    )
    facts |= {part: accuracy(net, getattr(data, part), data.side) for part in ("val", "test")}
    return LINE.format(name=name, channels=net.config["channels"], **facts)


if __name__ == "__main__":
    main()

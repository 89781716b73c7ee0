"""Trains the classifier in whose features clips of moving digits are compared, and writes its card.

python -m domains.video.ship --out domains/video/weights/features
"""

from __future__ import annotations

from typing import Any

from distillkit.evaluation.extractor import arguments, ship
from distillkit.files import write_text
from domains.video.data import MovingDigits
from domains.video.features import BATCH, STEPS, Classifier, accuracy, train_classifier

CARD = """# Feature extractor for moving digits

A space-time classifier (`domains.video.features.Classifier`, {parameters:,} parameters, {kilobytes:.0f} kB) of the digit and
its motion. Its 64 units before the heads, with the changes of the frames' own 64 features, are what the video domain takes
the Frechet video distance in; the frames' features give the distance of single frames; its predictions the agreement with
the classes that were asked for.

- Data: the training split of `domains.video.data.MovingDigits` with its defaults (5,000 procedural clips of 16 frames of
  16 x 16 pixels, made of 1,297 of scikit-learn's handwritten digits, CC BY 4.0). It never saw a digit of the validation and
  test splits (500 clips each).
- Accuracy: {val} on the validation split, {test} on the test split.
- Training: {steps} steps of AdamW, batches of {batch}, seed {seed}, {seconds:.0f} s on one CPU core.
- sha256 of `model.safetensors`: `{sha256}`

Made by

    {command}
"""


def main(argv: list[str] | None = None) -> None:
    args = arguments("domains.video.ship", STEPS, argv)
    data = MovingDigits()
    data.setup()
    net, facts = ship(
        args.out / "model.safetensors", lambda: train_classifier(data.train, data.classes, args.steps, args.seed)
    )
    facts |= {"val": shares(net, data.val), "test": shares(net, data.test), "batch": BATCH}
    write_text(args.out / "README.md", CARD.format(**facts, **vars(args)))


def shares(net: Classifier, part: Any) -> str:
    """`label 0.998, motion 1.000`."""
    return ", ".join(f"{name} {share:.3f}" for name, share in accuracy(net, part).items())


if __name__ == "__main__":
    main()

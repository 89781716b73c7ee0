"""Trains the classifiers of digits: of the evaluation and of the reward; writes their card.

python -m domains.image.ship --out domains/image/weights/features
"""

from pathlib import Path

from distillkit.data import TensorData
from distillkit.evaluation.extractor import arguments, ship
from distillkit.files import write_text
from domains.image.data import Digits
from domains.image.features import JUDGE, SHIPPED, STEPS, accuracy, train_classifier

CARD = """# Classifiers of handwritten digits

Two convolutional classifiers (`domains.image.features.Classifier`) that differ in their seed alone.
The 64 units of `model.safetensors` before the head are the features that the image domain measures digits by: Frechet
and kernel distance, precision, recall, density, coverage, distance to the training data. Its prediction gives the class
agreement. `judge.safetensors` measures nothing. It gives the reward of digits, so that a student which followed the
reward is not measured by the network that it followed.

- Data: the training split (1,297 images, 8 x 8, one channel, x = grey / 8 - 1) of scikit-learn's handwritten digits
  (UCI Optical Recognition of Handwritten Digits, CC BY 4.0). They never saw the validation and test splits.
{lines}
- Training: {steps} steps of AdamW, batches of 128, seed {seed}, of the judge the next one.

Made by

    {command}
"""

LINE = """- `{name}` ({parameters:,} parameters, {kilobytes:.0f} kB): accuracy {val:.3f} on the validation split (250 images),
  {test:.3f} on the test split (250 images); {seconds:.0f} s on one CPU core; sha256 `{sha256}`"""


def main(argv: list[str] | None = None) -> None:
    args = arguments("domains.image.ship", STEPS, argv)
    parts, seeds = Digits().load(), {SHIPPED.name: args.seed, JUDGE.name: args.seed + 1}
    lines = [line(args.out / name, parts, args.steps, seed) for name, seed in seeds.items()]
    write_text(args.out / "README.md", CARD.format(lines="\n".join(lines), **vars(args)))


def line(path: Path, parts: tuple[TensorData, TensorData, TensorData], steps: int, seed: int) -> str:
    """One classifier, trained and written to `path`, as a line of the card."""
    train, val, test = parts
    net, facts = ship(path, lambda: train_classifier(train, 10, steps, seed))
    return LINE.format(name=path.name, **facts, val=accuracy(net, val), test=accuracy(net, test))


if __name__ == "__main__":
    main()

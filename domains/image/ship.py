"""Trains the classifier in whose features images of digits are compared, and writes its card.

python -m domains.image.ship --out domains/image/weights/features
"""

from distillkit.evaluation.extractor import arguments, ship
from distillkit.files import write_text
from domains.image.data import Digits
from domains.image.features import STEPS, accuracy, train_classifier

CARD = """# Feature extractor for handwritten digits

A convolutional classifier (`domains.image.features.Classifier`, {parameters:,} parameters, {kilobytes:.0f} kB).
Its 64 units before the head are the features that the image domain measures digits by: Frechet and kernel distance,
precision, recall, density, coverage, distance to the training data. Its prediction gives the class agreement.

- Data: the training split (1,297 images, 8 x 8, one channel, x = grey / 8 - 1) of scikit-learn's handwritten digits
  (UCI Optical Recognition of Handwritten Digits, CC BY 4.0). It never saw the validation and test splits.
- Accuracy: {val:.3f} on the validation split (250 images), {test:.3f} on the test split (250 images).
- Training: {steps} steps of AdamW, batches of 128, seed {seed}, {seconds:.0f} s on one CPU core.
- sha256 of `model.safetensors`: `{sha256}`

Made by

    {command}
"""


def main(argv: list[str] | None = None) -> None:
    args = arguments("domains.image.ship", STEPS, argv)
    train, val, test = Digits().load()
    net, facts = ship(args.out / "model.safetensors", lambda: train_classifier(train, 10, args.steps, args.seed))
    facts |= {"val": accuracy(net, val), "test": accuracy(net, test)}
    write_text(args.out / "README.md", CARD.format(**facts, **vars(args)))


if __name__ == "__main__":
    main()

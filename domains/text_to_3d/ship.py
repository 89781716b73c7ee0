"""Trains the classifier in whose features renders of solids are compared, and writes its card.

python -m domains.text_to_3d.ship --out domains/text_to_3d/weights/features
"""

from __future__ import annotations

from distillkit.evaluation.extractor import arguments, ship
from distillkit.files import write_text
from domains.text_to_3d.data import Solids
from domains.text_to_3d.features import BATCH, NOISE, SHIFT, STEPS, accuracy, train_classifier

VIEWS = 768  # of each prompt in training

CARD = """# Feature extractor for renders of coloured solids

A convolutional classifier of shape, colour and view (`domains.text_to_3d.features.Classifier`, {parameters:,} parameters,
{kilobytes:.0f} kB). Its 64 units before the heads are the features that renders are compared in by the Frechet distance; what it
says of shape and colour ranks the prompts, what it says of the view tells whether a front is seen where there is none.

- Data: the training split of `domains.text_to_3d.data.Solids` with {views} views of each prompt ({train:,} renders of
  sixteen solids, 32 x 32, three channels in [-1, 1]). In training they are moved by up to {shift} pixels, blurred, and made
  noisy by a deviation of up to {noise}. Validation and test views have other cameras.
- Accuracy: {val} on the validation split,
  {test} on the test split. Views near the borders of the words (45 degrees from the front and
  from the back) are hard to tell apart.
- Training: {steps} steps of AdamW, batches of {batch}, seed {seed}, {seconds:.0f} s on one CPU core.
- sha256 of `model.safetensors`: `{sha256}`

Made by

    {command}
"""


def main(argv: list[str] | None = None) -> None:
    args, data = arguments("domains.text_to_3d.ship", STEPS, argv), Solids(train=VIEWS)
    data.setup()
    net, facts = ship(args.out / "model.safetensors", lambda: train_classifier(data.train, args.steps, args.seed))
    for part in ("val", "test"):
        shares = accuracy(net, getattr(data, part))
        facts[part] = ", ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
    facts |= {"train": len(data.train), "views": VIEWS, "shift": SHIFT, "noise": NOISE, "batch": BATCH}
    write_text(args.out / "README.md", CARD.format(**facts, **vars(args)))


if __name__ == "__main__":
    main()

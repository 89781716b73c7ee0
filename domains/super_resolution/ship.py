"""Trains the network in whose features photographs are compared, and writes its card.

python -m domains.super_resolution.ship --out domains/super_resolution/weights/features
"""

from distillkit.evaluation.extractor import arguments, ship
from distillkit.files import write_text
from domains.super_resolution.data import Photos
from domains.super_resolution.features import BATCH, DAMAGES, STEPS, accuracy, train_critic

CARD = """# Features of photographs

A convolutional classifier (`domains.super_resolution.features.Critic`, {parameters:,} parameters,
{kilobytes:.0f} kB) that tells how a photograph was damaged: {kinds}.
Its layers are the features that super-resolution measures photographs by: the Frechet distance between sets of parts
of images, and the distance of an image from its photograph, place by place. A feature sees 21 x 21 pixels.

- Data: squares of {side} pixels of the embedded training photographs (`domains.super_resolution.data.Photos` names them
  and their sources). It never saw those of validation and test.
- Accuracy among {num} kinds, of any strength: {val:.3f} on validation squares, {test:.3f} on test squares ({chance:.3f} by
  chance). Many squares are smooth and show no damage.
- Training: {steps} steps of AdamW, batches of {batch}, seed {seed}, {seconds:.0f} s on one CPU core.
- sha256 of `model.safetensors`: `{sha256}`

Made by

    {command}
"""


def main(argv: list[str] | None = None) -> None:
    args = arguments("domains.super_resolution.ship", STEPS, argv)
    data = Photos()
    data.setup()
    net, facts = ship(args.out / "model.safetensors", lambda: train_critic(data.train, args.steps, args.seed))
    facts |= {"val": accuracy(net, data.val), "test": accuracy(net, data.test), "side": data.crop, "batch": BATCH}
    facts |= {"kinds": ", ".join(DAMAGES), "num": len(DAMAGES), "chance": 1 / len(DAMAGES)}
    write_text(args.out / "README.md", CARD.format(**facts, **vars(args)))


if __name__ == "__main__":
    main()

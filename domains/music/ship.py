"""Trains the classifier in whose features embedded sounds are compared, and writes its card.

python -m domains.music.ship --out domains/music/weights/features
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distillkit.evaluation.extractor import arguments, ship
from distillkit.files import write_text
from domains.music.data import Tones
from domains.music.features import BATCH, ROUGH, STEPS, Classifier, accuracy, train_classifier

CARD = """# Feature extractor for notes, chords and rhythms

A classifier of timbre, pitch and rhythm (`domains.music.features.Classifier`, {parameters:,} parameters, {kilobytes:.0f} kB),
which computes log-mel spectrograms from the sounds. Its 64 units before the heads are what the music domain
takes the Frechet audio distance in; its predictions are the agreement with the classes that were asked for.

- Data: the training split of `domains.music.data.Tones` with its defaults (20,000 procedural clips of 1.024 s at 8 kHz),
  and as many from anywhere in the music, as for teachers that go on. A third of a batch has gone through a
  mel codec and Griffin and Lim's algorithm ({rough} iterations); all are louder or quieter by up to 6 dB, with noise of
  -90 to -50 dB.
- Accuracy: {val_begun} on the validation split, {test_begun} on the test split (768 clips each); of clips from anywhere
  {val_going_on} and {test_going_on}.
- Training: {steps} steps of AdamW, batches of {batch} sounds, seed {seed}, {seconds:.0f} s on one CPU core.
- sha256 of `model.safetensors`: `{sha256}`

Made by

    {command}
"""


def main(argv: list[str] | None = None) -> None:
    args = arguments("domains.music.ship", STEPS, argv)
    begun, going_on = Tones(), Tones(given=1)
    begun.setup()
    going_on.setup()
    net, facts = ship(
        args.out / "model.safetensors",
        lambda: train_classifier(Both(begun.train, going_on.train), begun.classes, begun.rate, args.steps, args.seed),
    )
    facts |= {"batch": BATCH + BATCH // 2, "rough": ROUGH}
    for part in ("val", "test"):
        facts[f"{part}_begun"], facts[f"{part}_going_on"] = (
            shares(net, getattr(data, part)) for data in (begun, going_on)
        )
    write_text(args.out / "README.md", CARD.format(**facts, **vars(args)))


class Both:
    """Two data sets of one length as one, the samples of both in turn."""

    def __init__(self, even: Any, odd: Any):
        self.even, self.odd = even, odd

    def __len__(self) -> int:
        return len(self.even) + len(self.odd)

    def __getitem__(self, indices: Tensor) -> dict[str, Tensor]:
        rows = ((self.even, indices[indices % 2 == 0]), (self.odd, indices[indices % 2 == 1]))
        parts = [data[chosen // 2] for data, chosen in rows if len(chosen)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def shares(net: Classifier, part: Any) -> str:
    """`timbre 0.998, pitch 1.000`."""
    return ", ".join(f"{name} {share:.3f}" for name, share in accuracy(net, part).items())


if __name__ == "__main__":
    main()

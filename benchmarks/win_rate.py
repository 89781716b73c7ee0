"""How often the data's reward prefers one student's samples to another's.

    python benchmarks/win_rate.py RUN OTHER [--num-samples 1000] [--seed 1234]

Both are student folders or the run folders around them; the data are those of the first one. The
samples are made from the same noise for the same conditions.
"""

from __future__ import annotations

import argparse
import sys

from distillkit.evaluation.preference import win_rate
from distillkit.students.provenance import load, made_with


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How often one student's samples are preferred to another's.")
    parser.add_argument("run", help="a student folder, or the run folder around it")
    parser.add_argument("other", help="another one")
    parser.add_argument("--num-samples", type=int, default=1000, help="samples of each (default 1000)")
    parser.add_argument("--seed", type=int, default=1234, help="of the noise (default 1234)")
    args = parser.parse_args(argv)
    one, other = load(args.run, ()), load(args.other, ())
    data = made_with(one.config, args.run, (), "data")["data"]
    share = win_rate(data, one, other, args.num_samples, args.seed)
    print(f"{args.run} wins {share:.1%} of {args.num_samples} samples against {args.other}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

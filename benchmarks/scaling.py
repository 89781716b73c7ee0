"""What several processes cost beside the work that they share, on the CPU (gloo).

    python benchmarks/scaling.py [--processes 1 2 4] [--steps 30] [--words domain=image method=dmd]

A run of P processes is the command line's own, with DDP or trainer=shard; each process has a batch
in every step. The same work in one process is P micro-batches in every step, which gives the same
weights. Times are CPU seconds of all processes together, so that other load of the machine and
waiting do not count; a ratio of 1 is no cost at all. Processes on one machine talk through its
memory, so networks between machines are not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table

WARMUP = 6  # steps that are not timed
WORDS = ["domain=image", "method=dmd"]
BARE = ["trainer.accelerator=cpu", "trainer.limit_val_batches=0", "~vars.callbacks.finish", "~vars.callbacks.watch"]
STRATEGIES = {"ddp": [], "shard": ["trainer=shard"]}
RANK = "SCALING_RANK"


class Clock(Callback):
    """Writes OUT/clock-RANK.json: CPU seconds and seconds between the warm-up and the last step."""

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == WARMUP:
            self.began = time.process_time(), time.perf_counter()

    def on_train_end(self, trainer, *_) -> None:
        cpu, wall = time.process_time() - self.began[0], time.perf_counter() - self.began[1]
        path = Path(trainer.default_root_dir, f"clock-{trainer.global_rank}.json")
        path.write_text(json.dumps({"cpu": cpu, "wall": wall}))


def measured(processes: int, steps: int, words: list[str]) -> tuple[float, float]:
    """CPU seconds of all processes and seconds, of one step."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        asked = [*words, *BARE, f"trainer.max_steps={WARMUP + steps}", f"trainer.devices={processes}"]
        asked += ["++vars.callbacks.clock._target_=scaling.Clock", "--out", f"{folder}/run"]
        command = [sys.executable, __file__, "--run", "fit", *asked]
        running = []
        for rank in range(processes):
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "TORCHELASTIC_RUN_ID": "scaling"}
            places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": processes}
            env = os.environ | ({name: str(value) for name, value in places.items()} if processes > 1 else {})
            running.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
        if any([process.wait() for process in running]):  # a list: all are waited for
            raise SystemExit(f"a process of {' '.join(asked)} failed")
        found = [json.loads(path.read_text()) for path in Path(folder, "run").glob("clock-*.json")]
    return sum(each["cpu"] for each in found) / steps, max(each["wall"] for each in found) / steps


def main(argv: list[str]) -> int:
    if argv[:1] == ["--run"]:
        from distillkit.cli.front import main as door

        return door(argv[1:])
    parser = argparse.ArgumentParser(description="Measure what several processes cost.")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--words", nargs="+", default=WORDS, help="of the run")
    args = parser.parse_args(argv)
    shown = Table("processes", "strategy", "CPU ms", "CPU ms of one process", "ratio", "ms")
    for processes in args.processes:
        alone, _ = measured(1, args.steps, [*args.words, f"trainer.accumulate_grad_batches={processes}"])
        for name, words in STRATEGIES.items():
            if processes > 1 or name == "ddp":
                cpu, wall = measured(processes, args.steps, [*args.words, *words])
                cells = [f"{1000 * cpu:.0f}", f"{1000 * alone:.0f}", f"{cpu / alone:.2f}", f"{1000 * wall:.0f}"]
                shown.add_row(str(processes), name if processes > 1 else "-", *cells)
                print(processes, name, *cells, file=sys.stderr, flush=True)
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    Console(width=100).print(shown, f"a step of every process; load of {os.cpu_count()} cores: {load}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What a GPU computes beside what the CPU computes, in one table; exits with 1 if a row fails.

    python benchmarks/gpu.py [--device cuda] [--only WORD ...]

Samples start from the same noise, so the devices differ by rounding alone; TF32 is off except in
its own row. Differences are absolute for values up to 1, else relative to the CPU's largest; of
tokens it is the share that differs. With --device cpu the CPU is compared with itself.

The rows `spread` compare the weights after a run of all GPUs, or of two processes of the CPU, with
those of one process that makes as many micro-batches; with one GPU they are left out. The rows
`beside` compare those after a run with and without a word that should not change them, both on the
device. The memory of steps beside the plan's is in benchmarks/plan.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from distillkit import compiling, devices
from distillkit.cli import config, front
from distillkit.diffusion.learned import LearnedSolver
from distillkit.diffusion.sampling import SOLVERS
from distillkit.discrete.learned import LearnedSampler
from distillkit.discrete.sampling import SAMPLERS
from distillkit.discrete.teacher import DiscreteTeacher
from distillkit.methods.few_step import times_of
from distillkit.precision import set_products
from distillkit.rollouts import rolled_out
from distillkit.students.few_step import FewStepStudent
from distillkit.students.sampler import SamplerStudent

NUM, STEPS = 32, 4  # samples of each model, and steps of each sampler
MANY, SOME = 2048, 128  # images for which memory is made too small, sampled and evaluated
SAMPLES, NUMBERS, TOKENS, HALF, SPREAD = 1e-3, 1e-2, 0.02, 0.1, 1e-4  # tolerances
LR, TURNS = 1e-4, 12  # learning rate of runs beside each other, and steps of short runs
# Where a gradient is rounding alone, Adam's first steps move a weight by `LR` either way. Two such
# steps may differ; where gradients are wrong, all do.
BESIDE = 4 * LR
CPU = torch.device("cpu")
WORLDS = {
    "toy": ["domain=toy", "teacher=mixture"],
    "image": ["domain=image"],
    "text": ["domain=discrete"],
    "potts": ["domain=discrete", "data=world", "teacher=potts"],
    "protein": ["domain=protein"],
    "structure": ["domain=threed", "stage=structure"],
    "features": ["domain=threed", "stage=features"],
    "clip": ["domain=video", "stage=clip"],
    "continuation": ["domain=video", "stage=continuation"],
    "photos": ["domain=super_resolution"],
    "scenes": ["domain=lidar"],
    "ranges": ["domain=lidar", "stage=range"],
    "sound": ["domain=music"],
    "sound that goes on": ["domain=music", "stage=sound_continuation"],
    "rooms": ["domain=scene"],
    "solids": ["domain=text_to_3d"],
    "solids by words": ["domain=text_to_3d", "stage=amortised"],
}
FIT = ["domain=image", "method=dmd", "model.num_steps=2", "trainer.max_steps=20", "trainer.val_check_interval=10"]
FIT += ["trainer.log_every_n_steps=10", "vars.callbacks.finish.num_samples=64"]
SHORT = [f"trainer.max_steps={TURNS}", "trainer.limit_val_batches=0", "~vars.callbacks.finish", "~vars.callbacks.watch"]
EXACT = ["method=dmd", "trainer.devices=1", "trainer.precision=32-true", "data.batch_size=4"]
EXACT += [f"model.student.lr={LR}", f"model.fake_score.lr={LR}"]

Values = Mapping[str, Any]  # tensors and numbers by name


class World:
    """A domain; every call makes models of its own on a device."""

    def __init__(self, words: list[str]):
        self.chosen = config.compose(words)[0]

    @cached_property
    def data(self) -> Any:
        data = instantiate(self.chosen.data)
        data.setup()
        return data

    def teacher(self, place: torch.device) -> tuple[Any, dict[str, Tensor]]:
        """The teacher, at its best at `STEPS` steps, and conditions."""
        teacher = instantiate(self.chosen.teacher).to(place)
        teacher.best = {**teacher.best, "steps": STEPS}
        return teacher, teacher.condition(self.data.conditions(NUM))

    def student(self, place: torch.device) -> tuple[Any, dict[str, Tensor]]:
        """An untrained student, as a run begins with."""
        teacher, cond = self.teacher(place)
        if isinstance(teacher, DiscreteTeacher):
            times = teacher.grid(STEPS).tolist()
            return SamplerStudent(teacher, LearnedSampler(teacher.process, times)).to(place), cond
        torch.manual_seed(0)  # of networks that are not the teacher's
        maker = instantiate(self.chosen.student)
        start = maker.sampling.get("start", teacher.start)
        made = FewStepStudent(
            maker.make(teacher),
            times_of(teacher.process, 2, None, None, start.level),
            teacher.event_shape,
            teacher.classes,
            context=teacher.context,
            start=start,
            codec=teacher.codec,
        )
        return made.to(place).eval(), cond

    def samples(self, place: torch.device) -> Values:
        (teacher, cond), (student, _) = self.teacher(place), self.student(place)
        return {"teacher": teacher.generate(NUM, cond, 1), "student": student.sample(NUM, cond, 1)}

    def numbers(self, place: torch.device) -> Values:
        """The metrics of disturbed real data, and those of real data."""
        evaluator, batch = self.data.evaluator(device=place), self.data.test[torch.arange(NUM)]
        real = batch["data"]
        noise = 0.1 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
        samples = real + noise if real.is_floating_point() else real.flip(1)
        pairs = evaluator.paired(samples, real, batch) if hasattr(evaluator, "paired") else {}
        return {**evaluator(samples, batch), **pairs, **{f"real {k}": v for k, v in evaluator.floor(NUM).items()}}

    def solved(self, solver: str, place: torch.device) -> Values:
        teacher, cond = self.teacher(place)
        return {"samples": teacher.generate(NUM, cond, 1, solver, teacher.grid(STEPS))}

    def learned(self, place: torch.device) -> Values:
        teacher, cond = self.teacher(place)
        solver = LearnedSolver(teacher.process, teacher.grid(STEPS).tolist(), learn_times=True)
        return {"samples": SamplerStudent(teacher, solver).to(place).sample(NUM, cond, 1)}

    def guided(self, place: torch.device) -> Values:
        teacher, cond = self.teacher(place)
        return {"samples": teacher.generate(NUM, cond, 1, kappa=torch.linspace(0.5, 3, NUM))}

    def half(self, kind: torch.dtype, place: torch.device) -> Values:
        teacher, cond = self.teacher(place)
        return {"samples": teacher.to(kind).generate(NUM, cond, 1)}

    def compiled(self, place: torch.device) -> Values:
        teacher, cond = self.teacher(place)
        compiling.compile_networks([teacher.denoiser.network])
        return {"samples": teacher.generate(NUM, cond, 1)}

    def tf32(self, place: torch.device) -> Values:
        with torch.backends.cudnn.flags(allow_tf32=True):
            return self.samples(place)

    def rollouts(self, place: torch.device) -> Values:
        (student, cond), (teacher, _) = self.student(place), self.teacher(CPU)
        return {"clips": rolled_out(student.sample, teacher.continuation, cond, 2, 1)}

    def little_memory(self, place: torch.device) -> Values:
        """Many images at once."""
        teacher, _ = self.teacher(place)
        cond = teacher.condition(self.data.conditions(MANY))

        def made() -> Values:
            return {"samples": teacher.generate(MANY, cond, 1, chunk=MANY if place.type == "cuda" else None)}

        with scarce(place, made):
            return made()


@contextmanager
def scarce(place: torch.device, work: Callable[[], object]) -> Iterator[None]:
    """A context in which a GPU has a third of the memory that `work` takes, done once before."""
    if place.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(place)
    work()
    allowed = torch.cuda.max_memory_allocated(place) / 3
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(place).total_memory, place)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, place)


class Runs:
    """Runs of the command line in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fit(self, words: list[str], place: torch.device) -> Values:
        """A short run that ends on the device; its teacher and real data are those of the CPU's."""
        run = Path(tempfile.mkdtemp(dir=self.folder))
        where = [f"trainer.accelerator={place.type}", "trainer.devices=1", "--out", run]
        call("fit", *FIT, *words, *where, "--no-cache")
        found = json.loads((run / "evaluation.json").read_text())
        student, teacher, few, real = (row["metrics"] for row in found["rows"])
        elsewhere = found["protocol"]["device"] != devices.model_name(place)
        broken = not np.isfinite([*student.values(), *few.values()]).all()
        real = {f"real {name}": value for name, value in real.items()}
        return {"elsewhere": float(elsewhere), "broken": float(broken), **teacher, **real}

    def weights(self, words: list[str], place: torch.device, start: Callable[..., None]) -> Values:
        """The weights after a short run, which `start` starts."""
        run = Path(tempfile.mkdtemp(dir=self.folder))
        start("fit", *SHORT, f"trainer.accelerator={place.type}", *words, "--out", run)
        state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return {name: value for name, value in state.items() if value.is_floating_point()}

    def spread(self, words: list[str], place: torch.device) -> Callable[[torch.device], Values]:
        """The weights of one process at the first call, of several at the second, on `place`."""
        num = torch.cuda.device_count() if place.type == "cuda" else 2
        alone = ["trainer.devices=1", f"trainer.accumulate_grad_batches={num}"]
        return self.beside(["domain=toy", "method=dmd"], alone, [f"trainer.devices={num}", *words], place, elsewhere)

    def beside(
        self, words: list[str], one: list[str], other: list[str], place: torch.device, start: Callable[..., None]
    ) -> Callable[[torch.device], Values]:
        """The weights with the words `one` at the first call, with `other` at the second."""
        told = iter((one, other))
        return lambda _: self.weights([*words, *next(told)], place, start)

    @cached_property
    def photographs(self) -> Path:
        """A folder with some."""
        folder, draw = self.folder / "photographs", np.random.default_rng(0)
        folder.mkdir()
        for number in range(40):
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")
        return folder

    @cached_property
    def student(self) -> Path:
        call("fit", *FIT, "trainer.accelerator=cpu", "--out", self.folder / "run")
        return self.folder / "run"

    def products(self, place: torch.device) -> Values:
        """`sample` and `evaluate` with a student that the CPU made."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        samples, table = folder / "samples", folder / "evaluation.json"
        call("sample", self.student, "-n", NUM, "--device", place, "--out", samples)
        call("evaluate", self.student, "--num-samples", 64, "--device", place, "--out", table, "--no-cache")
        return {"samples": torch.from_numpy(np.load(samples / "samples.npz")["samples"]), **numbers_in(table)}

    def little_memory(self, place: torch.device) -> Values:
        """`evaluate` of more samples than one chunk has."""

        def evaluated() -> Values:
            table = Path(tempfile.mkdtemp(dir=self.folder)) / "evaluation.json"
            call("evaluate", self.student, "--num-samples", SOME, "--device", place, "--out", table, "--no-cache")
            return numbers_in(table)

        with scarce(place, evaluated):
            return evaluated()


def numbers_in(table: Path) -> Values:
    """All metrics of an evaluation."""
    rows = json.loads(table.read_text())["rows"]
    return {f"{row['name']} {name}": value for row in rows for name, value in row["metrics"].items()}


def call(*argv: object) -> None:
    """A command line in this process."""
    with redirect_stdout(StringIO()):
        if front.main([str(word) for word in argv]):
            raise RuntimeError(f"{argv[0]} failed")
    set_products("32-true")  # the checks after it compare in full precision


def elsewhere(*argv: object) -> None:
    """A command line in a new interpreter, which may start others."""
    command = [sys.executable, "-m", "distillkit", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2])


def checks(folder: Path, place: torch.device) -> Iterator[tuple[str, Callable[[torch.device], Values], float]]:
    """`(name, values on a device, tolerance)` of each row."""
    worlds, runs = {name: World(words) for name, words in WORLDS.items()}, Runs(folder)
    image, text = worlds["image"], worlds["text"]
    for name, world in worlds.items():
        yield f"{name}: samples", world.samples, TOKENS if name in ("text", "potts") else SAMPLES
        yield f"{name}: numbers", world.numbers, NUMBERS
    for name in SOLVERS:
        yield f"image: {name}", partial(image.solved, name), SAMPLES
    for name in SAMPLERS:
        yield f"text: {name}", partial(text.solved, name), TOKENS
    yield "image: learned solver", image.learned, SAMPLES
    yield "image: guided", image.guided, SAMPLES
    yield "continuation: rollouts", worlds["continuation"].rollouts, SAMPLES
    yield "image: TF32", image.tf32, HALF
    yield "image: bfloat16", partial(image.half, torch.bfloat16), HALF
    yield "image: float16", partial(image.half, torch.float16), HALF
    yield "image: little memory", image.little_memory, SAMPLES
    yield "fit, 20 steps", partial(runs.fit, ["trainer.precision=32-true"]), NUMBERS
    yield "fit, by itself", partial(runs.fit, []), HALF
    yield "fit, bf16-true", partial(runs.fit, ["trainer.precision=bf16-true"]), HALF
    yield "fit, bf16-mixed", partial(runs.fit, ["trainer.precision=bf16-mixed"]), HALF
    yield "fit, teacher in bfloat16", partial(runs.fit, ["trainer.precision=32-true", "teacher.dtype=bfloat16"]), HALF
    yield "sample, evaluate", runs.products, NUMBERS
    yield "evaluate, little memory", runs.little_memory, NUMBERS
    yield "image: compiled", image.compiled, SAMPLES
    for word in ("model.checkpointing=true", "model.compile=true"):
        yield f"beside: {word}", runs.beside(["domain=image", *EXACT], [], [word], place, call), BESIDE
    files = ["domain=super_resolution", "data=photo_folder", f"data.path={runs.photographs}", *EXACT]
    readers = (["data.workers=0"], ["data.workers=1"])  # for a GPU their batches lie in pinned memory
    yield "beside: data.workers=1", runs.beside(files, *readers, place, call), BESIDE
    if place.type == "cpu" or torch.cuda.device_count() > 1:
        yield "spread: ddp", runs.spread([], place), SPREAD
        yield "spread: shard", runs.spread(["trainer=shard"], place), SPREAD


class Row(NamedTuple):
    """The outcome of a check."""

    name: str
    cpu: float  # root mean square of all values
    other: float
    gap: float
    tolerance: float
    seconds: float
    megabytes: float  # most memory of the GPU

    @property
    def passed(self) -> bool:
        return self.gap <= self.tolerance


def compared(name: str, values: Callable[[torch.device], Values], tolerance: float, place: torch.device) -> Row:
    """The row of a check; the gap is infinite where one of the two fails."""
    began, found = time.perf_counter(), []
    for one in (CPU, place):
        backend = "inductor" if one.type == "cuda" else "eager"  # which changes nothing
        if one.type == "cuda":
            torch.cuda.reset_peak_memory_stats(one)
        try:
            with warnings.catch_warnings(), patch.object(compiling, "BACKEND", backend):
                warnings.simplefilter("ignore")
                found.append({k: torch.as_tensor(v) for k, v in values(one).items()})
        except Exception as error:
            print(f"{name} on {one}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return Row(name, np.nan, np.nan, np.inf, tolerance, time.perf_counter() - began, 0)
    cpu, other = found
    gap = max(difference(cpu[k], other[k]) for k in cpu) if cpu.keys() == other.keys() else np.inf
    used = torch.cuda.max_memory_allocated(place) / 2**20 if place.type == "cuda" else 0
    sizes = [float(torch.cat([v.flatten().double() for v in each.values()]).square().mean().sqrt()) for each in found]
    return Row(name, *sizes, gap, tolerance, time.perf_counter() - began, used)


def difference(cpu: Tensor, other: Tensor) -> float:
    """The largest difference, see above; infinite if a value is on a GPU, or is no number."""
    if other.device.type != "cpu" or other.shape != cpu.shape or not other.isfinite().all():
        return np.inf
    if not cpu.is_floating_point():
        return float((cpu != other).double().mean())
    return float((cpu.double() - other.double()).abs().max() / cpu.double().abs().max().clamp_min(1))


def table(rows: list[Row], place: torch.device) -> Table:
    shown = Table("check", "CPU", devices.model_name(place), "difference", "tolerance", "", "seconds", "MiB")
    for row in rows:
        cells = [f"{row.cpu:.6g}", f"{row.other:.6g}", f"{row.gap:.1e}", f"{row.tolerance:g}"]
        cells += ["pass" if row.passed else "FAIL", f"{row.seconds:.1f}", f"{row.megabytes:.0f}"]
        shown.add_row(row.name, *cells)
    return shown


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare what a GPU computes with what the CPU computes.")
    devices.add_flag(parser)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="rows whose name has one of these")
    args = parser.parse_args(argv)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        everything, rows = list(checks(Path(folder), args.device)), []
        for word in args.only:
            if not any(word in check[0] for check in everything):
                some = ", ".join(check[0] for check in everything[::8])
                parser.error(f"--only: no row has {word!r} in its name; some are {some}")
        for check in everything:
            if not any(word in check[0] for word in args.only):
                continue
            rows.append(compared(*check, args.device))
            print(f"{rows[-1].name}: {'pass' if rows[-1].passed else 'FAIL'}", file=sys.stderr, flush=True)
    Console(width=120).print(table(rows, args.device))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

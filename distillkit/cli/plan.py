"""The verb plan: the memory, passes and time that a fit takes, before it."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table

from distillkit import devices, planning
from distillkit.cli import front
from distillkit.cli.lightning import CLI, quiet, set_threads
from distillkit.errors import Arguments, UsageError, number
from distillkit.planning import Plan, Rehearsal
from distillkit.progress import duration, progress

GIB = 2**30
ALONE = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "callbacks": None}
SHARED = "distillkit.sharding.Shard"
SHARES = (2, 4, 8, 16, 32, 64)  # devices among which a run is shared that does not fit


def plan(argv: Sequence[str]) -> int:
    """`plan domain=image method=dmd --devices 8 --memory 24`: as fit, with flags of its own."""
    options, rest = _parser().parse_known_args(list(argv))
    call = front.split(rest)
    if call.sweep or call.chain or call.show:
        raise UsageError("plan looks at one run: leave -m, --chain and --show out, and give each word one value")
    call.no_cache = True  # nothing is written
    set_threads()
    quiet()
    limit = room() if options.memory is None else options.memory * GIB
    look = looked(call, options.devices, real=options.measure)
    print(table(look.plan), end="")
    print(totals(look.plan, look.devices), end="")
    if limit is not None:
        if needed(look) > limit:
            raise UsageError(refusal(look, limit, call, options.devices))
        print(f"It fits: {size(needed(look))} of {size(limit)} on a device.")
    if options.measure:
        print(timed(look))
    elif options.speed and look.plan.passes < math.inf:
        print(f"The run takes {duration(look.plan.passes / options.speed)} at {options.speed:,g} passes a second.")
    return 0


def _parser() -> Arguments:
    parser = Arguments(
        "python -m distillkit plan",
        usage="%(prog)s [the words and flags of fit] [--devices N] [--memory GIB] [--speed PASSES | --measure]",
        description="Say what a fit with these words takes: memory, passes through networks and time. Nothing is trained, "
        "and no file is written.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--devices",
        type=number(int, 1, 2**16),
        metavar="N",
        help="that train together (default: trainer.devices, else 1)",
    )
    parser.add_argument(
        "--memory",
        type=number(float, 1e-3, 2**20),
        metavar="GIB",
        help="of one device, in GiB (default: of this machine's GPU, else what its memory has free)",
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--speed",
        type=number(float, 1e-6),
        metavar="PASSES",
        help="forward passes of one sample that a device makes in a second",
    )
    pace.add_argument("--measure", action="store_true", help="time some steps on this machine")
    return parser


class Look(CLI):
    """A fit that ends before its first step.

    Args:
        flags: LightningCLI's command line, `--config` included.
        devices: that train together; None means those of the configuration.
        real: whether copies of the teacher's weights have content.

    Attributes:
        devices: that train together.
        shares: whether they share the weights, as with trainer=shard.
        rehearsal: the method's steps.
        plan: what the run takes on one device.
    """

    def __init__(self, flags: Sequence[str], devices: int | None = None, real: bool = False):
        self.devices, self.real = devices, real
        super().__init__("fit", flags, None, "plan")

    def refuse_missing(self, trainer: object, checkpoint: str | None) -> None:
        """Refuses nothing: the run is to be on another machine."""

    def keep(self, checkpoint: str | None, again: bool) -> None:
        """Makes no run folder, and a trainer that writes nothing."""
        trainer = self.config[self.verb].trainer
        if self.devices is None:
            own = str(trainer.devices)
            self.devices = (int(own) if own.isdecimal() and int(own) else 1) * trainer.num_nodes
        self.shares = getattr(trainer.strategy, "class_path", None) == SHARED
        for name, value in ALONE.items():
            trainer[name] = value

    def instantiate_classes(self) -> None:
        with contextlib.nullcontext() if self.real else planning.Copies(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by copies of copies
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        return LightningCLI.instantiate_trainer(self, **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        self.rehearsal = Rehearsal(self.model, self.datamodule, self.trainer, self.devices)
        with progress("looking at the steps"):
            self.plan = planning.plan(self.rehearsal)


def looked(call: front.Call, devices: int | None, real: bool = False) -> Look:
    """The look at a command line of fit, with real copies at once or if they are needed."""
    found: list[Look] = []

    def look(verb: str, flags: Sequence[str], **_: object) -> int:
        try:
            found.append(Look(flags, devices, real))
        except UsageError:
            raise
        except Exception:  # of any kind: what is wrong with the run itself is raised again
            if real:
                raise
            found.append(Look(flags, devices, real=True))
        return 0

    front.train("fit", call, look)
    return found[0]


# What is printed


def size(number: float) -> str:
    """Bytes in GiB, MiB or KiB; a dash for none."""
    unit, name = next(
        ((2**bits, name) for bits, name in ((30, "GiB"), (20, "MiB")) if number >= 2**bits), (2**10, "KiB")
    )
    return f"{number / unit:,.2f} {name}" if number else "-"


def table(plan: Plan) -> str:
    """The two tables: what is held, and the steps of each role."""
    held, steps = (Table(box=None, padding=(0, 2, 0, 0)) for _ in range(2))
    for title in ("held", "trained", "frozen", "weights", "moments", "gradients"):
        held.add_column(title, justify="left" if title == "held" else "right")
    for part in plan.parts:
        numbers = (f"{part.trained:,}", f"{part.frozen:,}")
        held.add_row(part.name, *numbers, *map(size, (part.weights, part.moments, part.gradients)))
    for title in ("step of", "in a cycle", "in the run", "activations", "peak"):
        steps.add_column(title, justify="left" if title == "step of" else "right")
    steps.add_column("samples through networks")
    for turn in plan.turns:
        peak = plan.held + turn.activations + plan.gradients[turn.role]
        passes = ", ".join(f"{name} {number:,g} ({kind})" for (name, kind), number in sorted(turn.passes.items()))
        run = "?" if turn.steps == math.inf else f"{turn.steps:,}"
        steps.add_row(turn.role, str(turn.updates), run, size(turn.activations), size(peak), passes)
    console = Console(highlight=False, width=200, file=io.StringIO())
    console.print(held)
    console.print()
    console.print(steps)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n\n"


def totals(plan: Plan, num: int) -> str:
    """The sentences below the tables, for `num` devices."""
    lines = [f"One process holds {size(plan.held)} and reaches {size(plan.peak)}, in a step of {plan.largest.role}."]
    if num > 1:
        shared = f"with trainer=shard {size(plan.sharded(num))}"
        lines.append(f"On {num} devices with DDP each reaches {size(plan.peak + plan.bucket)}; {shared}.")
    if plan.pairs:
        lines.append(f"The teacher's samples take {size(plan.pairs)} of the CPU's memory besides.")
    if plan.first:
        lines.append(f"Before the first step {plan.first:,} passes of one sample make the teacher's samples.")
    if plan.passes < math.inf:
        lines.append(f"The run is {plan.passes:,.0f} forward passes of one sample on each device.")
    if plan.real:
        lines.append("The steps were made with 2 and 4 samples, and extended in a straight line.")
    return "".join(f"{line}\n" for line in lines)


def timed(look: Look) -> str:
    """The sentences on the time of the run, from some real steps on this machine."""
    device, plan = devices.own(), look.plan
    with progress("timing steps"):
        spent = planning.seconds(look.rehearsal, device)
    each = ", ".join(f"{role} {1000 * second:,.1f} ms" for role, second in spent.items())
    speed = sum(turn.updates * turn.cost for turn in plan.turns) / sum(
        turn.updates * spent[turn.role] for turn in plan.turns
    )
    said = f"A step takes on {devices.model_name(torch.device(device))}: {each} ({speed:,.0f} passes a second)."
    if plan.passes == math.inf:
        return said
    return f"{said}\nThe run takes {duration(sum(turn.steps * spent[turn.role] for turn in plan.turns) + plan.first / speed)}."


# What does not fit


def room() -> int | None:
    """Bytes of memory of this machine's GPU, else those that the machine has free, if it says."""
    if devices.best() == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return devices.free(torch.device("cpu"))


def needed(look: Look) -> int:
    """Bytes of one device."""
    if look.shares:
        return look.plan.sharded(look.devices)
    return look.plan.peak + (look.plan.bucket if look.devices > 1 else 0)


def refusal(look: Look, limit: float, call: front.Call, asked: int | None) -> str:
    """The sentence on a run that does not fit, with what would help and by how much."""
    mends, ways = [], changes(look, limit, call)
    with progress("it does not fit; looking for what helps", len(ways)) as activity:
        for change in ways:
            with (
                contextlib.suppress(UsageError),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                other = looked(changed(call, change), int(change.get("trainer.devices", 0)) or asked)
                if needed(other) < needed(look):
                    mends.append(f"{' '.join(written(call, change))} takes {size(needed(other))}")
            activity.advance()
    helps = f": {'; '.join(mends)}" if mends else ": take a smaller network"
    return f"this run takes {size(needed(look))} on a device, which has {size(limit)}{helps}"


def changes(look: Look, limit: float, call: front.Call) -> list[dict[str, str]]:
    """What may help, as words; by itself it need not."""
    batch, many = look.datamodule.batch_size, look.trainer.accumulate_grad_batches
    halved = {"data.batch_size": str(batch // 2), "trainer.accumulate_grad_batches": str(2 * many)}
    alone = call.value("--config", "-c") is not None
    rounded = "model.teacher.dtype" if alone else "teacher.dtype"
    found = [
        *([halved] if batch > 1 else []),
        *([] if look.model.checkpointing else [{"model.checkpointing": "true"}]),
        *([] if look.model.optimizer == "adamw8bit" else [{"model.optimizer": "adamw8bit"}]),
        {"student": "lora"},
        {"trainer.precision": "bf16-mixed"},
        {rounded: "bfloat16"},
    ]
    if alone:
        return [change for change in found if "student" not in change]  # a choice of files, no flag
    enough = [num for num in SHARES if num > look.devices and look.plan.sharded(num) <= limit]
    return [*found, *({"trainer": "shard", "trainer.devices": str(num)} for num in enough[:1])]


def written(call: front.Call, change: dict[str, str]) -> list[str]:
    """A change as words, or as flags beside `--config`."""
    dashes = "" if call.value("--config", "-c") is None else "--"
    return [f"{dashes}{name}={value}" for name, value in change.items()]


def changed(call: front.Call, change: dict[str, str]) -> front.Call:
    """The command line with a change."""
    if call.value("--config", "-c") is not None:
        return replace(call, flags=[*call.flags, *([flag] for flag in written(call, change))])
    kept = [word for word in call.words if word.lstrip("+").partition("=")[0] not in change]
    return replace(call, words=[*kept, *written(call, change)])

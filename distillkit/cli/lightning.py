"""LightningCLI over the composed configuration; imported only when a verb needs Lightning."""

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from distillkit import capabilities, checks, precision, runs, signals
from distillkit.callbacks.checkpoint import Checkpoint
from distillkit.callbacks.finish import Finish, is_complete
from distillkit.callbacks.watch import Watch
from distillkit.cli.messages import class_at, condense, keys_of, no_group, original, switches_of
from distillkit.data import DistillData
from distillkit.errors import Failure, Interrupted, UsageError, one_line
from distillkit.feeding import LOST
from distillkit.files import write_text
from distillkit.methods.base import Distiller
from distillkit.report.logger import MetricsLogger, needs_package

SEED = " is not in bounds, numpy accepts"  # what Lightning says of a seed
OBSERVER = "lightning.fabric.strategies.launchers.subprocess_script"  # logger of what ends processes
NOTICE = 2.0  # seconds
FIND_UNUSED = "ddp{}_find_unused_parameters_true"
NOISE = (
    "Grad strides do not match bucket view strides",  # of weights of 1 x 1 convolutions, whose order is either
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",  # the teacher stays in it on purpose
    ".*Checkpoint directory .* exists and is not empty.*",  # the case of a run that continues
    ".*smaller than the logging interval.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*has no attribute.*_pytree.*",
    ".*find_unused_parameters=True was specified.*",
    ".*The dirpath has changed from.*",
    ".*You called `self.log\\(.*` in your `.*` but have no logger configured.*",
    ".*returned a view tensor. An in-place op on this view.*",  # of FSDP2; outputs are never changed in place
    ".*It is recommended to use `self.log\\(.*sync_dist=True.*",
)
LEAVES = {Checkpoint: "checkpoints/last.ckpt to go on from", Finish: "student, evaluation.json and report.html"}


def run(verb: str, flags: Sequence[str], out: str | None, name: str, strict: bool = False) -> int:
    """Runs `fit`, `validate` or `test` with LightningCLI's flags and returns the exit code 0.

    Args:
        verb, flags, out, name, strict: see `CLI`.

    Raises:
        UsageError: the configuration cannot be run.
    """
    set_threads()
    quiet()
    with signals.handled(signal.default_int_handler):  # outside of training, queues stop a run as Ctrl-C does
        CLI(verb, flags, out, name, strict)
    return 0


def set_threads() -> None:
    """Sets one torch thread, or DISTILLKIT_THREADS of them, where there is no GPU.

    With small networks more threads wait for each other.

    Raises:
        UsageError: DISTILLKIT_THREADS is not a whole number of at least 1.
    """
    if not torch.cuda.is_available():
        given = os.environ.get("DISTILLKIT_THREADS", "1")
        if not given.isdecimal() or int(given) < 1:
            raise UsageError(f"DISTILLKIT_THREADS must be a whole number of at least 1, got {given!r}")
        torch.set_num_threads(int(given))


def quiet() -> None:
    """Hides Lightning's messages that a user of distillkit cannot act on."""
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger(OBSERVER).setLevel(logging.INFO)  # see `CLI.say_lost`
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


class Start(Callback):
    """Writes RUN/config.yaml right before the first batch.

    An error before that is wrong usage and leaves nothing behind; a later one is a failure.

    Args:
        folder: the run folder.
        text: the content of config.yaml.
        notes: lines to print.
    """

    def __init__(self, folder: Path, text: str, notes: Sequence[str] = ()):
        self.folder, self.text, self.notes, self.done = folder, text, notes, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.done = True
        batches = (trainer.max_epochs or 0) * trainer.num_training_batches
        if trainer.check_val_every_n_epoch is None and 0 < batches < (trainer.val_check_batch or 0):
            trainer.val_check_batch = batches  # as `validate_once`: now the length of epochs is known
        if trainer.is_global_zero:
            write_text(self.folder / "config.yaml", self.text)
            print("\n".join([f"run folder: {self.folder}", *self.notes]), flush=True)
            for kind, lost in LEAVES.items():
                if not any(isinstance(callback, kind) for callback in trainer.callbacks):
                    print(f"note: without the callback {kind.__name__} this run leaves no {lost}", flush=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.done:  # the checkpoint was of the last step: training neither began nor ended
            self.on_train_start(trainer, pl_module)
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoint):
                    callback.on_train_end(trainer, pl_module)


def refuse_values_let_through(node: Any, path: str) -> None:
    """Raises UsageError for values that jsonargparse lets through.

    They are `model.student=1` for settings such as `model.student.lr`, and null for a switch.

    Args:
        node: a node of the parsed configuration.
        path: the key of the node.
    """
    if isinstance(node, list):
        for inner in node:
            refuse_values_let_through(inner, path)
    elif isinstance(node, Namespace):
        arguments = node.get("init_args")
        if isinstance(arguments, Namespace):
            names = [f"{path}.{name}" for name in keys_of(node.class_path)]
            switches = switches_of(node.class_path)
            for name, value in arguments.__dict__.items():
                if value is None and name in switches:
                    raise UsageError(f"{path}.{name} must be true or false, got null")
                if not isinstance(value, Namespace) and any(key.startswith(f"{path}.{name}.") for key in names):
                    raise UsageError(no_group(f"{path}.{name}", names, "null" if value is None else value))
        for name, inner in node.__dict__.items():
            refuse_values_let_through(inner, path if name == "init_args" else f"{path}.{name}")


class CLI(LightningCLI):
    """LightningCLI with one verb and a run folder; runs when constructed.

    Args:
        verb: fit, validate or test.
        flags: LightningCLI's command line, `--config` included.
        out: the run folder that the user gave; None means a new folder runs/NAME-NUMBER.
        name: NAME of that new folder.
        strict: whether the run stops where it would warn of a cause of failure.

    Raises:
        UsageError: the configuration cannot be run; nothing was trained.
        Interrupted: Ctrl-C stopped the run outside of a training step.
    """

    def __init__(self, verb: str, flags: Sequence[str], out: str | None, name: str, strict: bool = False):
        self.verb, self.out, self.name, self.strict = verb, out, name, strict
        self.folder: Path | None = None
        self.start: Start | None = None
        self.notes: list[str] = []
        try:
            super().__init__(
                Distiller,
                DistillData,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_callback=None,
                parser_kwargs={verb: {"exit_on_error": False}, "exit_on_error": False, "allow_abbrev": False},
                args=[verb, *flags],
            )
        except (ValueError, MisconfigurationException) as error:
            cause = original(error)
            if isinstance(cause, checks.Unfit) and hasattr(self, "config_dump"):
                cause = cause.with_key(self.config_dump)
            if isinstance(cause, ValueError | MisconfigurationException) and not (self.start and self.start.done):
                said = one_line(cause)
                raise UsageError(f"seed_everything={said}" if SEED in said else said) from error
            raise cause from error
        except RuntimeError as error:
            if LOST in str(error):
                mend = "say data.workers=0, or leave the machine more memory (of a container: --shm-size)"
                raise Failure(f"a worker that reads data was lost{self.goes_on()}; {mend}") from error
            if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
                raise Failure(f"a process of this run was lost{self.goes_on()}") from error
            raise
        except OSError as error:
            ours = self.folder and error.filename and self.folder in Path(error.filename).parents
            if ours or error.errno in runs.FULL:
                raise runs.cannot_write(error, self.folder) from error
            raise
        except SystemExit:
            if getattr(getattr(self, "trainer", None), "interrupted", False):
                self.interrupted()
            raise
        finally:
            if self.folder:
                runs.release(self.folder)

    # ---- the parser

    def subcommands(self) -> dict[str, set[str]]:
        return {self.verb: LightningCLI.subcommands()[self.verb]}  # one parser instead of four

    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_argument("--method", type=str | None, help="the word that chose the method, for cards and reports")

    def parse_arguments(self, parser: Any, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise UsageError(condense(str(error), self._parser(self.verb).get_defaults().keys())) from error

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning's version lets the checkpoint's values override the command."""

    # ---- the run folder

    def before_instantiate_classes(self) -> None:
        config = self.config[self.verb]
        if config.trainer is None:
            raise UsageError("trainer holds further keys, such as trainer.max_steps, and cannot be null")
        again = config.ckpt_path == "last"
        checkpoint = self.find_checkpoint(config)
        if config.trainer.default_root_dir is not None:
            raise UsageError("trainer.default_root_dir is the run folder: give it with --out")
        for part in ("model", "data", "trainer"):
            refuse_values_let_through(config.get(part), part)
        checks.trainer(config.trainer)
        self.refuse_missing(config.trainer, checkpoint)
        if self.verb == "fit":
            checks.ends(config.trainer)
            self.validate_once(config.trainer)
        elif config.trainer[limit := f"limit_{'val' if self.verb == 'validate' else self.verb}_batches"] == 0:
            raise UsageError(f"trainer.{limit}=0 leaves nothing to measure: give at least 1")
        self.choose_precision(config)
        # the saved configuration names neither run folder nor checkpoint, so it runs anywhere
        self._dump_config()
        if lacking := capabilities.lacking(self.config_dump):
            raise UsageError(lacking)
        self.keep(checkpoint, again)

    def refuse_missing(self, trainer: Any, checkpoint: str | None) -> None:
        """Raises UsageError for a GPU, by a name of Lightning's, or nodes that are not there."""
        there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not {**there, "gpu": any(there.values())}.get(str(trainer.accelerator), True):
            raise UsageError(
                f"trainer.accelerator={trainer.accelerator} finds no GPU on this machine: say trainer.accelerator=cpu, "
                f"or leave it and trainer=gpus out"
            )
        if trainer.num_nodes > 1 and "MASTER_ADDR" not in os.environ and not runs.by_srun():
            raise UsageError(
                f"trainer.num_nodes={trainer.num_nodes} needs processes on every node, which srun or torchrun starts"
            )
        if trainer.num_nodes > 1 and self.out is None and runs.home_of(checkpoint) is None:
            raise UsageError(runs.NAMELESS)

    def keep(self, checkpoint: str | None, again: bool) -> None:
        """Makes the run folder, and what goes there before the first batch.

        Args:
            checkpoint: the one that the run starts from.
            again: whether that may be of this run folder.
        """
        config = self.config[self.verb]
        record = yaml.safe_dump({**self.config_dump, "ckpt_path": None, "weights_only": None}, sort_keys=False)
        folder = Path(self.out) if self.out else runs.home_of(checkpoint)
        at_end = again or (checkpoint and folder and runs.is_last(checkpoint, folder))
        if self.verb == "fit" and at_end and is_complete(folder, record, config.trainer.max_steps):
            if runs.rank() == 0:
                print(f"this run is complete: {folder}", flush=True)
            raise SystemExit(0)
        self.folder = runs.claim(self.out, self.name, checkpoint, again, alone=self.verb == "fit")
        self.start = Start(self.folder, record, self.notes)
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            needs_package(getattr(logger, "class_path", ""))
            arguments = getattr(logger, "init_args", None)
            if arguments is not None and "save_dir" in arguments and arguments.save_dir in (None, ""):
                arguments.save_dir = str(self.folder)

    def choose_precision(self, config: Any) -> None:
        """Sets the precision of the run if nobody says one, so that config.yaml holds it."""
        trainer = config.trainer
        if trainer.precision is None:
            precise = getattr(class_at(getattr(config.model, "class_path", None)), "precise", False)
            trainer.precision = precision.default(trainer.accelerator, precise)
            self.notes = [precision.SAID] if trainer.precision not in precision.FULL else []

    @staticmethod
    def validate_once(trainer: Any) -> None:
        """Sets the interval of validations to the whole run, if that is shorter."""
        batches, interval = trainer.max_steps * trainer.accumulate_grad_batches, trainer.val_check_interval
        if 0 < batches < (interval or 0) and isinstance(interval, int) and trainer.check_val_every_n_epoch is None:
            trainer.val_check_interval = batches

    def find_checkpoint(self, config: Any) -> str | None:
        """The checkpoint of the command line or of its config.yaml; None if there is none.

        For Lightning, `config` gets its absolute path, and pickles are not read.

        Raises:
            UsageError: weights_only asks for pickles, or the checkpoint cannot be used.
        """
        if config.weights_only not in (None, True):
            raise UsageError("weights_only is no choice: checkpoints hold plain tensors and are never unpickled")
        given = config.ckpt_path
        if given is None and self.verb != "fit":
            given = self.own_checkpoint(config)
        checkpoint = runs.resolve_checkpoint(given, self.out)
        config.ckpt_path, config.weights_only = checkpoint and os.path.abspath(checkpoint), True
        return checkpoint

    def own_checkpoint(self, config: Any) -> Path:
        """The last checkpoint of the run whose folder or config.yaml the command names.

        Raises:
            UsageError: there is none.
        """
        files = [
            str(file) for file in config.get("config") or () if file is not None
        ]  # None: the words, which are no file
        homes = [Path(self.out)] if self.out else [Path(file).parent for file in files]
        for last in (home / "checkpoints" / runs.LAST for home in homes):
            if last.is_file():
                return last
        raise UsageError(
            f"{self.verb} measures what a run has trained: name its checkpoint with --ckpt_path RUN/checkpoints/{runs.LAST}"
        )

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the verb; the first process ends those that it started where it fails."""
        observer = logging.getLogger(OBSERVER)
        observer.addFilter(self.say_lost)
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            started = getattr(self.trainer.strategy.launcher, "procs", [])
            others = [*started]
            started.clear()  # or Lightning would kill this process as soon as it sees that they ended
            for other in others if not isinstance(error, Interrupted) else ():
                other.kill()
            raise
        finally:
            observer.removeFilter(self.say_lost)

    def say_lost(self, record: logging.LogRecord) -> bool:
        """Says that a process was lost in the place of Lightning, which then ends this one at once.

        First this one gets time to notice by itself, unless it waits for the lost one for ever.
        """
        time.sleep(NOTICE)
        print(f"error: a process of this run was lost{self.goes_on()}", file=sys.stderr, flush=True)
        return False

    def interrupted(self) -> None:
        """Raises Interrupted after Ctrl-C outside of a training step; nothing new is saved then."""
        raise Interrupted(f"interrupted{self.goes_on()}")

    def goes_on(self) -> str:
        """The end of a sentence, with the command that goes on from the last checkpoint, if any."""
        kept = self.verb == "fit" and self.folder and (self.folder / "checkpoints" / runs.LAST).is_file()
        return f"; {runs.way_on(self.folder)}" if kept else ""

    def _instantiate_trainer(self, *args: Any) -> Trainer:
        try:
            return super()._instantiate_trainer(*args)
        except (TypeError, ImportError, RuntimeError) as error:  # Lightning's errors for values it cannot use
            raise UsageError(f"these trainer settings make no trainer: {one_line(error)}") from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        flags = self.config[self.verb].trainer
        if precision.on_gpu(flags.accelerator):
            precision.set_products(flags.precision)
        kwargs["default_root_dir"] = str(self.folder)
        own, chosen = MetricsLogger(str(self.folder)), self.config[self.verb].trainer.logger
        if chosen in (True, None):
            kwargs["logger"] = own
        elif not chosen and self.verb == "fit":
            print(
                "note: there is no logger, so metrics.csv is not written and the report has no curves", file=sys.stderr
            )
        trainer = super().instantiate_trainer(**kwargs)
        strategy = self.config[self.verb].trainer.strategy
        if trainer.world_size > 1 and strategy in ("auto", "ddp", "ddp_spawn", "ddp_fork"):
            # roles take turns, so in every step most parameters have no gradient
            kwargs["strategy"] = FIND_UNUSED.format("" if strategy == "auto" else strategy[3:])
            trainer = super().instantiate_trainer(**kwargs)
        if chosen and not any(isinstance(logger, MetricsLogger) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, own]
        if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > 4 * (cores := os.cpu_count() or 1):
            raise UsageError(
                f"trainer.devices={trainer.num_devices} asks for so many processes on the CPU, which has {cores} cores"
            )
        trainer._signal_connector.register_signal_handlers = lambda: (
            None
        )  # they would requeue the job, and hang without it
        trainer.callbacks.insert(0, self.start)
        watching = [callback for callback in trainer.callbacks if isinstance(callback, Watch) and callback.samples != 0]
        if self.strict and not watching:
            raise UsageError(
                "--strict stops where the callback Watch would warn, which looks at nothing in this run: leave one out"
            )
        for callback in watching:
            callback.strict |= self.strict
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "dirpath", "") is None:
                callback.dirpath = str(self.folder / "checkpoints")
        return trainer

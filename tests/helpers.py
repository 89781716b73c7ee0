"""Helpers of several test files: command line, processes, exact teachers, expectations."""

import contextlib
import copy
import importlib
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor

from distillkit import runs
from distillkit.cli import front
from distillkit.codec import Codec
from distillkit.data import DistillData, TensorData
from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import (
    DiscreteVarianceExploding,
    DiscreteVariancePreserving,
    RectifiedFlow,
    ResShift,
    TrigFlow,
    VarianceExploding,
    VariancePreserving,
)
from distillkit.networks.mlp import MLP
from distillkit.rollouts import Continuation
from distillkit.sharding import Shard
from distillkit.teachers.base import Teacher
from distillkit.teachers.exact import ExactTeacher, Mixture

CLASSES = {"label": 2}  # of the small neural teacher
UNFINISHED = [
    "vars.callbacks.finish.num_samples=0",
    "vars.callbacks.finish.pictures=false",
]  # no evaluation, no pictures
UNMEASURED = [*UNFINISHED, "trainer.limit_val_batches=0"]  # nothing measured or drawn
BATCH = {"data": torch.randn(8, 2, generator=torch.Generator().manual_seed(5)), "label": torch.arange(8) % 2}
PROCESSES = {
    "ve": VarianceExploding(),
    "vp": VariancePreserving(),
    "ddpm": DiscreteVariancePreserving(),
    "latent": DiscreteVariancePreserving(beta_start=0.00085, beta_end=0.012, schedule="scaled_linear"),
    "cosine": DiscreteVariancePreserving(schedule="cosine"),
    "zero_snr": DiscreteVariancePreserving(
        beta_start=0.00085, beta_end=0.012, schedule="scaled_linear", snr_shift=3.0, zero_snr=True
    ),
    "flow": RectifiedFlow(),
    "trig": TrigFlow(),
    "resshift": ResShift(),
    "local": DiscreteVarianceExploding(),
}


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian(mean: float, std: float, process=None) -> ExactTeacher:
    """A teacher N(mean, std^2) in one dimension."""
    return ExactTeacher(Mixture([[mean]], [[[std**2]]]), process or VarianceExploding())


def sigma_points() -> tuple[Tensor, Tensor]:
    """(z, eps), [4, 1] each, whose plain average is the expectation of every cubic polynomial.

    z and eps are unit Gaussians.
    """
    root = 2**0.5
    return f64(root, -root, 0, 0)[:, None], f64(0, 0, root, -root)[:, None]


def trainer(max_steps: int, **settings) -> Trainer:
    """A silent trainer on one CPU."""
    warnings.filterwarnings("ignore", module="lightning")
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults |= {
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "max_epochs": -1,
        "use_distributed_sampler": False,
    }
    return Trainer(max_steps=max_steps, **(defaults | settings))


class Forked(_MultiProcessingLauncher):
    """Lightning's launcher, which would hand parts of weights back to the process that waits."""

    def _collect_rank_zero_results(self, trainer, results):
        return SimpleNamespace(trainer_results=None) if trainer.is_global_zero else None

    def _recover_results_in_main_process(self, worker_output, trainer):
        pass


class ForkedShard(Shard):
    """Forked processes, as DDP has them in tests; a run starts its own by its command line."""

    def _configure_launcher(self) -> None:
        self._launcher = Forked(self, start_method="fork")


def forked_ddp() -> DDPStrategy:
    return DDPStrategy(start_method="fork", find_unused_parameters=True, process_group_backend="gloo")


class Keep(Callback):
    """Writes the whole weights of a run of several processes, as it ends, to a file."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_end(self, trainer, model):
        whole = model.gathered()
        if trainer.is_global_zero:
            torch.save(dict(whole.state_dict()), self.path)


def in_processes(num: int, work: Callable[..., object], *args: object) -> list:
    """What `work(rank, *args)` gives in each of so many forked processes that are a group (gloo).

    An exception counts as what it gave.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes, children, context = [], [], multiprocessing.get_context("fork")
        for rank in range(num):
            ours, theirs = context.Pipe(duplex=False)

            def live(rank=rank, theirs=theirs):
                torch.set_num_threads(1)
                torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=num)
                try:
                    found = work(rank, *args)
                except Exception as error:
                    found = error
                theirs.send_bytes(pickle.dumps(found))
                os._exit(0)

            pipes.append(ours)
            children.append(context.Process(target=live, daemon=True))
        torch.set_num_threads(1)  # a fork has none of the other threads, and would wait for them
        for child in children:
            child.start()
        try:
            assert all(pipe.poll(60) for pipe in pipes), "a process hangs"
            return [pickle.loads(pipe.recv_bytes()) for pipe in pipes]
        finally:
            for child in children:
                child.kill()
                child.join()


class Line(torch.nn.Module):
    """The student of the closed forms: x_g = mu + s z."""

    def __init__(self, mu: float, s: float):
        super().__init__()
        self.mu, self.s = (torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (mu, s))

    def forward(self, z: Tensor) -> Tensor:
        return self.mu + self.s * z

    def best_response(self, process):
        """The fake score that has learnt the student as it is now: a constant of the loss."""
        return gaussian(self.mu.item(), self.s.item(), process).denoiser

    def gradient(self, loss: Tensor) -> list[float]:
        """`[dL/dmu, dL/ds]`."""
        return [g.item() for g in torch.autograd.grad(loss, [self.mu, self.s])]


def wake(module, seed=0):
    """Random weights everywhere, also in layers that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module


def neural(process=None, **surroundings):
    """A small neural teacher with two classes in the plane."""
    network = wake(MLP([2], width=8, depth=1, classes=CLASSES))
    return Teacher(Denoiser(network, process or VarianceExploding(), "edm", 1.0), (2,), CLASSES, **surroundings)


class Affine(Codec):
    """A codec for data `scale x + 1 + label` with one more axis.

    A sample decoded twice, never or for other conditions shows.
    """

    def __init__(self, scale: float = 2.0):
        self.scale = scale

    def encode(self, batch):
        return (batch["data"][..., 0] - 1 - batch["label"][:, None]) / self.scale

    def decode(self, x, cond):
        return (self.scale * x + 1 + cond["label"][:, None])[..., None]

    def data_shape(self, event_shape):
        return (*event_shape, 1)


class Tail(Continuation):
    """A continuation whose condition `name` is the end of the sample before.

    It is not detached, so gradient that flows shows.
    """

    def __init__(self, name: str = "before", axis: int = 2):
        self.name, self.axis = name, axis

    def __call__(self, cond, x_0):
        shared = self.overlap(cond)
        return {**cond, self.name: x_0.narrow(self.axis, x_0.shape[self.axis] - shared, shared)}

    def overlap(self, cond):
        return cond[self.name].shape[2]


class Pairs(DistillData):
    """A few points in the plane with labels."""

    event_shape, classes = (2,), CLASSES

    def load(self):
        generator = torch.Generator().manual_seed(0)
        data = torch.randn(48, 2, generator=generator)
        made = TensorData({"data": data, "label": torch.arange(48) % 2})
        return made, made, made

    build_evaluator = media = None


class Record(Callback):
    """Everything that can change, before the first step and after each."""

    def on_train_start(self, trainer, model):
        self.states, self.grads = [self.look(trainer, model)], []

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        self.states.append(self.look(trainer, model))

    def on_before_optimizer_step(self, trainer, model, optimizer):
        self.grads.append({role: [p.grad for p in model.role_parameters(role)] for role in model.roles})

    def look(self, trainer, model):
        state = trainer.optimizers[0].state
        return SimpleNamespace(
            weights={role: [p.detach().clone() for p in model.role_parameters(role)] for role in model.roles},
            moments={
                role: [copy.deepcopy(dict(state[p])) for p in model.role_parameters(role) if p in state]
                for role in model.roles
            },
            ema=[p.detach().clone() for p in model.ema.parameters()] if model.ema is not None else [],
            bad=model.bad_steps.tolist(),
        )


def fit(model, max_steps, **settings):
    record = Record()
    run = trainer(max_steps, callbacks=[record], **settings)
    run.fit(model, Pairs(batch_size=8))
    return record.states, run, record


def heed_signals():
    """For `preexec_fn`: children inherit ignored signals from the parent of the tests."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Command:
    """`python -m distillkit ARGV` in a fork of this process, whose imports cost many seconds.

    Like `subprocess.Popen`: `pid`, `poll`, `wait`, `send_signal`, `kill` and `returncode`; `stdout`
    and `stderr` are what it has said so far.

    Args:
        argv: words and flags.
        cwd: the folder it runs in; None means this process's own.
        env: variables of its environment besides this process's own.
        work: what is run instead of the command line; gets `argv`, as `sys.argv` has it too.
    """

    IMPORTED = ("cli.lightning", "cli.products", "report.page", "evaluation.pictures")  # in `distillkit`
    LEFT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED", runs.OUT)

    def __init__(
        self,
        *argv: object,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        work: Callable[[list[str]], int | None] = front.main,
    ):
        self.argv, self.returncode = [*map(str, argv)], None
        self._said = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 (open as long as this object lives)
        for name in self.IMPORTED:
            importlib.import_module(f"distillkit.{name}")
        torch.set_num_threads(1)  # a fork has none of the other threads, and would wait for them
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forks beside threads: those of pytest-xdist do nothing here
            self.pid = os.fork()
        if not self.pid:
            self._run(cwd, env or {}, work)

    def _run(self, cwd: Path | None, env: Mapping[str, str], work: Callable) -> NoReturn:
        """The child's whole life."""
        code = 1
        try:
            self._forget_the_tests()
            os.environ.update(env)
            os.chdir(cwd or ".")
            code = work(self.argv) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _forget_the_tests(self) -> None:
        """Streams, signals, warnings, logs and variables are what a new interpreter has."""
        for number, file in enumerate(self._said, 1):
            os.dup2(file.fileno(), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        heed_signals()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        logging.root.handlers.clear()
        for logger in logging.root.manager.loggerDict.values():
            for handler in getattr(logger, "handlers", ()):
                if isinstance(handler, logging.StreamHandler):
                    handler.setStream(sys.stderr)
        for name in self.LEFT:
            os.environ.pop(name, None)
        sys.argv = ["distillkit", *self.argv]

    @property
    def stdout(self) -> str:
        return self._text(0)

    @property
    def stderr(self) -> str:
        return self._text(1)

    def _text(self, number: int) -> str:
        file = self._said[number].fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode()

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """The exit code, negative if a signal ended it."""
        self.until(lambda: False, timeout)
        return self.returncode

    def until(self, event: Callable[[], bool], timeout: float = 300) -> None:
        """Return once it has happened or the process has ended; kill one that takes too long."""
        end = time.monotonic() + timeout
        while self.poll() is None and not event():
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(self.argv, timeout, self.stdout, self.stderr)
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)


def distil(*argv: object, code: int = 0, cwd: Path | None = None, timeout: float = 300) -> str:
    """Run the command line in a process of its own; its output, after the exit code was checked."""
    command = Command(*argv, cwd=cwd)
    said = command.wait(timeout), command.stdout, command.stderr
    assert said[0] == code, "exit {}\n{}\n{}".format(*said)
    assert "Traceback" not in said[2]
    return said[1] + said[2]


def same(one, two):
    """Bit for bit, at every depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


def at(model, step=0, rank=0, world=1, accumulate=1, micro=0):
    """The model as it is at this place of a run."""
    model._trainer = SimpleNamespace(
        global_step=step, global_rank=rank, world_size=world, accumulate_grad_batches=accumulate
    )
    model._micro = micro
    return model

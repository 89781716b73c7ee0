"""The base of every method: roles that take turns under Lightning's automatic optimisation.

A method is a subclass that names its roles and gives one loss for each. Every optimiser step trains
exactly one role: its parameters require gradients, those of other roles do not. One optimiser holds
one parameter group per role. Idle roles have no gradient, so the optimiser neither moves nor decays
them. Hence `global_step`, `max_steps`, accumulation, clipping, schedules, precision and strategies
are Lightning's own.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distillkit import capabilities, checks, optimizers, sharding
from distillkit.checkpointing import checkpoint_blocks
from distillkit.compiling import check_compiler, compile_networks
from distillkit.errors import Failure
from distillkit.methods.average import average_of, follow, keep_precise
from distillkit.methods.turns import Turns
from distillkit.methods.validation import Validated
from distillkit.modules import modules
from distillkit.networks.adapters import Adapters
from distillkit.students.base import Product

WEIGHTS = "[0, 1000]"  # the range of the weights of loss terms


@dataclass(frozen=True)
class Adam:
    """The settings of one role's optimiser, and of the role's turns.

    Args:
        lr: learning rate in (0, 10], which schedule and warm-up of the method scale.
        betas: Adam's two moment decays, in [0, 1).
        weight_decay: decoupled decay (AdamW), in [0, 1 / lr).
        clip: largest gradient norm of the role; None leaves gradients as they are.
        updates: steps of this role in one cycle through all roles, 1 to 1000.
        start: step of the run at which the role joins; before it the other roles cycle without it.

    Raises:
        ValueError: a value is out of range.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = None
    updates: int = 1
    start: int = 0

    def __post_init__(self):
        checks.positive(lr=self.lr)
        checks.within("(0, 10]", lr=self.lr)
        if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
            raise checks.Unfit("betas", self.betas, "be two decays")
        checks.within("[0, 1)", betas=self.betas)
        checks.within(
            f"[0, {1 / self.lr:g})",
            "in every step a weight loses lr x weight_decay of itself",
            weight_decay=self.weight_decay,
        )
        if self.clip is not None:
            checks.positive("null leaves gradients as they are", clip=self.clip)
        checks.whole(1, 1000, "in every cycle; 0 would never train the role", updates=self.updates)
        checks.whole(0, start=self.start)


class Distiller(Validated):
    """Base of every method.

    Args:
        ema_halflife: half-life of the student's exponential moving average (EMA), in training
            samples; 0 switches the EMA off.
        ema_rampup: the half-life never exceeds this share of the samples seen so far (EDM's rule).
        schedule: all learning rates over the run: `constant`, or `linear` or `cosine` to zero,
            which need to know where the run ends.
        warmup: steps of the run over which the learning rates rise from zero; they do not depend on
            when a role joins.
        max_bad_steps: stop after this many consecutive steps of one role with NaN or infinite
            gradients; each such step is skipped.
        checkpointing: keep the inputs of networks' blocks alone for the backward pass, which
            computes their activations again: less memory, more time, the same results.
        compile: compile the networks of roles and teacher (`torch.compile`) as they are first
            called; the last bits of results may be others.
        optimizer: `adamw`, or `adamw8bit`, whose moments take a quarter of the memory (package
            bitsandbytes) and which waits for the device once in every step, see
            `distillkit.optimizers`.

    Attributes:
        requires: the capabilities that the method always needs from teacher and data, see
            `distillkit.capabilities`.
        allows: what its makers may do.
        proof: the metrics that the method's default run on the exact teachers of the toy domain
            must reach; tested for every method. Empty where the run goes on from a finished student
            and has nothing to reach from a copy of the teacher, and where samples are sought that
            are likely, not a law.
        proof_steps: the solver steps in which a teacher as product must reach them; None means
            those of its best settings. Not used if the product is a student.
        enough: steps of the student after which it may have learnt something; the shortest default
            run of a method that follows gradients has 20 for each of its sampling steps.
        precise: whether it trains in full precision on a GPU too, unless the user names another:
            it takes differences of numbers that are nearly equal.
        renamed: names of arguments of earlier versions, each with the message for who still gives
            one.
        roles: names of the roles in order of their turns, each with the attributes (modules) that
            it trains.

    Raises:
        ValueError: a value is out of range.
    """

    requires: frozenset[str] = frozenset()
    allows: frozenset[str] = frozenset({"start"})
    proof: dict[str, dict[str, float]] = {
        "gaussian": {"std_error": 0.05, "correlation_error": 0.05},
        "mixture": {"std_error": 0.05, "correlation_error": 0.05, "weight_error": 0.2},
    }
    proof_steps: int | None = None
    enough: int = 10
    precise: bool = False
    renamed: dict[str, str] = {}
    roles: dict[str, tuple[str, ...]]

    def __init__(
        self,
        ema_halflife: float = 500_000,
        ema_rampup: float = 0.05,
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup: int = 0,
        max_bad_steps: int = 20,
        checkpointing: bool = False,
        compile: bool = False,
        optimizer: Literal["adamw", "adamw8bit"] = "adamw",
    ):
        super().__init__()
        checks.not_negative(ema_halflife=ema_halflife)
        checks.positive(ema_rampup=ema_rampup)
        checks.whole(0, warmup=warmup)
        checks.whole(1, max_bad_steps=max_bad_steps)
        if schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"schedule must be constant, linear or cosine, got {schedule!r}")
        if optimizer not in optimizers.NAMES:
            raise ValueError(f"optimizer must be {' or '.join(optimizers.NAMES)}, got {optimizer!r}")
        self.ema_halflife, self.ema_rampup = ema_halflife, ema_rampup
        self.schedule, self.warmup, self.max_bad_steps = schedule, warmup, max_bad_steps
        self.checkpointing, self.compiles, self.optimizer = checkpointing, compile, optimizer
        self.seed = torch.initial_seed() % 2**31
        self.roles, self.settings = {}, {}
        self._frozen: set[str] = set()  # parameters of the roles' modules that no role trains
        self.ema: nn.Module | None = None
        self.target: nn.Module | None = None
        self.register_buffer("bad_steps", torch.zeros(0, 2, dtype=torch.int64))  # per role: consecutive, total
        self._micro, self._micro_step = 0, -1
        self._focused: str | None = None
        self.__dict__["_empty"] = None  # the method without weights, where strategies spread them; no submodule
        self._listed: dict[str, list[nn.Parameter]] = {}  # the parameters of each role, in training
        self.noted: dict[str, Tensor | None] = {}  # by metric, in order of first appearance; None: not in this epoch

    # Roles and turns

    def add_role(self, name: str, settings: Adam, **modules: nn.Module) -> None:
        """Registers modules under their attribute names as one role.

        Roles take turns in order of addition. The role trains those parameters of the modules that
        require gradients now; the others stay frozen.
        """
        for attribute, module in modules.items():
            setattr(self, attribute, module)
            self._frozen |= {f"{attribute}.{key}" for key, p in module.named_parameters() if not p.requires_grad}
        self.roles[name], self.settings[name] = tuple(modules), settings
        self.turns = Turns(self.settings)
        self.bad_steps = self.bad_steps.new_zeros(len(self.roles), 2)

    def role_parameters(self, role: str) -> list[nn.Parameter]:
        """The parameters that `role` trains."""
        return [
            parameter
            for attribute in self.roles[role]
            for key, parameter in getattr(self, attribute).named_parameters()
            if f"{attribute}.{key}" not in self._frozen
        ]

    def turn(self, step: int) -> str:
        """The role that trains in optimiser step `step`, see `Turns`."""
        return self.turns.role(step)

    def updates_before(self, role: str, step: int) -> int:
        """The number of steps that `role` has made before `step`."""
        return self.turns.before(role, step)

    def shown(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of the data as the teacher is shown it, which may be more than the student is."""
        return batch

    @property
    def total(self) -> float:
        """The steps of the run; infinity where its end is not known."""
        return self._trainer.estimated_stepping_batches if self._trainer else math.inf

    @property
    def done(self) -> float:
        """The share of the run that has passed."""
        return self.global_step / self.total

    def focus(self, role: str | None) -> None:
        """Requires gradients for `role` only, or for all roles (None), as strategies set up."""
        for name in self.roles:
            for parameter in self._listed.get(name) or self.role_parameters(name):
                parameter.requires_grad_(role is None or name == role)
        self._focused = role

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss `<role>_loss(batch)` of the role whose turn it is."""
        step = self.global_step
        self._micro = self._micro + 1 if step == self._micro_step else 0
        self._micro_step = step
        role = self.turn(step)
        if role != self._focused:
            self.focus(role)
        loss = getattr(self, f"{role}_loss")(batch)
        self.note(f"{role}/loss", loss)
        return loss

    def note(self, name: str, value: Tensor) -> None:
        """Notes the latest value of a metric (a scalar) of training steps.

        Loggers and callbacks get what was noted with each row, callbacks also at an epoch's end.
        Lightning's own `log`, which also works, takes most of a millisecond in every step for what
        is read in every twentieth.
        """
        self.noted[name] = value.detach()

    def log_noted(self, logger: bool = True) -> None:
        """Logs the latest values of this epoch, all under the name of the hook that runs.

        Args:
            logger: whether loggers get them, or callbacks alone.
        """
        for name, value in self.noted.items():
            if value is not None:
                self.log(name, value, logger=logger)

    def on_train_start(self) -> None:
        if self.compiles:
            denoisers = [each for each in modules(self) if sharding.denoises(each) and each is not self.ema]
            compile_networks({each.network: None for each in denoisers})
        self._listed = {role: self.role_parameters(role) for role in self.roles}  # large networks take long to walk

    def on_train_epoch_start(self) -> None:
        self.noted = dict.fromkeys(self.noted)

    def on_train_epoch_end(self) -> None:
        self.log_noted(logger=False)  # for callbacks that monitor one; an epoch may be too short for a row

    # Randomness is a function of (seed, micro-batch index, purpose): none is stored to resume

    @property
    def micro_batch(self) -> int:
        """The index of this micro-batch over all steps, processes and accumulation rounds."""
        trainer = self._trainer
        world, accumulate = (trainer.world_size, trainer.accumulate_grad_batches) if trainer else (1, 1)
        rank = trainer.global_rank if trainer else 0
        step = trainer.global_step if trainer else 0
        return (step * accumulate + self._micro) * world + rank

    def generator(self, purpose: str, shared: bool = False) -> torch.Generator:
        """A generator for `purpose` in this micro-batch.

        With `shared` it is that of the whole step: one for all ranks and micro-batches.
        """
        number = self.global_step if shared else self.micro_batch
        digest = hashlib.blake2b(f"{self.seed} {number} {purpose} {shared}".encode(), digest_size=8).digest()
        return torch.Generator(self.device).manual_seed(int.from_bytes(digest, "little") >> 1)

    def randn(self, shape: tuple[int, ...], purpose: str) -> Tensor:
        """Unit Gaussian noise of this shape, float32."""
        return torch.randn(shape, generator=self.generator(purpose), device=self.device)

    def rand(self, num: int, purpose: str) -> Tensor:
        """Uniform numbers in [0, 1), float32 [num]."""
        return torch.rand(num, generator=self.generator(purpose), device=self.device)

    def randint(self, high: int, purpose: str) -> int:
        """One integer in [0, high), the same on every rank and in all steps of a cycle.

        It is drawn on the CPU, without a device sync.
        """
        if high == 1:
            return 0
        cycle = self.turns.cycle(self.global_step)
        digest = hashlib.blake2b(f"{self.seed} {cycle} {purpose}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") % high

    # Optimisation

    def optimizer_options(self) -> list[dict[str, Any]]:
        """The options of each group of the optimiser, also where a run goes on."""
        return [{"lr": s.lr, "betas": s.betas, "weight_decay": s.weight_decay} for s in self.settings.values()]

    def configure_optimizers(self) -> dict[str, Any]:
        groups = [
            {"params": self.role_parameters(role), **options}
            for role, options in zip(self.roles, self.optimizer_options(), strict=True)
        ]
        if self.schedule != "constant" and self.trainer.estimated_stepping_batches == math.inf:
            raise ValueError(
                f"schedule={self.schedule} needs to know the end of the run: give trainer.max_steps, or model.schedule=constant"
            )
        optimizer = optimizers.make(self.optimizer, groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        """The factor of all learning rates at `step`."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "constant":
            return rise
        done = min(step / self.trainer.estimated_stepping_batches, 1.0)
        return rise * (1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clips the role's own norm; the optimiser skips the step if the norm is not finite.

        Neither needs a host sync here, nor does AdamW with moments of 32 bits.
        """
        role = self.turn(self.global_step)
        number = list(self.roles).index(role)
        optimizer = getattr(optimizer, "optimizer", optimizer)
        parameters = [p for p in optimizer.param_groups[number]["params"] if p.grad is not None]
        if self._empty is not None:
            sharding.average_gradients(parameters)
        norm = sharding.whole(nn.utils.get_total_norm([p.grad.float() for p in parameters], foreach=True))
        clip = self.settings[role].clip if gradient_clip_val is None else gradient_clip_val
        if clip:
            nn.utils.clip_grads_with_norm_(parameters, clip, norm, foreach=True)
        bad = ~torch.isfinite(norm)
        optimizer.found_inf = bad.float()  # it then leaves parameters and moments as they are
        consecutive, total = (self.bad_steps[number] + bad).unbind()
        self.bad_steps[number] = torch.stack([consecutive * bad, total])
        self.note(f"{role}/grad_norm", norm)
        self.note(f"{role}/skipped", total.float())

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        if self.trainer.should_stop:  # which a callback may have said just before: this step has a row too
            self.log_noted()
        if self.global_step != self._micro_step and self.global_step % self.trainer.log_every_n_steps == 0:
            self.check_steps()  # not once more after each micro-batch of the next step

    def on_train_end(self) -> None:
        self._listed = {}
        self.check_steps(ended=True)

    def check_steps(self, ended: bool = False) -> None:
        """Stops the run if the last steps of a role were skipped; syncs with the device.

        The limit is `max_bad_steps`. A run that has `ended` may be shorter than that: its limit is
        a tenth of the role's steps, but at least two, or all of them if there are fewer.

        Raises:
            Failure: a role reached the limit.
        """
        for role, (last, total) in zip(self.roles, self.bad_steps.tolist(), strict=True):
            steps = self.updates_before(role, self.global_step)
            limit = min(self.max_bad_steps, max(2, steps // 10), steps) if ended else self.max_bad_steps
            if last >= limit > 0:
                rates = dict.fromkeys(f"model.{each}.lr" for each in (role, "student") if each in self.roles)
                raise Failure(
                    f"the last {last} of {steps} steps of {role} had NaN or infinite gradients and were skipped ({total} "
                    f"in all), so it learnt nothing in them: lower {' or '.join(rates)}, or look at the data"
                )

    def skipped(self) -> dict[str, dict[str, int]]:
        """The number of skipped steps and of all steps of each role, for the product's yaml."""
        return {
            role: {"skipped": total, "steps": self.updates_before(role, self.global_step)}
            for role, total in zip(self.roles, self.bad_steps[:, 1].tolist(), strict=True)
        }

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        role = self.turn(self.global_step)
        if role == "student" and self.ema is not None:
            self.update_ema()
        if self.target is not None and self._targeted in self.roles[role]:
            self.update_target(role)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # this step is not counted yet
            self.log_noted()

    # Networks spread over processes, see `distillkit.sharding`

    def configure_model(self) -> None:
        """Spreads the denoisers, and what trains beside them, if the strategy does so."""
        if self.device_mesh is None or self._empty is not None:
            return
        self.__dict__["_empty"] = sharding.bare(self)
        roles = [[getattr(self, name) for name in names] for names in self.roles.values()]
        spread = [module for modules in roles if any(map(sharding.denoises, modules)) for module in modules]
        averages = [module for module in (self.ema, self.target) if sharding.denoises(module)]
        for module in (*([self.teacher.denoiser] if self.spreads_teacher else []), *spread, *averages):
            sharding.shard(module, self.device_mesh)

    @property
    def spreads_teacher(self) -> bool:
        """Whether there is a teacher to spread: a network, on which no adapters stand.

        Their network is in memory once, and whole.
        """
        if "teacher" not in self._modules or not sharding.denoises(self.teacher.denoiser):
            return False
        own = set(self.teacher.denoiser.parameters())
        adapters = [each for each in self.modules() if isinstance(each, Adapters)]
        return not any(parameter in own for each in adapters for parameter in each.tree.parameters())

    def gathered(self) -> Distiller:
        """The method with whole networks on every process; all processes must ask for it."""
        if self._empty is None:
            return self
        whole = sharding.filled(self._empty, self)
        whole.trainer = self.trainer  # which knows the steps that were made
        return whole

    # Averages: the product's EMA and a target of the loss

    def keep_ema(self) -> None:
        """Starts `self.ema`, the float32 EMA of the student, unless `ema_halflife` is 0.

        Call it once, when the student is in place.
        """
        self.ema = average_of(self.student) if self.ema_halflife > 0 else None

    def keep_target(self, decay: float, of: str = "student") -> None:
        """Starts `self.target`, a second float32 EMA for use in the loss.

        Call it once, when the module is in place. After every step of the module's role that was
        not skipped `target <- decay target + (1 - decay) module` (as in consistency models, arXiv
        2303.01469). The target is in the checkpoints and independent of the exported EMA.

        Args:
            decay: in [0, 1); 0 is the module itself.
            of: the attribute name of the module.
        """
        checks.within("[0, 1)", decay=decay)
        self._decay, self._targeted, self.target = decay, of, average_of(getattr(self, of))

    def _apply(self, fn, recurse: bool = True):
        """Applies a cast or a move; the averages stay in float32 at any precision."""
        super()._apply(fn, recurse)
        for average in (self.ema, self.target):
            if average is not None:
                keep_precise(average)
        return self

    def update_ema(self) -> None:
        """Updates `ema <- beta ema + (1 - beta) student`.

        `beta = 0.5^(B / min(halflife, rampup seen))`: B is the batch of one step over all
        processes, `seen` the number of samples so far. A skipped step moves nothing and its samples
        do not count. There is no device sync.
        """
        trainer = self.trainer
        batch = trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        consecutive, total = self.bad_steps[list(self.roles).index("student")]
        seen = batch * (self.updates_before("student", self.global_step) + 1 - total)
        halflife = (self.ema_rampup * seen).clamp(1e-8, self.ema_halflife)
        follow(self.ema, self.student, -torch.expm1(-math.log(2) * batch / halflife) * (consecutive == 0))

    def update_target(self, role: str) -> None:
        """Updates the target after a step of `role`, which trains its module, unless skipped."""
        consecutive, _ = self.bad_steps[list(self.roles).index(role)]
        follow(self.target, getattr(self, self._targeted), (1 - self._decay) * (consecutive == 0).float())

    @property
    def best_student(self) -> nn.Module:
        """The module that is evaluated and exported: the EMA if there is one, else the student."""
        return self.student if self.ema is None else self.ema

    # Checkpoints hold the teacher's hash, not its weights

    def state_dict(self, *args, **kwargs) -> dict[str, Any]:
        state = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "") + "teacher."
        return {key: value for key, value in state.items() if not key.startswith(prefix)}

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        if getattr(state_dict.get("bad_steps"), "ndim", 2) == 1:  # older checkpoints: one for all roles
            state_dict = {**state_dict, "bad_steps": torch.zeros_like(self.bad_steps)}
        try:
            result = super().load_state_dict(state_dict, strict=False, assign=assign)
        except RuntimeError as error:  # shapes
            raise ValueError(
                f"the checkpoint does not fit this method and network: {str(error).splitlines()[-1].strip()}"
            ) from error
        missing = [key for key in result.missing_keys if not key.startswith("teacher.")]
        if strict and (missing or result.unexpected_keys):
            raise ValueError(
                f"the checkpoint does not fit this method and network: missing {missing[:3]}, unexpected "
                f"{result.unexpected_keys[:3]}; resume with the configuration it was written with"
            )
        return result

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["distillkit"] = {
            "method": type(self).__name__,
            "teacher": self.teacher_hash(),
            "seed": self.seed,
            "optimizer": self.optimizer,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        facts = checkpoint.get("distillkit")
        if facts is None:
            raise ValueError("the checkpoint was not written by distillkit: give one from a run's checkpoints folder")
        if facts["method"] != type(self).__name__:
            raise ValueError(f"the checkpoint belongs to method {facts['method']}, this run is {type(self).__name__}")
        if facts["teacher"] != self.teacher_hash():
            raise ValueError(
                "the checkpoint was made with another teacher: resume with the configuration it was written with"
            )
        trainer = self._trainer
        fits = trainer is not None and trainer.state.fn == "fit"
        made = facts.get("optimizer", "adamw")  # the only one of older checkpoints
        if fits and made != self.optimizer:
            raise ValueError(
                f"the checkpoint was made with model.optimizer={made}, and its moments are not those of {self.optimizer}: "
                f"say model.optimizer={made}"
            )
        if fits and facts["seed"] != self.seed:
            warnings.warn(
                f"the run goes on with the checkpoint's seed {facts['seed']}: seed_everything={self.seed} changes nothing",
                stacklevel=2,
            )
        if fits and -1 < trainer.max_steps < checkpoint["global_step"]:
            raise ValueError(
                f"the checkpoint is of step {checkpoint['global_step']}, and trainer.max_steps={trainer.max_steps} "
                f"ends before it: raise that, or leave the checkpoint out"
            )
        self.seed = facts["seed"]
        if fits:
            self._take_options(checkpoint)

    def _take_options(self, checkpoint: dict[str, Any]) -> None:
        """Puts this run's options of the optimiser in the place of the checkpoint's.

        Raises:
            ValueError: the checkpoint has other groups, or damaged ones.
        """
        options = self.optimizer_options()
        try:
            for group, own in zip(checkpoint["optimizer_states"][0]["param_groups"], options, strict=True):
                rate = group["lr"] * (own["lr"] / group["initial_lr"])  # the schedule stays where it is
                group |= {**own, "initial_lr": own["lr"], "lr": rate}
            checkpoint["lr_schedulers"][0]["base_lrs"] = [own["lr"] for own in options]
        except (ArithmeticError, LookupError, TypeError, ValueError):
            raise ValueError(
                "the checkpoint's optimiser is damaged or not that of this method: give another checkpoint of the run"
            ) from None

    def teacher_hash(self) -> str | None:
        """The hash of the teacher before half precision rounds it; None without a teacher."""
        if "teacher" not in self._modules:
            return None
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = self.teacher.fingerprint()
        return self._fingerprint

    # The product

    def conclude(self) -> bool:
        """Makes the decisions that follow training, before the export; true if there were any.

        Their results must be functions of the checkpoint and be kept in it: a run that dies here
        decides again.
        """
        return False

    @abstractmethod
    def product(self) -> Product:
        """The product so far, a student or a teacher; it may share the trained modules' weights."""

    def untrained(self) -> Product | None:
        """The product as the run began; None where that was the teacher at as many steps."""
        return None

    def facts(self) -> dict[str, Any]:
        """Entries for the product's yaml on how it was made."""
        return {"method": type(self).__name__, "roles": [*self.roles], "skipped": self.skipped()}

    def export(self, folder: str | Path, **facts: Any) -> Path:
        """Writes the product's folder, with further `facts` in its yaml, and returns its path."""
        return self.product().save(folder, **{**self.facts(), **facts})

    def setup(self, stage: str) -> None:
        checks.trainer(self.trainer)
        self.turn(0)  # refuses roles that all start late
        for role, settings in self.settings.items() if stage == "fit" else ():
            if -1 < self.trainer.max_steps <= settings.start > 0:
                warnings.warn(
                    f"{role} is not trained in this run: model.{role}.start={settings.start} is not before "
                    f"trainer.max_steps={self.trainer.max_steps}",
                    stacklevel=2,
                )
        self.require(self.trainer.datamodule)
        self.check(self.trainer.datamodule)
        self.check_classes(self.trainer.datamodule)
        self.teacher_hash()  # now: a run in half precision rounds the teacher
        if stage == "fit" and self.compiles and self.trainer.strategy is not None:  # a plan has none
            check_compiler(self.trainer.strategy)
        if stage == "fit":
            optimizers.check(self.optimizer)
        if stage == "fit" and self.checkpointing and not checkpoint_blocks(self):
            raise ValueError(
                "model.checkpointing=true has nothing to do: no network of this run is made of blocks; leave it out"
            )

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The capabilities that the method needs with these `arguments` of its constructor."""
        return cls.requires

    def require(self, data) -> None:
        """Raises ValueError if teacher and data do not provide `requires`; needs nothing loaded."""
        parts = (getattr(self, "teacher", None), getattr(self, "student_maker", None), data)
        givers = [part for part in parts if hasattr(part, "provides")]
        given = frozenset().union(*(giver.provides for giver in givers))
        if any(getattr(giver, "guidable", False) for giver in givers):
            given |= {"classes"}
        if any(getattr(getattr(giver, "codec", None), "tunable", False) for giver in givers):
            given |= {"decoder"}
        if getattr(data, "easier", ()):
            given |= {"tower"}
        if missing := self.requires - given:
            names = [type(giver).__name__ for giver in givers]
            raise ValueError(f"{capabilities.refusal(type(self), missing, names)}; {capabilities.WHERE}")

    def check_classes(self, data) -> None:
        """Raises ValueError if the data have another number of classes; warns of unused classes."""
        teacher = getattr(self, "teacher", None)
        for name, num in getattr(self if teacher is None else teacher, "classes", {}).items():
            if (there := data.classes.get(name, 0)) != num:
                who, mend = (
                    "the teacher knows",
                    "choose a teacher trained on these data (fit method=pretrain makes one)",
                )
                if 0 < there < num and hasattr(data, "num_classes"):
                    mend += f", or say data.num_classes={num} if these are some of its classes"
                if teacher is None:
                    who, mend = (
                        "this run counts on",
                        f"say vars.classes.{name}={there}" if there else f"say ~vars.classes.{name}",
                    )
                raise ValueError(f"{who} {num} classes of {name!r}, the data have {there or 'none'}: {mend}")
        for name, there in data.classes.items() if teacher is None else ():
            if name not in getattr(self, "classes", {name}):
                warnings.warn(
                    f"the data have {there} classes of {name!r}, which this run does not use: say vars.classes.{name}={there} to "
                    f"train with them",
                    stacklevel=2,
                )

    def check(self, data) -> None:
        """Raises a one-sentence ValueError if the data do not fit; called with the data set up."""

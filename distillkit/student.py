"""The student folder: what a distillation leaves, and the one line that loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import distillkit
from distillkit.diffusion.denoiser import Cond, Denoiser, check_facts, number, numbers
from distillkit.diffusion.process import set_shape
from distillkit.diffusion.sampling import few_step
from distillkit.files import load_weights, read_yaml, save_weights, write_yaml
from distillkit.progress import calls
from distillkit.spec import from_spec, named, to_spec

WEIGHTS, CONFIG = "model.safetensors", "student.yaml"


class Student(nn.Module):
    """A few-step sampler: a denoiser and the times at which it is called.

    Args:
        denoiser: `(x_t, t, cond) -> x_0`.
        times: the times of the steps, largest first.
        event_shape: shape of one sample; of a padded set, with its largest size.
        classes: categorical conditions, `{name: number of classes}`.
        context: names of further conditions that every sample needs, see `Teacher`.
        renoise: between steps, fresh noise (true) or the noise the student implies (false).
        config: what its folder says about it.
        noise_scale: of all noise that it draws, see `few_step`; 1 is what it was trained with.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        times: list[float],
        event_shape: tuple[int, ...],
        classes: dict[str, int] | None = None,
        renoise: bool = True,
        config: dict[str, Any] | None = None,
        context: Sequence[str] = (),
        noise_scale: float = 1.0,
    ):
        super().__init__()
        self.denoiser, self.event_shape = denoiser, tuple(event_shape)
        self.classes, self.context = dict(classes or {}), tuple(context)
        self.times, self.renoise, self.config = list(times), renoise, config or {}
        self.noise_scale = noise_scale

    @property
    def num_steps(self) -> int:
        """Network calls per sample."""
        return len(self.times)

    def default_condition(self, num: int) -> Cond:
        """Classes in turn: 0, 1, 2 ... for every categorical condition."""
        return {name: torch.arange(num) % count for name, count in self.classes.items()}

    @torch.no_grad()
    def forward(self, noise: Tensor, cond: Cond | None = None, draw=None) -> Tensor:
        """From unit noise [B, *event_shape] to samples; `draw(i)` gives the noise of later steps."""
        times = torch.tensor(self.times, dtype=torch.float64, device=noise.device)
        x_0, _ = few_step(
            lambda x, t: self.denoiser(x, t, cond or {}),
            self.denoiser.process,
            times,
            lambda i: noise if i == 0 else draw(i),
            self.renoise,
            noise_scale=self.noise_scale,
        )
        return x_0

    def sample(self, n: int = 64, cond: Cond | None = None, seed: int = 0, batch_size: int = 1000) -> Tensor:
        """`n` samples, [n, *event_shape]. The same (n, cond, seed) gives the same samples on every run.

        Args:
            n: how many.
            cond: conditions, `{name: int tensor [n]}` and context tensors [n, ...]; default: all classes in turn.
            seed: of the noise.
            batch_size: samples per network call; changes memory, not the result.

        Raises:
            ValueError: a condition is missing or unknown, has another length than n or a class that does not exist.
        """
        cond = self.checked_condition(n, cond)
        device = next(self.denoiser.parameters()).device
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
        draws = [
            torch.randn(set_shape(n, self.event_shape, cond.get("mask")), generator=generator)
            for _ in range(self.num_steps if self.renoise else 1)
        ]
        out = []
        with calls("sampling", self.denoiser, n * self.num_steps):
            for rows in torch.arange(n).split(batch_size):
                part = {k: v[rows.to(v.device)].to(device) for k, v in cond.items()}
                out.append(self(draws[0][rows].to(device), part, lambda i, rows=rows: draws[i][rows].to(device)))
        return torch.cat(out) if out else torch.empty(0, *self.event_shape)

    def checked_condition(self, n: int, cond: Cond | None) -> Cond:
        """What `n` samples are made for, or the ValueError of `sample`."""
        cond = self.default_condition(n) if cond is None else {k: torch.as_tensor(v) for k, v in cond.items()}
        known = {*self.classes, *self.context}
        if unknown := sorted(cond.keys() - known):
            raise ValueError(f"this student has no condition {unknown[0]!r}; it has {sorted(known) or 'none'}")
        for name in self.context:
            if name not in cond or len(cond[name]) != n:
                raise ValueError(
                    f"this student needs cond[{name!r}], a tensor with {n} rows (what each sample is made for)"
                )
        for name, count in self.classes.items():
            value = cond.get(name, torch.tensor(-1))
            whole = not value.is_floating_point() and not value.is_complex()
            if not whole or value.shape != (n,) or bool((value < 0).any()) or bool((value > count).any()):
                raise ValueError(
                    f"cond[{name!r}] must hold {n} integers from 0 to {count - 1} ({count} means no class)"
                )
        return cond

    def facts(self) -> dict[str, Any]:
        """What student.yaml says about it besides the facts it is given."""
        return {
            "num_steps": self.num_steps,
            "times": self.times,
            "renoise": self.renoise,
            "noise_scale": self.noise_scale,
            "event_shape": list(self.event_shape),
            "classes": self.classes,
            "context": list(self.context),
            "denoiser": to_spec(self.denoiser),
        }

    @property
    def weights(self) -> nn.Module:
        """What model.safetensors holds."""
        return self.denoiser

    def save(self, folder: str | Path, **facts: Any) -> Path:
        """Write the student folder; `facts` (domain, method, teacher ...) join student.yaml."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.weights)
        self.config = {"distillkit": distillkit.__version__, **facts, **self.facts()}
        write_yaml(folder / CONFIG, self.config)
        return folder


MOST_STEPS = 1000  # network calls of a student


def load_student(path: str | Path, trust: tuple[str, ...] = (), teacher: Any = None) -> Student:
    """A student from its folder, in eval mode. Reads no pickle, and builds no teacher unless the student is a sampler of it.

    The folder may come from a stranger: it chooses neither what code runs nor what is read outside of it.

    Args:
        path: a student folder, or the run folder around it.
        trust: what the folder may do besides: packages whose network classes it may name, and paths (with a `/`) that it may
            read outside of itself, where a sampler's teacher or the pipeline of adapters lies.
        teacher: of a sampler, if it is no longer where the folder says.

    Raises:
        ValueError: the folder is missing, damaged, or names a class from an untrusted package or a path outside; a sampler's
            teacher is missing or another one than it was made for.
    """
    folder = home = Path(path)
    if (folder / "student" / CONFIG).is_file():
        folder = folder / "student"
    if not folder.is_dir():
        raise ValueError(f"there is no student folder {path}: give the folder that `fit` wrote")
    file = folder / CONFIG
    config = read_yaml(file)
    if "sampler" in config:
        from distillkit.sampler_student import load_sampler

        return load_sampler(folder, home, config, trust, teacher)
    missing = [key for key in ("denoiser", "times", "event_shape", "renoise") if key not in config]
    if missing:
        raise ValueError(f"{file} is damaged: it lacks {', '.join(missing)}")
    with named(file):
        denoiser = from_spec(config["denoiser"], trust, home, folder / WEIGHTS)
    check_facts(config, file, denoiser)
    times, classes, scale = config["times"], config.get("classes") or {}, config.get("noise_scale", 1.0)
    falling = numbers(times) and all(a > b for a, b in zip(times, times[1:], strict=False))
    sound = {
        "times": falling and len(times) <= MOST_STEPS,
        "renoise": isinstance(config["renoise"], bool),
        "noise_scale": number(scale),
        **check_origin(config),
    }
    for key, fine in sound.items():
        if not fine:
            raise ValueError(f"{file} is damaged: {key} cannot be {repr(config.get(key))[:80]}")
    load_weights(denoiser, folder / WEIGHTS)
    student = Student(
        denoiser, times, config["event_shape"], classes, config["renoise"], config, config.get("context") or (), scale
    )
    return student.requires_grad_(False).eval()


def check_origin(config: dict[str, Any]) -> dict[str, bool]:
    """Whether what a student.yaml says about how it was made is of the right kind, by key."""
    mappings = {key: isinstance(config.get(key) or {}, dict) for key in ("teacher", "run")}
    return {"kappa": number(config.get("kappa", 1.0)), **mappings}

"""Proteina's sampler, and a teacher from a folder of `domains.protein.convert`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distillkit import checks
from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.guidance import guided
from distillkit.diffusion.process import Process
from distillkit.diffusion.sampling import SOLVERS
from distillkit.files import read_yaml
from distillkit.networks.dtypes import Dtype
from distillkit.teachers.folder import CONFIG, FolderTeacher
from domains.protein.proteina.features import FOLDS
from domains.protein.proteina.network import ProteinaTransformer

CATH = "cath.json"


def sde(
    denoise: Callable[[Tensor, Tensor], Tensor],
    process: Process,
    x: Tensor,
    times: Tensor,
    noise: Callable[[int], Tensor],
    noise_scale: float = 0.45,
    until: float = 0.01,
) -> Tensor:
    """Proteina's own sampler: Euler-Maruyama steps of an SDE with the flow's marginals.

    `dx = (v + g score) dtau + sqrt(2 g gamma) dW` with v = x_0 - eps and g = 1 / (tau + 0.01);
    after tau = 1 - `until` the ODE `dx = v dtau`. gamma, `noise_scale`, is 1 for the true SDE and
    turns the noise down below that. It multiplies the variance; the student's noise scale
    multiplies the standard deviation.
    """
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        x_0, tau, step = denoise(x, t), float(1 - t), float(t - s)
        v = (x_0 - x) / float(t)
        if tau > 1 - until:
            x = x + step * v
            continue
        g = 1 / (tau + 0.01)
        score = (tau * v - x) / float(t)
        x = x + step * (v + g * score) + (2 * g * noise_scale * step) ** 0.5 * noise(i + 1)
    return denoise(x, times[-1])


class Proteina(FolderTeacher):
    """A folder that `python -m domains.protein.convert` has made of a checkpoint of Proteina.

    Its best sampler is its own, `sde` with 400 steps on a grid that is logarithmic near the data.
    This feeds every step the prediction of the one before, if the checkpoint was trained for that
    (self-conditioning). Methods never do: they call the denoiser without it.

    Args:
        path: the folder.
        event_shape: (N, 3), N residues of the longest chain in the data; None takes the folder's.
        folds: conditioned on `cath_c`, `cath_a`, `cath_t` [B] in a batch; otherwise on no fold
            class.
        noise_scale: gamma of its sampler; recommended are 0.45 (200M), 0.6 (400M) and 0.35 (chains
            of 300 residues and more).
        self_conditioning: of its sampler; None means if the checkpoint was trained for it.
        dtype: see `BaseTeacher`.
    """

    solvers = {**SOLVERS, "sde": sde}
    apart = FolderTeacher.apart | {"folder"}

    def __init__(
        self,
        path: str,
        event_shape: Sequence[int] | None = None,
        folds: bool = False,
        noise_scale: float = 0.45,
        self_conditioning: bool | None = None,
        dtype: Dtype = "float32",
    ):
        super().__init__(path, dtype=dtype)
        if not isinstance(self.denoiser.network, ProteinaTransformer):
            raise ValueError(f"{path} holds no Proteina: convert a checkpoint, or take teacher=folder")
        checks.not_negative(noise_scale=noise_scale)
        if folds and not self.classes:
            raise ValueError(f"the Proteina in {path} knows no fold classes: leave folds off")
        self.folder = Path(path)
        self.event_shape = tuple(event_shape or self.event_shape)
        self.classes = self.classes if folds else {}
        trained = bool(read_yaml(self.folder / CONFIG).get("self_conditioning"))
        self.self_conditioning = trained if self_conditioning is None else self_conditioning
        self.best = {**self.best, "noise_scale": noise_scale, "self_conditioning": self.self_conditioning}
        self.solvers = {**self.solvers, "sde": partial(sde, noise_scale=noise_scale)}

    @classmethod
    def offers(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """As of any folder teacher; the fold classes only if it is conditioned on them."""
        return super().offers(arguments) if arguments.get("folds") else cls.provides

    def grid(self, steps: int) -> Tensor:
        """The times `t = (10^(-2 i / steps) - 0.01) / 0.99`, from 1 down.

        They are the released schedule `log` with p = 2.
        """
        return (10 ** (-2 * torch.arange(steps, dtype=torch.float64) / steps) - 0.01) / 0.99

    def stepper(self, cond: Cond, kappa: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """A step with self-conditioning.

        The first step is given zeros, each later one the prediction of the step before.
        """
        if not self.self_conditioning:
            return super().stepper(cond, kappa)
        last: dict[str, Tensor] = {}

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            known = cond | last
            x_0 = guided(self.denoiser, x, t, known, self.null_condition(known), self.guidance(t, kappa))
            last["x_sc"] = x_0.detach()
            return x_0

        return denoise

    def fold(self, codes: Sequence[str]) -> dict[str, Tensor]:
        """The conditions of CATH codes: `3.40.50`, `3.40`, `3` or `x` (none).

        A homology, `3.40.50.720`, is not used.

        Raises:
            ValueError: the folder has no table of codes, or a code is not in it.
        """
        file = self.folder / CATH
        if not file.is_file():
            raise ValueError(
                f"{file} does not exist: convert with --cath cath_label_mapping.pt to name folds by their code"
            )
        tables, found = json.loads(file.read_text(encoding="utf-8")), {name: [] for name in FOLDS}
        for code in codes:
            parts = list(takewhile(lambda part: part != "x", code.split(".")[:3]))
            for level, (name, table) in enumerate(zip(FOLDS, tables, strict=True), start=1):
                known = ".".join(parts[:level])
                if len(parts) >= level and known not in table:
                    raise ValueError(f"fold {code!r}: Proteina knows no {known!r}")
                found[name].append(table[known] if len(parts) >= level else len(table))
        return {name: torch.tensor(numbers) for name, numbers in found.items()}

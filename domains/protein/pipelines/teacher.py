"""Protein pipelines of the package diffusers as teachers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Cond
from distillkit.diffusion.sampling import SOLVERS
from distillkit.networks.dtypes import Dtype
from distillkit.pipelines.files import load
from distillkit.pipelines.teacher import PipelineTeacher
from domains.protein.pipelines.codec import Atoms
from domains.protein.pipelines.design import latent_mask, read_designs
from domains.protein.pipelines.network import NETWORKS, PipelineBase, recycle_depths, settings_of
from domains.protein.pipelines.sampler import Schedule, tsr


class ProteinPipeline(PipelineTeacher):
    """RFD4-Proteina, see `distillkit.pipelines.teacher.PipelineTeacher`.

    It has no guidance and no self-conditioning. Its best sampler is the pipeline's own, `tsr`, with
    a schedule and a number of passes for each step.

    Args:
        prompts: file or folder of prepared designs, see `read_designs`; the one that the data read.
        lead: how much earlier than the latents the positions settle, see
            `domains.protein.pipelines.network`; 1 is the same time for both. It is the factor on
            the ratio of noise to signal, and the latents weigh `1 / lead^2` in losses.
        passes: of the trunk in a call of the denoiser; None is the mean of the pipeline's steps.
        path, steps, dtype, download: as in `PipelineTeacher`.
    """

    domain = "protein"
    families = {name: kind for kind in NETWORKS.values() for name in kind.pipelines}
    base_kind = PipelineBase
    solvers = {**SOLVERS, "tsr": tsr}

    def __init__(
        self,
        path: str,
        prompts: str | None = None,
        lead: float = 1.0,
        passes: int | None = None,
        steps: int | None = None,
        dtype: Dtype = "float32",
        download: bool = False,
    ):
        if prompts is None:
            raise ValueError("this teacher is asked for prepared designs: say data=designs data.path=FILE")
        designs = read_designs(prompts)
        size, asked = {"tokens": designs["mask"].shape[1]}, {"lead": lead, "passes": passes}
        super().__init__(path, None, size, None, steps, dtype, download, asked)
        self.context = tuple(designs)
        self.codec = Atoms(str(self.root), lead=float(lead))
        self.depths = recycle_depths(self.root)
        self.best = {"solver": "tsr", "steps": steps or len(self.depths)}
        kinds = type(self.denoiser.network).schedulers
        other = load(self.root, "local_latents_scheduler", kinds)
        self.clocks = [settings_of(self.scheduler), settings_of(other)]  # plain: samples depend on them

    def solve(
        self,
        noise: Tensor,
        cond: Cond,
        solver: Callable,
        times: Tensor,
        kappa: float | Tensor = 1.0,
        draw: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        if solver is not tsr:
            return super().solve(noise, cond, solver, times, kappa, draw)
        network, steps, num = self.denoiser.network, len(times), len(noise)
        schedules = [Schedule.of(clock, steps) for clock in self.clocks]

        def velocities(i: int, *state: Tensor) -> tuple[Tensor, Tensor]:
            clocks = (schedule.tau[i].to(noise).expand(num) for schedule in schedules)
            depth = self.depths[i * len(self.depths) // steps]
            return network.velocities(network.models[0], *state, *clocks, cond, depth)

        own = partial(
            tsr,
            apart=lambda x, t: network.apart(x, t.to(x).expand(num), cond)[:2],
            velocities=velocities,
            together=network.together,
            schedules=schedules,
            alive=torch.stack([cond["mask"]] * 3 + [latent_mask(cond)] * (noise.shape[-1] - 3), -1),
        )
        return super().solve(noise, cond, own, times, kappa, draw)

"""A student whose scenes are the embedded solids themselves, as grids of voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from distillkit.diffusion.denoiser import Denoiser
from distillkit.diffusion.process import VarianceExploding
from distillkit.rendering.voxels import centres
from distillkit.students.few_step import FewStepStudent
from domains.text_to_3d.scenes import Painter, Scenes
from domains.text_to_3d.solids import COLOURS, INK, PROMPTS, STRIPE, albedo, distance

SIDE = 32  # voxels
STEEP = 6.0  # of a scene's first channel, for each voxel from the surface inwards


def grid(prompt: int, faces: int = 1) -> Tensor:
    """The grid [4, R, R, R] of a solid; with two faces the stripe of the front is behind too."""
    points = centres(SIDE)
    inwards = -distance(prompt // len(COLOURS), points) * SIDE / 2
    colour = albedo(prompt, points)
    if faces == 2:
        colour = torch.where((points[..., 1:2].abs() < STRIPE), colour.new_tensor(INK), colour)
    return torch.cat([STEEP * inwards.clamp(-2, 2)[None], torch.logit(colour.clamp(0.02, 0.98)).movedim(-1, 0)])


def painter(prompts: list[int], particles: int = 1, faces: int = 1) -> Scenes:
    """The network of these prompts' scenes; all particles of a prompt are alike."""
    made = Scenes(only=[PROMPTS[i] for i in prompts], resolution=SIDE, particles=particles)
    with torch.no_grad():
        made.field.grid.copy_(torch.stack([grid(i, faces) for i in prompts for _ in range(particles)]))
    return made.eval()


def student(network: Painter) -> FewStepStudent:
    denoiser = Denoiser(network, VarianceExploding(), "x0")
    return FewStepStudent(denoiser, [80.0], (3, 32, 32), {"prompt": len(PROMPTS)}, context=("camera",)).eval()

"""Scenes as Gaussians, seen as ellipses that cover each other (3DGS, arXiv 2308.04079).

A Gaussian of mean mu and covariance Sigma = R S S^T R^T appears around the projection of mu with
the covariance J W Sigma W^T J^T in pixels, where W turns the world into the camera and J is the
derivative of the projection at mu (EWA splatting, equation 5 of the paper). A blur is added, so
that none is thinner than a pixel. Every pixel blends all of them, nearest first; this is dense, so
it suits some hundreds.

B: views; N: Gaussians; H, W: pixels.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from distillkit import checks
from distillkit.errors import UsageError, optional
from distillkit.rendering.cameras import intrinsics, pose, project, to_opencv
from distillkit.rendering.volume import NEAREST, Rendered, behind, in_front
from distillkit.spec import Recorded

Backend = Literal["torch", "gsplat"]
MOST = 512  # Gaussians of a scene: beyond them the dense way takes seconds
BLUR = 0.3  # added to variances on the screen, pixels squared
DENSEST = 0.999  # opacity of a Gaussian at a pixel, at most
MARGIN = 1.3  # how far beside the picture the derivative of the projection is taken, in half pictures


class Gaussians(NamedTuple):
    """Gaussians of B scenes, or of one without the first axis.

    Attributes:
        means: [B, N, 3].
        quaternions: of their rotations, w x y z, of any length but 0, [B, N, 4].
        scales: standard deviations along their axes, [B, N, 3].
        opacities: in [0, 1], [B, N].
        colours: in [0, 1], [B, N, 3].
    """

    means: Tensor
    quaternions: Tensor
    scales: Tensor
    opacities: Tensor
    colours: Tensor


def rotations(quaternions: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions w x y z of any length but 0, [..., 4]."""
    w, x, y, z = (quaternions / quaternions.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def on_screen(gaussians: Gaussians, camera: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ellipses of Gaussians in the pictures of cameras [B, 13].

    Returns:
        Centres in pixels [B, N, 2], covariances in pixels squared [B, N, 2, 2], blur included, and
        depths [B, N].
    """
    pixels, depth = project(camera, gaussians.means, height, width)
    focal = (height / 2 / camera[:, 12])[:, None, None]
    half = pixels.new_tensor([width / 2, height / 2])
    most = MARGIN * half / focal
    slope = torch.clamp((pixels - half) / focal, -most, most)[..., None]
    ahead = torch.eye(2, dtype=slope.dtype, device=slope.device).expand(*slope.shape[:-2], 2, 2)
    derivative = torch.cat([ahead, -slope], -1) * (focal / depth.clamp_min(NEAREST)[..., None])[..., None]
    to_camera = to_opencv(pose(camera))[:, None, :3, :3].mT
    axes = derivative @ to_camera @ (rotations(gaussians.quaternions) * gaussians.scales[..., None, :])
    return pixels, axes @ axes.mT + BLUR * ahead.detach(), depth


def render_gaussians(
    gaussians: Gaussians,
    camera: Tensor,
    height: int,
    width: int,
    background: Tensor | float = 1.0,
    backend: Backend = "torch",
) -> Rendered:
    """Render one view of each of B scenes.

    Args:
        gaussians: of B scenes.
        camera: [B, 13], see `cameras`.
        height, width: of the picture in pixels.
        background: its colour in [0, 1], a number or [B, 3].
        backend: this file, or the package gsplat, which needs CUDA and takes far more Gaussians.

    Raises:
        UsageError: gsplat does not import, or the cameras are not on CUDA.
    """
    if backend == "gsplat" and not camera.is_cuda:
        raise UsageError(
            f"backend=gsplat draws on CUDA alone, and the cameras are on {camera.device.type}: leave it out"
        )
    drawn = blend_by_gsplat if backend == "gsplat" else blend
    with torch.autocast(camera.device.type, enabled=False):  # 8 bits are too few for places
        light, left, depth = drawn(Gaussians(*(part.to(camera) for part in gaussians)), camera, height, width)
        return in_front(light, left, depth, behind(camera), background)


def blend(gaussians: Gaussians, camera: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted colours [B, 3, H, W], the light that is left and weighted depths [B, 1, H, W]."""
    centre, covariance, depth = on_screen(gaussians, camera, height, width)
    opacity = torch.where(depth > NEAREST, gaussians.opacities, 0.0)
    order = depth.argsort(1)[..., None]
    rows = torch.cat([centre, covariance.flatten(2), opacity[..., None], depth[..., None], gaussians.colours], -1)
    rows = rows.gather(1, order.expand_as(rows))
    x, y, xx, xy, _, yy, opacity = rows[..., :7, None].unbind(2)  # each [B, N, 1]
    dx = torch.arange(width, device=x.device, dtype=x.dtype) + 0.5 - x  # [B, N, W]
    dy = torch.arange(height, device=x.device, dtype=x.dtype) + 0.5 - y
    det = xx * yy - xy * xy
    mixed = (xy / det * dx)[..., None, :] * dy[..., None]
    power = mixed - (yy / det * dx * dx / 2)[..., None, :] - (xx / det * dy * dy / 2)[..., None]
    alpha = (opacity[..., None] * power.exp()).clamp_max(DENSEST)
    passed = torch.log1p(-alpha).cumsum(1).exp()
    weight = alpha * torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], 1)
    light = torch.einsum("bnhw,bnc->bchw", weight, rows[..., 7:])
    return light[:, 1:], passed[:, -1:], light[:, :1]


def blend_by_gsplat(gaussians: Gaussians, camera: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `blend`, by the package gsplat (1.5 or later)."""
    gsplat = optional("gsplat", "gsplat", "Gaussians on CUDA are drawn with")
    light, opacity, _ = gsplat.rasterization(
        *gaussians,
        viewmats=torch.linalg.inv(to_opencv(pose(camera)))[:, None],
        Ks=intrinsics(camera, height, width)[:, None],
        width=width,
        height=height,
        near_plane=NEAREST,
        eps2d=BLUR,
        packed=False,
        render_mode="RGB+D",
    )
    light, opacity = light[:, 0].movedim(-1, 1), opacity[:, 0].movedim(-1, 1)
    return light[:, :3], 1 - opacity, light[:, 3:]


class GaussianField(Recorded, nn.Module):
    """Scenes of Gaussians, which start as balls of small greyish ones.

    Args:
        num: number of scenes.
        count: N, of each; at most 512 without gsplat.
        radius: of the balls that the first means are spread over.
        scale: the first standard deviation, along each axis.
        std: of the first colours before the sigmoid.
        seed: of the first means and colours.
        backend: as in `render_gaussians`.
    """

    def __init__(
        self,
        num: int = 1,
        count: int = 256,
        radius: float = 0.5,
        scale: float = 0.08,
        std: float = 0.1,
        seed: int = 0,
        backend: Backend = "torch",
    ):
        super().__init__()
        if backend not in get_args(Backend):
            raise ValueError(f"Gaussians are drawn by {' or '.join(get_args(Backend))}, got backend={backend!r}")
        checks.whole(1, 2**20, num=num)
        most, why = (MOST, 'backend="gsplat" takes more') if backend == "torch" else (2**22, "")
        checks.whole(1, most, why, count=count)
        checks.positive(radius=radius, scale=scale)
        checks.not_negative(std=std)
        self.backend = backend
        generator = torch.Generator().manual_seed(seed)
        towards = torch.randn(num, count, 3, generator=generator)
        reach = radius * torch.rand(num, count, 1, generator=generator) ** (1 / 3)
        self.means = nn.Parameter(reach * towards / towards.norm(dim=-1, keepdim=True))
        self.quaternions = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(num, count, 1))
        self.log_scales = nn.Parameter(torch.full((num, count, 3), math.log(scale)))
        self.opacity_logits = nn.Parameter(torch.zeros(num, count))
        self.colour_logits = nn.Parameter(std * torch.randn(num, count, 3, generator=generator))

    def gaussians(self, scene: Tensor) -> Gaussians:
        """The Gaussians of scenes (int64 [B])."""
        return Gaussians(
            self.means[scene],
            self.quaternions[scene],
            self.log_scales[scene].exp(),
            self.opacity_logits[scene].sigmoid(),
            self.colour_logits[scene].sigmoid(),
        )

    def render(
        self,
        camera: Tensor,
        scene: Tensor,
        height: int,
        width: int,
        background: Tensor | float = 1.0,
        jitter: Tensor | float = 0.5,
    ) -> Rendered:
        """Views as those of `volume.VolumeField`; there are no samples that `jitter` could move."""
        return render_gaussians(self.gaussians(scene), camera, height, width, background, self.backend)

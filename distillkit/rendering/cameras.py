"""Cameras as vectors, their rays, and where points appear in the picture.

A camera is 13 numbers: its pose, camera to world, 3 x 4 row by row, and the tangent of half its
vertical field of view. The world is right-handed with z up. A camera's axes are OpenGL's: x to the
right, y up, and it looks along -z. Pixels are square; row 0 is at the top; the centre of the first
pixel is at (0.5, 0.5).

B: cameras; N: points; H, W: height and width in pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIZE = 13  # numbers of a camera
WIDEST = 170.0  # degrees of a field of view
RIGID = 1e-3  # by which the products of a pose's axes may differ from the identity
TINY = 1e-8


def camera_of(c2w: Tensor, tangent: Tensor) -> Tensor:
    """The camera [..., 13] of a pose and a field of view.

    Args:
        c2w: camera to world in OpenGL axes, [..., 4, 4] or [..., 3, 4].
        tangent: of half the vertical field of view, [...]; half the height over the focal length.
    """
    return torch.cat([c2w[..., :3, :].flatten(-2), tangent[..., None].to(c2w)], -1)


def pose(camera: Tensor) -> Tensor:
    """The pose of cameras [..., 13], camera to world in OpenGL axes, [..., 4, 4]."""
    last = camera.new_tensor([0, 0, 0, 1]).expand(*camera.shape[:-1], 1, 4)
    return torch.cat([camera[..., :12].unflatten(-1, (3, 4)), last], -2)


def to_opencv(c2w: Tensor) -> Tensor:
    """A pose [..., 4, 4] in OpenCV axes: x to the right, y down, looking along z."""
    return c2w * c2w.new_tensor([1, -1, -1, 1])


def from_opencv(c2w: Tensor) -> Tensor:
    """A pose [..., 4, 4] in OpenGL axes, from one in OpenCV axes."""
    return to_opencv(c2w)  # two axes are turned round, here as there


def intrinsics(camera: Tensor, height: int, width: int) -> Tensor:
    """The matrix K of cameras [..., 13] in pixels, [..., 3, 3]: focal lengths and the centre."""
    matrix = camera.new_zeros(*camera.shape[:-1], 3, 3)
    matrix[..., 0, 0] = matrix[..., 1, 1] = height / 2 / camera[..., 12]
    matrix[..., 0, 2], matrix[..., 1, 2], matrix[..., 2, 2] = width / 2, height / 2, 1
    return matrix


def orbit(azimuth: Tensor | float, elevation: Tensor | float, distance: Tensor | float, fovy: Tensor | float) -> Tensor:
    """Cameras [B, 13] that look at the origin.

    Args:
        azimuth: radians from x towards y, [B] or a number; 0 is the front.
        elevation: radians above the plane of x and y, [B] or a number.
        distance: of the camera from the origin, [B] or a number.
        fovy: the vertical field of view in radians, [B] or a number.
    """
    given = [torch.as_tensor(value) for value in (azimuth, elevation, distance, fovy)]
    given = [value if value.is_floating_point() else value.float() for value in given]
    azimuth, elevation, distance, fovy = torch.broadcast_tensors(*map(torch.atleast_1d, given))
    zero, sin, cos = torch.zeros_like(azimuth), azimuth.sin(), azimuth.cos()
    right = torch.stack([-sin, cos, zero], -1)
    back = torch.stack([elevation.cos() * cos, elevation.cos() * sin, elevation.sin()], -1)
    return _camera(right, back, distance[:, None] * back, fovy)


def look_at(eye: Tensor, target: Tensor, fovy: Tensor | float) -> Tensor:
    """Cameras [B, 13] at `eye` [B, 3] that look at `target` [B, 3], with z upwards in the picture.

    One that looks straight up or down has y on its right.

    Args:
        eye, target: points of the world.
        fovy: the vertical field of view in radians, [B] or a number.

    Raises:
        ValueError: a camera stands at its target.
    """
    back = eye - target
    far = back.norm(dim=-1, keepdim=True)
    if not (far > TINY).all():
        raise ValueError("a camera stands where it looks at: give an eye that is not its target")
    back = back / far
    right = torch.stack([-back[:, 1], back[:, 0], torch.zeros_like(back[:, 0])], -1)
    flat = right.norm(dim=-1, keepdim=True)
    right = torch.where(flat > 1e-6, right / flat.clamp_min(TINY), right.new_tensor([0, 1, 0]))
    return _camera(right, back, eye, torch.as_tensor(fovy).to(eye).expand(len(eye)))


def _camera(right: Tensor, back: Tensor, eye: Tensor, fovy: Tensor) -> Tensor:
    up = torch.linalg.cross(back, right)
    return camera_of(torch.stack([right, up, back, eye], -1), (fovy / 2).tan())


def rays(camera: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The rays through the centres of the pixels.

    Args:
        camera: [..., 13].
        height, width: of the picture in pixels.

    Returns:
        Where they begin, [..., 3], and their directions of length 1, [..., H, W, 3].
    """
    c2w, tangent = pose(camera), camera[..., 12, None, None]
    column, row = (torch.arange(num, device=camera.device, dtype=camera.dtype) + 0.5 for num in (width, height))
    x = (2 * column - width) / height * tangent  # [..., 1, W]
    y = (height - 2 * row[:, None]) / height * tangent
    x, y = torch.broadcast_tensors(x, y)
    towards = torch.stack([x, y, -torch.ones_like(x)], -1)
    towards = towards / towards.norm(dim=-1, keepdim=True)
    return c2w[..., :3, 3], torch.einsum("...ij,...hwj->...hwi", c2w[..., :3, :3], towards)


def project(camera: Tensor, points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where points appear in the picture.

    Args:
        camera: [..., 13].
        points: of the world, [..., N, 3].
        height, width: of the picture in pixels.

    Returns:
        Pixels [..., N, 2], x to the right and y down, and depths along the camera's axis [..., N].
        The pixels of a point that is not in front of the camera (depth <= 0) mean nothing.
    """
    c2w, tangent = pose(camera), camera[..., 12, None]
    x, y, z = ((points - c2w[..., None, :3, 3]) @ c2w[..., :3, :3]).unbind(-1)  # a pose's inverse is its transpose
    depth = -z
    scale = height / (2 * tangent * torch.where(depth.abs() < TINY, TINY, depth))
    return torch.stack([width / 2 + x * scale, height / 2 - y * scale], -1), depth


def angles(camera: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Azimuth and elevation in radians, and distance, of where cameras stand; each [...].

    What they look at does not matter. Right above the origin the azimuth means nothing.
    """
    x, y, z = pose(camera)[..., :3, 3].unbind(-1)
    flat = torch.hypot(x, y)
    return torch.atan2(y, x), torch.atan2(z, flat), torch.hypot(flat, z)


def inside(camera: Tensor, radius: float) -> Tensor:
    """Whether cameras [..., 13] stand within `radius` of the origin, bool [...]."""
    return angles(camera)[2] < radius


def check(camera: Tensor) -> None:
    """Refuse what is no camera.

    Raises:
        ValueError: the shape is not [..., 13], a number is not finite, a pose is not a rotation, or
            a field of view is not within (0, 170) degrees.
    """
    if camera.ndim < 2 or camera.shape[-1] != SIZE or not camera.is_floating_point():
        raise ValueError(
            f"cameras must be floats [B, {SIZE}] (a pose of 12 numbers and the tangent of half the field of view), "
            f"got {str(camera.dtype).removeprefix('torch.')} {list(camera.shape)}"
        )
    camera = camera.detach().double().reshape(-1, SIZE)
    if len(bad := (~camera.isfinite().all(-1)).nonzero()):
        raise ValueError(f"camera {int(bad[0])} has a number that is not finite")
    axes = pose(camera)[:, :3, :3]
    apart = (axes @ axes.mT - torch.eye(3, dtype=axes.dtype, device=axes.device)).abs().amax((1, 2))
    if len(bad := ((apart > RIGID) | (torch.linalg.det(axes) < 0)).nonzero()):
        raise ValueError(
            f"the pose of camera {int(bad[0])} is not a rotation (it scales, shears or mirrors): "
            "give camera to world with axes of length 1 at right angles, right-handed"
        )
    widest = math.tan(math.radians(WIDEST / 2))
    if len(bad := ((camera[:, 12] <= 0) | (camera[:, 12] > widest)).nonzero()):
        i = int(bad[0])
        raise ValueError(
            f"the field of view of camera {i} must lie in (0, {WIDEST:g}) degrees, "
            f"but the tangent of half of it is {float(camera[i, 12]):g}"
        )

"""Gaussians in .ply files, as 3DGS writes them and viewers of splats read them.

Binary, little-endian, one vertex a Gaussian, all properties float32: x y z, nx ny nz (zero),
f_dc_0 f_dc_1 f_dc_2 (colour = 0.5 + 0.2821 f_dc), opacity (its logit), scale_0 to scale_2 (their
logarithms), rot_0 to rot_3 (a quaternion, w x y z).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from distillkit.files import write_atomic
from distillkit.rendering.gaussians import Gaussians

HARMONIC = 0.28209479177387814  # of degree 0: 1 / (2 sqrt(pi))
PROPERTIES = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
LEAST = 1e-6  # opacities within it of 0 and 1 have no finite logit
LONGEST = 2**16  # bytes of a header


def write_splats(path: str | Path, gaussians: Gaussians) -> Path:
    """Write the Gaussians of one scene (tensors [N, ...]) to a .ply file, atomically."""
    turns = gaussians.quaternions / gaussians.quaternions.norm(dim=-1, keepdim=True)
    parts = [
        gaussians.means,
        torch.zeros_like(gaussians.means),
        (gaussians.colours - 0.5) / HARMONIC,
        gaussians.opacities.double().clamp(LEAST, 1 - LEAST).logit()[:, None],
        gaussians.scales.log(),
        turns,
    ]
    rows = torch.cat([part.detach().float().cpu() for part in parts], 1).numpy().astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property float {name}" for name in PROPERTIES]
    text = "\n".join([*header, "end_header", ""]).encode("ascii")
    return write_atomic(path, lambda temporary: temporary.write_bytes(text + rows.tobytes()))


def read_splats(path: str | Path) -> Gaussians:
    """Read the Gaussians of one scene (tensors [N, ...]) from a .ply file.

    What depends on the direction (f_rest) is left out, and colours are clipped to [0, 1].

    Raises:
        ValueError: the file is no such file.
    """
    data = Path(path).read_bytes()
    header, end, body = data.partition(b"end_header\n")
    lines = [line.strip() for line in header[:LONGEST].decode("ascii", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("comment", "obj_info"))]
    counted = re.fullmatch(r"element vertex (\d{1,9})", lines[2]) if len(lines) > 2 else None
    if not end or lines[:2] != ["ply", "format binary_little_endian 1.0"] or not counted:
        raise ValueError(f"{path} is no binary little-endian .ply file of vertices alone")
    found = [re.fullmatch(r"property float(?:32)? (\w+)", line) for line in lines[3:]]
    names = [each[1] for each in found if each]
    missing = [name for name in PROPERTIES if name not in names and name not in ("nx", "ny", "nz")]
    if len(names) < len(found) or len(set(names)) < len(names) or missing:
        what = f"lack {', '.join(missing)}" if missing else "have properties that are not float or occur twice"
        raise ValueError(f"{path} holds no Gaussians: its vertices {what}")
    num = int(counted[1])
    if len(body) != num * len(names) * 4:
        raise ValueError(
            f"{path} is cut off or too long: {num} Gaussians take {num * len(names) * 4} bytes, got {len(body)}"
        )
    rows = torch.from_numpy(np.frombuffer(body, "<f4").reshape(num, len(names)).astype(np.float32))
    if not rows.isfinite().all():
        raise ValueError(f"{path} holds a number that is not finite")

    def column(*wanted: str) -> torch.Tensor:
        return rows[:, [names.index(name) for name in wanted]]

    turns = column("rot_0", "rot_1", "rot_2", "rot_3")
    if (turns.norm(dim=-1) == 0).any():
        raise ValueError(f"{path} holds a rotation that is none: a quaternion of length 0")
    return Gaussians(
        column("x", "y", "z"),
        turns,
        column("scale_0", "scale_1", "scale_2").exp(),
        column("opacity")[:, 0].sigmoid(),
        (0.5 + HARMONIC * column("f_dc_0", "f_dc_1", "f_dc_2")).clamp(0, 1),
    )

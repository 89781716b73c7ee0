"""Scans streets of a procedural town by ray casting, and writes what `streets` reads.

python -m domains.lidar.ship --out domains/lidar/scenes

It needs open3d, which the extra `threed` brings; nothing that runs later does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distillkit.files import write_atomic, write_text
from distillkit.progress import progress
from domains.lidar.maps import moved
from domains.lidar.projection import back_project
from domains.lidar.streets import pose
from domains.lidar.town import Street, street
from domains.lidar.views import FARTHEST

SCENES = {"train": 24, "val": 4, "test": 4}
SCANS = 3  # of a scene
ELEVATIONS = np.linspace(21, -22, 64).round(3)  # degrees, from an OS-1's highest beam to its lowest
COLUMNS = 512
HEIGHT = 2.0  # of the sensor above the road, in metres
STEP = 0.01  # of ranges, in metres

CARD = """# Streets

Scans of a procedural town (`domains.lidar.town`) by ray casting with Open3D. No real place, no recorded data.

- Scenes: {train} to train on, {val} for validation and {test} for tests, each of a seed of its own: a curved and sloping
  street with houses, arcades, balconies, stairs, side streets, squares, gardens, fences, trees, lamps, signs, bus
  stops, people, parked cars and vans. Nothing moves.
- Scans: {scans} of each scene, 3 to 6 m apart, {beams} beams from {high} to {low} degrees (as an OS-1), {columns} columns,
  level, {height} m above the road; ranges of at most {reach} m.
- `*_range.png`: 16-bit grey, in steps of {step} m, 0 where nothing returned; all scans below each other.
  `*_reflectance.png`: 8-bit grey, by surface. `streets.json`: poses (x, y, z in metres, yaw in radians), elevations.
- Neither noise nor losses are in the files; `domains.lidar.streets` adds both when it reads them.
- Size: {kilobytes:.0f} kB. Licence: that of distillkit, Apache-2.0.

| file | sha256 |
| :-- | :-- |
{hashes}

Made by

    python -m domains.lidar.ship --out domains/lidar/scenes
"""


def poses(scene: Street, rng: np.random.Generator) -> np.ndarray:
    """Poses of a level sensor in a lane [SCANS, 4]: x, y, z in metres, yaw in radians."""
    x = rng.uniform(-8, -3) + np.cumsum([0, *rng.uniform(3, 6, SCANS - 1)])
    y = rng.choice((-1, 1)) * scene.half / 2.5 + rng.normal(0, 0.2, SCANS)
    place = scene.lane(np.stack((x, y, np.full(SCANS, HEIGHT)), 1))
    yaw = [scene.lane.heading(each) + rng.normal(0, 0.15) for each in x]
    return np.column_stack((place, yaw)).round(4)


def cast(scene: Street, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What sensors at n poses see: steps of range, 0 for no return, and reflectances of 255.

    Returns:
        uint16 [n, H, W] and uint8 [n, H, W].
    """
    from open3d import core
    from open3d.t.geometry import RaycastingScene

    world = RaycastingScene()
    for solid in scene.solids:
        world.add_triangles(core.Tensor(solid.corners, core.float32), core.Tensor(solid.triangles, core.uint32))
    shades = np.array([round(255 * solid.reflectance) for solid in scene.solids] + [0])
    ones = torch.ones(len(ELEVATIONS), COLUMNS, dtype=torch.float64)
    rays = back_project(ones, torch.from_numpy(ELEVATIONS)).numpy()
    ranges, reflectances = [], []
    for place in places:
        origin = np.broadcast_to(place[:3], rays.shape)
        beams = np.concatenate((origin, moved(rays, pose(*place)) - origin), -1).astype(np.float32)
        hits = world.cast_rays(core.Tensor(beams), nthreads=1)
        distance, solid = hits["t_hit"].numpy(), hits["geometry_ids"].numpy()
        seen = distance < FARTHEST
        ranges.append(np.where(seen, distance / STEP, 0).round().astype(np.uint16))
        reflectances.append(np.where(seen, shades[np.minimum(solid, len(shades) - 1)], 0).astype(np.uint8))
    return np.stack(ranges), np.stack(reflectances)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m domains.lidar.ship", description="Scan the streets that are shipped."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the images, their poses and README.md")
    out, seeds = parser.parse_args(argv).out, iter(range(sum(SCENES.values())))
    facts = {"step": STEP, "columns": COLUMNS, "elevations": ELEVATIONS.tolist(), "poses": {}}
    with progress("scanning streets", sum(SCENES.values())) as activity:
        for part, num in SCENES.items():
            places, ranges, reflectances = [], [], []
            for _ in range(num):
                seed = next(seeds)
                scene = street(seed)
                places.append(poses(scene, np.random.default_rng([seed, 1])))
                images = cast(scene, places[-1])
                ranges.append(images[0])
                reflectances.append(images[1])
                activity.advance()
            facts["poses"][part] = np.stack(places).tolist()
            _save(out / f"{part}_range.png", np.stack(ranges))
            _save(out / f"{part}_reflectance.png", np.stack(reflectances))
    write_text(out / "streets.json", json.dumps(facts) + "\n")
    files = sorted(path for path in out.iterdir() if path.suffix in (".png", ".json"))
    hashes = "\n".join(f"| {path.name} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" for path in files)
    sizes = {"scans": SCANS, "beams": len(ELEVATIONS), "high": ELEVATIONS[0], "low": ELEVATIONS[-1], "columns": COLUMNS}
    sizes |= {
        "height": HEIGHT,
        "reach": FARTHEST,
        "step": STEP,
        "kilobytes": sum(path.stat().st_size for path in files) / 1000,
    }
    write_text(out / "README.md", CARD.format(hashes=hashes, **SCENES, **sizes))


def _save(path: Path, images: np.ndarray) -> None:
    """Writes images [..., H, W] below each other as one PNG."""
    image = Image.fromarray(images.reshape(-1, images.shape[-1]))
    write_atomic(path, lambda temporary: image.save(temporary, "PNG", optimize=True))


if __name__ == "__main__":
    main()

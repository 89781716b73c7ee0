"""Folders of meshes as a source of shapes."""

from __future__ import annotations


def import_trimesh():
    import trimesh

    return trimesh

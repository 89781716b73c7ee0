"""Points thinned by voxels."""

import torch

from domains.lidar.voxels import thinned


def test_the_first_point_of_a_voxel_stays_in_its_place():
    points = torch.tensor(
        [[0.55, 0, 0], [-0.01, 0.01, 0], [0.51, 0.09, 0.01], [0.01, 0.01, 0], [0.01, -0.01, 0], [0, 0, 0]]
    )
    assert torch.equal(thinned(points, 0.1), points[[0, 1, 3, 4]])
    assert torch.equal(thinned(points, 10.0), points[[0, 1, 4]])


def test_voxels_of_one_sum_are_told_apart():
    points = torch.tensor([[0.05, 0.05, 1000.05], [0.05, 1000.05, 0.05], [1000.05, 0.05, 0.05], [-999.95, 0.05, 0.05]])
    assert torch.equal(thinned(points), points)

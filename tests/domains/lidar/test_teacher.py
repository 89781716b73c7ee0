"""The embedded teacher of points."""

import pytest

from domains.lidar.codec import Completion
from domains.lidar.teacher import Streets


@pytest.mark.parametrize("extent, said", [(None, "no whole scans"), (25.0, "no scenes of 25 m")])
def test_scenes_beyond_its_grid_are_refused(extent, said):
    with pytest.raises(ValueError, match=f"knows scenes of 12.8 m, {said}: say data.crop=12.8, or train"):
        Streets(extent=extent)


def test_smaller_scenes_and_another_codec_are_taken():
    codec = Completion(4)
    assert Streets(codec, extent=8.0).codec is codec and Streets().codec.repeat == 8

"""Curves over each other."""

import numpy as np
import pytest
import torch

from distillkit.evaluation.pictures import overlay

LINE = torch.linspace(0, 1, 50)
GREY, BLUE = (191, 191, 191), (31, 119, 180)


def places(image, colour):
    """Rows and columns of a colour right of the legend and the numbers."""
    pixels = np.asarray(image)[80:290, 100:830]
    return np.nonzero((pixels == colour).all(-1))


def test_the_target_lies_behind_what_was_achieved():
    image = overlay({"target": LINE, "student": 1 - LINE}, 2.0, "loudness (dB)")
    assert image.mode == "RGB" and image.size == (840, 360)
    (rows, columns), (achieved, at) = places(image, GREY), places(image, BLUE)
    assert np.corrcoef(rows, columns)[0, 1] < -0.98 and np.corrcoef(achieved, at)[0, 1] > 0.98  # rows count downwards
    assert len(rows) > 2 * len(achieved) > 500  # the target is broad
    both = overlay({"target": LINE, "student": LINE}, 2.0, "loudness (dB)")
    assert len(places(both, BLUE)[0]) > 200 < len(places(both, GREY)[0])  # neither hides the other


def test_curves_of_other_lengths_cover_the_same_time():
    image = overlay({"target": LINE, "student": 1 - LINE}, 2.0, "x")
    coarse = overlay({"target": LINE, "student": 1 - LINE[::7]}, 2.0, "x")
    assert np.abs(np.asarray(image).astype(int) - np.asarray(coarse)).mean() < 0.05


def test_gaps_and_names_are_drawn_as_they_are():
    image = overlay({"target": LINE, "student": torch.where(LINE > 0.5, torch.nan, 1 - LINE)}, None, "x")
    assert places(image, BLUE)[1].max() < 400 < places(image, GREY)[1].max()
    strange = overlay({"$\\frac{$": LINE, "_hidden": 1 - LINE}, None, "$\\frac{$")
    shown = np.asarray(strange)[:45]
    assert (shown == BLUE).all(-1).any() and (shown == GREY).all(-1).any()  # both are in the legend


@pytest.mark.parametrize(
    "curves, said",
    [
        ({}, "nothing to draw; give at least one curve"),
        ({"target": torch.zeros(2, 5)}, r"target is no curve: .* T >= 2, got \[2, 5\]"),
        ({"target": LINE, "student": torch.zeros(1)}, r"student is no curve: .* got \[1\]"),
    ],
)
def test_what_is_no_curve_is_refused(curves, said):
    with pytest.raises(ValueError, match=said):
        overlay(curves, None, "x")

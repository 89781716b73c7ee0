"""Squares of any size with a teacher whose codec leaves sizes free."""

import pytest
import torch
from helpers import at

from distillkit.methods.refusals import check_belongs
from domains.super_resolution.codec import Upscale
from tests.battery.conftest import build


def test_the_teacher_takes_squares_of_another_size():
    made = build("domain=super_resolution", "method=dmd", "data.crop=32", "data.batch_size=2", "data.held_out=2")
    made.data.setup()
    made.model.check(made.data)
    batch = made.data.train[torch.arange(2)]
    loss = at(made.model).student_loss(batch)
    assert loss.isfinite() and made.model.student_samples(batch)[0].shape == (2, 3, 32, 32)


def test_what_the_codec_does_not_leave_free_is_compared():
    made = build("domain=super_resolution", "method=dmd", "data.held_out=2")
    made.model.teacher.event_shape = (1, 48, 48)
    with pytest.raises(ValueError, match=r"the data have shape \(3, 48, 48\), the teacher makes \(1, 48, 48\)"):
        made.model.check(made.data)
    made.model.teacher.event_shape, made.data.event_shape = (3, 48, 48), (3, 64, 64)
    check_belongs(made.model.teacher, made.data)
    made.model.teacher.codec = type("Fixed", (Upscale,), {"free": {}})()
    with pytest.raises(ValueError, match="choose a teacher trained on these data"):
        check_belongs(made.model.teacher, made.data)

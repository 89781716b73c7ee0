"""Makers: every role and part has weights of its own; settings are used or refused."""

from pathlib import Path

import pytest
import torch
from helpers import neural

from distillkit.methods.dmd import DMD
from distillkit.methods.mdt_dist import MDTDist
from distillkit.methods.reflow import Reflow
from distillkit.students.base import load_student
from distillkit.students.makers import FromFolder, Routed
from distillkit.teachers.exact import ExactTeacher, Mixture

KAPPA = [1.0, 4.0]


@pytest.fixture
def folder(tmp_path):
    """A folder of a student of two steps that was told kappa."""
    return str(DMD(neural(), kappa=KAPPA, num_steps=2).product().save(tmp_path / "student"))


def test_a_student_to_go_on_from_is_a_copy_for_each_role_and_part(folder):
    maker = FromFolder(folder)
    model = DMD(neural(), kappa=KAPPA, student_maker=maker, fake_score_maker=maker)
    assert not {id(p) for p in model.student.parameters()} & {id(p) for p in model.fake_score.parameters()}
    one, two = Routed(2, part=maker).make(neural()).network.parts
    assert not {id(p) for p in one.parameters()} & {id(p) for p in two.parameters()}


def test_a_routed_student_of_told_parts_is_told_and_comes_back(folder, tmp_path):
    maker = Routed(2, part=FromFolder(folder))
    model = DMD(neural(), kappa=KAPPA, student_maker=maker)
    assert model.num_steps == 2  # as the parts bring along
    again = load_student(model.product().save(tmp_path / "routed"))
    assert again.told == {"kappa": tuple(KAPPA)}
    assert torch.equal(again.sample(4, kappa=3.0), model.product().eval().sample(4, kappa=3.0))


def test_a_told_student_goes_on_with_the_range_that_it_was_told(folder):
    assert DMD(neural(), kappa=KAPPA, student_maker=FromFolder(folder)).product().told == {"kappa": tuple(KAPPA)}
    for kappa in ([2.0, 8.0], 3.0):
        with pytest.raises(ValueError, match="say model.kappa="):
            DMD(neural(), kappa=kappa, student_maker=FromFolder(folder))
    with pytest.raises(ValueError, match="take one that was not"):
        MDTDist(neural(), student_maker=FromFolder(folder))
    with pytest.raises(ValueError, match="a teacher is not told kappa"):
        Reflow(neural(), student_maker=FromFolder(folder))


def test_a_routing_takes_its_own_settings_only():
    with pytest.raises(ValueError, match="say student.by=time"):
        Routed(edges=[1.0])
    with pytest.raises(ValueError, match="leave it out"):
        Routed(by="time", edges=[1.0], owner=[0, 1])
    with pytest.raises(ValueError, match="edges must lie in"):
        Routed(by="time", edges=[1000.0]).make(neural())


def test_a_range_of_kappa_around_1_is_guidance_too():
    plain = ExactTeacher(Mixture([[0.0, 0.0]], [[[1.0, 0.0], [0.0, 1.0]]]), neural().process)
    with pytest.raises(ValueError, match="has nothing to guide"):
        DMD(plain, kappa=[0.0, 2.0])


def test_kappa_of_another_length_is_refused_in_a_sentence(folder):
    student = load_student(folder)
    for kappa in (torch.tensor([1.0, 2.0, 3.0]), "strong"):
        with pytest.raises(ValueError, match="kappa"):
            student.sample(4, kappa=kappa)


def test_a_folder_of_pairs_that_nobody_asks_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give model.regression one"):
        DMD(neural(), pairs_path=str(tmp_path))


def test_a_folder_of_no_student_in_particular_is_refused(folder):
    file = Path(folder) / "student.yaml"
    file.write_text(file.read_text().replace("few_step.FewStepStudent", "base.Student"))
    with pytest.raises(ValueError, match="no Student that can be made"):
        load_student(folder)

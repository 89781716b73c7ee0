"""Tests of the tests of score distillation and MDT-dist: each fault must be noticed."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
from helpers import PROCESSES
from methods import test_mdt_dist, test_score, test_sets
from mutations import Mutation, prove

from distillkit.methods import dmd as dmd_module
from distillkit.methods import sid as sid_module
from distillkit.methods.dmd import DMD
from distillkit.methods.few_step import FewStepDistiller
from distillkit.methods.mdt_dist import MDTDist
from distillkit.methods.score import ScoreDistiller
from distillkit.methods.sid import SiD

VE = PROCESSES["ve"]


def patched(test, *args):
    """A test that asks for `monkeypatch`, which is undone when it ends."""

    def check():
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(*args, monkeypatch=monkeypatch)

    return check


def sets(kind):
    return partial(test_sets.test_sets_padded_further_have_the_same_loss, kind)


def divided(kind, over):
    return partial(test_score.test_the_loss_is_divided_by_the_distance_to_the_teacher, kind, over)


def fitted(name):
    return patched(test_score.test_the_fake_score_is_fitted_to_the_students_samples, name, 1)


sid_step = partial(test_score.test_sid_step_has_the_closed_gradient, VE)
guidance = {
    name: patched(test_score.test_guidance_reaches_the_right_calls, name, kappas)
    for name, kappas in (("zero", (2.5, 0.0, 0.0)), ("anti", (2.5, -1.0, 1.0)))
}
published, same_noise = (
    test_score.test_sida_adds_the_published_share_of_its_adversarial_part,
    test_score.test_sidas_discriminator_sees_fake_and_real_at_the_same_level_and_noise,
)
unconditional = patched(
    test_score.test_the_fake_score_learns_without_condition_only_where_it_needs_to, {"kappa": 2.0}, 0.1
)
SID = [
    ("the noised sample stopped", "self.diffuse(x_g,", "self.diffuse(x_g.detach(),", sid_step),
    ("the teacher stopped", "real = guided(self.teacher.denoiser, x_t,", "real = guided(self.teacher.denoiser, x_t.detach(),", sid_step),
    ("the fake score stopped", "fake = guided(self.fake_score, x_t,", "fake = guided(self.fake_score, x_t.detach(),", sid_step),
    ("teacher and fake score swapped", "real, fake, self.alpha", "fake, real, self.alpha", sid_step),
    ("alpha not handed on", "self.alpha", "1.0", sid_step),
    ("the fake score's levels", "self.student_times", "self.fake_times", sid_step),
    ("the fake score's guidance on the teacher", "self.teacher_kappa", "self.judge_kappa", guidance["zero"]),
    ("the teacher's guidance on the fake score", "self.judge_kappa", "self.teacher_kappa", guidance["zero"]),
    ("the normaliser not handed on", "self.alpha, self.normalise", "self.alpha, None", divided(SiD, "sample")),
    ("each sample for the batch", "self.alpha, self.normalise", "self.alpha, 'sample'", divided(SiD, "batch")),
    ("the mask not handed on", 'self.normalise, cond.get("mask")', "self.normalise", sets("sid")),
    ("the adversarial weight left out", "self.gan * ", "", published),
    ("the adversarial part's normaliser left out", "scale, self.gan_clamp", "1 + 0 * scale, self.gan_clamp", published),
    ("the adversarial part a step late", ">= self.gan_start", "> self.gan_start", test_score.test_sidas_student_waits_while_its_discriminator_learns),
    ("the logits not clipped", "self.gan_clamp)", "None)", partial(test_score.test_sidas_student_is_not_moved_by_clipped_logits, 1e-6, False)),
    ("the logits stopped", "self.logits(x_t, t, cond)", "self.logits(x_t.detach(), t, cond)", published),
]  # fmt: skip
SID_FAKE = [
    ("trained on the data", "denoising_loss(self.fake_score, x_g,", 'denoising_loss(self.fake_score, batch["data"],', fitted("sid")),
    ("trained on the data of SiDA", "denoising_loss(self.fake_score, x_g,", 'denoising_loss(self.fake_score, batch["data"],', fitted("sida")),
    ("the teacher trained for it", "denoising_loss(self.fake_score,", "denoising_loss(self.teacher.denoiser,", fitted("sid")),
    ("guided as it judges", "self.fit_kappa)\n", "self.judge_kappa)\n", guidance["anti"]),
    ("the condition never dropped", "< 0.1", "< 0.0", unconditional),
    ("the condition dropped twice as often", "< 0.1", "< 0.2", unconditional),
    ("real and fake swapped", "sida_discriminator_loss(fake, real,", "sida_discriminator_loss(real, fake,", published),
    ("the student's weight for the discriminator", "self.gan_discriminator", "self.gan", published),
    ("the weight of the level left out", "(fake, real, weight,", "(fake, real, weight**0,", published),
    ("the real samples' noise not shared", "process.add_noise(x_0, self.randn(", "process.add_noise(x_0, -self.randn(", same_noise),
    ("fake samples for real ones", "process.add_noise(x_0,", "process.add_noise(x_g,", same_noise),
    ("real samples given what the student followed", "self.real_condition(batch, cond)", "cond", patched(test_score.test_real_samples_are_judged_by_what_they_really_followed, SiD, sid_module)),
    ("the mask not handed on", 'x_g, cond.get("mask")', "x_g", test_sets.test_sidas_discriminator_weighs_a_set_by_its_own_number_of_elements),
]  # fmt: skip

dmd_step = partial(test_score.test_dmd_step_has_the_closed_gradient, VE)
rests = partial(test_score.test_guided_dmd_rests_at_the_guided_mean, 3.0)
both, alone = (
    partial(test_score.test_where_guided_dmd_rests_depends_on_whose_fake_score_is_guided, 3.0, guided, 0.7, 0.1)
    for guided in (True, False)
)
swift, added = (
    partial(test_score.test_swiftbrushs_weight_is_sigma_alpha_once, VE),
    test_score.test_dmd2s_losses_add_up,
)
regression = test_score.test_regression_is_added_with_its_weight
DMD_STUDENT = [
    ("teacher and fake score swapped", "dmd_loss(x_g, real, fake,", "dmd_loss(x_g, fake, real,", dmd_step),
    ("the scores not stopped", "with torch.no_grad():\n        x_t = x_t.detach()", "with torch.enable_grad():\n        x_t = x_t", patched(test_score.test_sid_differentiates_through_both_scores_and_dmd_through_none, "teacher")),
    ("the fake score's levels", "self.student_times", "self.fake_times", dmd_step),
    ("the teacher not guided", "cond, null, kappa)\n", "cond, null, 1)\n", rests),
    ("kappa off by one", "cond, null, kappa)\n", "cond, null, kappa + 1)\n", rests),
    ("w for kappa", "cond, null, kappa)\n", "cond, null, kappa - 1)\n", rests),
    ("the fake score guided", "kappa if self.guide_fake else 1", "kappa", alone),
    ("the fake score not guided", "kappa if self.guide_fake else 1", "1", both),
    ("guidance on the wrong side", "cond, null, kappa)\n        fake = guided(self.fake_score, x_t, t, cond, null, kappa if self.guide_fake else 1)", "cond, null, 1)\n        fake = guided(self.fake_score, x_t, t, cond, null, kappa)", alone),
    ("the weight squared", "ratio / (1 + ratio**2)", "(ratio / (1 + ratio**2)) ** 2", swift),
    ("sigma for sigma alpha", "ratio / (1 + ratio**2)", "ratio / (1 + ratio**2) ** 0.5", swift),
    ("the weight not handed on", 'cond.get("mask"), weight)', 'cond.get("mask"))', swift),
    ("the weight where none is asked for", 'if self.weight == "sigma_alpha"', "if True", dmd_step),
    ("the normaliser not handed on", "fake, self.normalise", "fake, None", divided(DMD, "sample")),
    ("each sample for the batch", "fake, self.normalise", "fake, 'sample'", divided(DMD, "batch")),
    ("the mask not handed on", 'self.normalise, cond.get("mask")', "self.normalise, None", sets("dmd")),
    ("the adversarial weight left out", "self.gan * ", "", added),
    ("the regression's weight left out", "self.regression * ", "", regression),
    ("the regression from other noise", "process, noise, t, pair_cond", "process, -noise, t, pair_cond", regression),
    ("the regression for other conditions", "pair_cond), t, pair_cond)", "pair_cond), t, cond)", regression),
    ("the regression's mask not handed on", 'y, pair_cond.get("mask")', "y", sets("dmd with pairs")),
]  # fmt: skip
DMD_FAKE = [
    ("trained on the data", "denoising_loss(self.fake_score, x_g,", 'denoising_loss(self.fake_score, batch["data"],', fitted("dmd")),
    ("trained on the data of DMD2", "denoising_loss(self.fake_score, x_g,", 'denoising_loss(self.fake_score, batch["data"],', fitted("dmd gan")),
    ("the student's levels", "self.fake_times", "self.student_times", fitted("dmd")),
    ("the condition dropped where nobody judges with guidance", "and self.guide_fake", "", patched(test_score.test_a_fake_score_that_judges_with_guidance_learns_its_unconditional_branch, {"kappa": 2.0}, 0)),
    ("the condition never dropped", "< 0.1", "< 0.0", patched(test_score.test_a_fake_score_that_judges_with_guidance_learns_its_unconditional_branch, {"kappa": 2.0, "guide_fake": True}, 0.1)),
    ("the discriminator's weight left out", "self.gan_discriminator * ", "", added),
]  # fmt: skip
DMD_HEADS = [
    ("fake samples for real ones", "self.teacher.codec.encode(batch)", "x_g", test_score.test_dmd2s_discriminator_is_shown_the_student_and_the_data),
    ("real samples given what the student followed", "self.real_condition(batch, cond)", "cond", patched(test_score.test_real_samples_are_judged_by_what_they_really_followed, DMD, dmd_module)),
    ("one draw of noise for both", '"real gan"))', '"fake gan"))', test_score.test_samples_and_noise_are_fresh_for_either_turn),
]  # fmt: skip

steps, first = (
    partial(test_score.test_the_fake_score_and_nobody_else_knows_the_step, SiD),
    test_score.test_the_first_of_several_steps_is_the_one_step_student,
)
reused = patched(test_score.test_the_fake_score_is_fitted_to_the_very_samples_of_the_students_step, DMD, dmd_module, {})
saved = partial(test_score.test_reuse_saves_one_rollout_in_every_cycle_but_the_first, SiD, 1)
taken = partial(test_score.test_training_takes_the_steps_that_the_finished_student_takes, SiD)
ROLLOUT = [
    (ScoreDistiller.generate, "fresh noise whatever one says", "self.renoise", '"fresh"', taken),
    (ScoreDistiller.generate, "one noise for all steps", "noise {i}", "noise 0", taken),
    (FewStepDistiller.few_step_student, "a student that has fresh noise whatever one says", "self.renoise", '"fresh"', taken),
    (FewStepDistiller.few_step_student, "a student that starts a step late", "self.step_times.tolist()", "self.step_times.tolist()[1:]", taken),
    (ScoreDistiller.rollout, "the fake score told another step", "torch.full((len(x_g),), step", "torch.full((len(x_g),), 0", steps),
    (ScoreDistiller.rollout, "always the last step", "purpose, step,", "purpose, self.num_steps - 1,", first),
    (ScoreDistiller.rollout, "always the first step", "purpose, step,", "purpose, 0,", partial(test_score.test_only_the_last_step_is_matched_if_one_says_so, "student")),
    (ScoreDistiller.rollout, "one sample in the row too many", "self.randint(self.rollouts, ROW)", "self.randint(self.rollouts, ROW) + 1", partial(test_score.test_a_student_that_goes_on_learns_from_what_it_made, 0)),
    (ScoreDistiller.rollout, "what the row began with", "cond = self.teacher.proceed(", "self.teacher.proceed(", partial(test_score.test_a_student_that_goes_on_learns_from_what_it_made, 1)),
    (ScoreDistiller.step.fget, "the step before the last", "self.num_steps - 1", "self.num_steps - 2", partial(test_score.test_only_the_last_step_is_matched_if_one_says_so, "student")),
    (ScoreDistiller.generate, "noise of size one", "self.start(self.teacher.process, eps, t, cond)", "eps", partial(test_score.test_the_student_starts_from_noise_of_its_first_level, VE)),
    (ScoreDistiller.fake_samples, "the student's samples of its own turn", 'self.rollout(batch, "fake")', 'self.rollout(batch, "student")', test_score.test_samples_and_noise_are_fresh_for_either_turn),
    (ScoreDistiller.student_samples, "kept with gradient", "x_g.detach()", "x_g", reused),
    (ScoreDistiller.student_samples, "kept though nobody asked", "if self.reuse", "if True", saved),
    (ScoreDistiller.fake_samples, "reused for ever", "pop(0)", "__getitem__(0)", saved),
    (ScoreDistiller.diffuse, "the sample stopped", "add_noise(x_0,", "add_noise(x_0.detach(),", sid_step),
    (ScoreDistiller.real_condition, "what the student followed", "**self.condition(batch)", "", patched(test_score.test_real_samples_are_judged_by_what_they_really_followed, DMD, dmd_module)),
]  # fmt: skip

either_vm, either_vd = (
    partial(test_mdt_dist.test_either_loss_pulls_back_from_either_side, VE, *weights) for weights in ((1, 0), (0, 1))
)
closed = partial(test_mdt_dist.test_velocity_distillation_in_closed_form, VE, False)
kappas = patched(test_mdt_dist.test_guidance_reaches_either_teacher)
near = {tangent: partial(test_mdt_dist.test_next_to_the_data_the_teachers_own_direction_is_the_target, VE, tangent)
        for tangent in ("fd", "product")}  # fmt: skip
guided_rest = test_mdt_dist.test_a_guided_student_rests_at_the_guided_mean
levels = partial(test_mdt_dist.test_levels_fill_the_students_range, VE, None)
MDT = [
    (MDTDist.velocity_matching, "the wrong way", "pull(phi, R,", "pull(phi, -R,", either_vm),
    (MDTDist.velocity_matching, "the samples' guidance", "cond, self.kappa)", "cond, self.vd_kappa)", kappas),
    (MDTDist.velocity_matching, "the mask not handed on", 'R, cond.get("mask"))\n', "R)\n", sets("velocity matching")),
    (MDTDist.velocity_matching, "clean data", "noised(x_0, tau, eps)", "noised(x_0, 0 * tau, eps)", test_mdt_dist.test_matching_differentiates_the_bare_velocity_alone),
    (MDTDist.velocity_distillation, "the wrong way", "pull(x_1, -push,", "pull(x_1, push,", closed),
    (MDTDist.velocity_distillation, "the weight left out", "expand(1 - tau, R) * R", "R", closed),
    (MDTDist.velocity_distillation, "the weight squared", "expand(1 - tau, R)", "expand(1 - tau, R) ** 2", closed),
    (MDTDist.velocity_distillation, "tau for 1 - tau", "expand(1 - tau, R)", "expand(tau, R)", closed),
    (MDTDist.velocity_distillation, "weighted where the released code is not", "if self.unweighted_vd", "if not self.unweighted_vd", closed),
    (MDTDist.velocity_distillation, "the data's guidance", "cond, self.vd_kappa)", "cond, self.kappa)", kappas),
    (MDTDist.velocity_distillation, "the sample stopped", "pull(x_1,", "pull(x_1.detach() + 0 * x_1,", either_vd),
    (MDTDist.velocity_distillation, "the sample's own noise", "noised(x_1, tau, eps)", "noised(x_1, tau, noise)", test_mdt_dist.test_distillation_differentiates_the_sample_alone),
    (MDTDist.velocity_distillation, "the mask not handed on", '-push, cond.get("mask"))', "-push)", sets("velocity distillation")),
    (MDTDist.student_loss, "a step late", ">= self.vd_start", "> self.vd_start", partial(test_mdt_dist.test_distillation_counts_from_its_start_on, 3)),
    (MDTDist.student_loss, "the weight of matching left out", "self.lambda_vm * ", "", test_mdt_dist.test_the_weight_of_matching_counts),
    (MDTDist.student_loss, "the weight of distillation left out", "self.lambda_vd * ", "", test_mdt_dist.test_without_weight_a_loss_is_not_computed),
    (MDTDist.student_loss, "the noise always shared", "eps if self.share_vd_noise else self", "eps if True else self", test_mdt_dist.test_the_released_noise_is_shared_and_ours_is_not),
    (MDTDist.residual, "kappa off by one", "null, kappa)", "null, kappa + 1)", guided_rest),
    (MDTDist.residual, "w for kappa", "null, kappa)", "null, kappa - 1)", guided_rest),
    (MDTDist.residual, "not guided", "null, kappa)", "null, 1)", guided_rest),
    (MDTDist.residual, "product's time not a hop less", 'tau - self.delta if self.tangent == "product" else tau', "tau", near["product"]),
    (MDTDist.residual, "a hop less without product", 'tau - self.delta if self.tangent == "product" else tau', "tau - self.delta", near["fd"]),
    (MDTDist.residual, "a rate where no hop fits", "tau < self.first", "tau < 0", near["product"]),
    (MDTDist.residual, "no rate anywhere", "tau < self.first", "tau < 2", near["product"]),
    (MDTDist.residual, "the released norm always", "if self.normalise_tangent", "if True", test_mdt_dist.test_the_released_norm_leaves_the_exact_student_no_rest),
    (MDTDist.residual, "the student in the teacher's place", "guided(teacher.denoiser,", "guided(self.student,", kappas),
    (MDTDist.levels, "down to zero", "start + (self.last - start) * share", "self.last * share", levels),
    (MDTDist.levels, "up to one", "self.last - start", "1 - start", partial(test_mdt_dist.test_levels_fill_the_students_range, PROCESSES["ddpm"], None)),
    (MDTDist.levels, "product as fd", 'self.low if self.tangent == "product" else self.first', "self.first", levels),
    (MDTDist.levels, "the times not mapped", " - self.low) / (self.high - self.low)", ")", test_mdt_dist.test_levels_are_mapped_from_the_processs_range_onto_the_students),
]  # fmt: skip

MUTATIONS = [
    *(Mutation(says, SiD.student_loss, *rest) for says, *rest in SID),
    *(Mutation(says, SiD.fake_score_loss, *rest) for says, *rest in SID_FAKE),
    *(Mutation(says, DMD.matching, *rest) for says, *rest in DMD_STUDENT),
    *(Mutation(says, DMD.fake_score_loss, *rest) for says, *rest in DMD_FAKE),
    *(Mutation(says, DMD.heads_loss, *rest) for says, *rest in DMD_HEADS),
    *(Mutation(says, function, *rest) for function, says, *rest in (*ROLLOUT, *MDT)),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)

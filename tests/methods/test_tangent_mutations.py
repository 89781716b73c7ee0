"""Tests of the tests of tangent consistency: each fault must be noticed."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
from diffusion import test_trig
from helpers import PROCESSES
from losses import test_tangent
from methods import test_rcm, test_scm
from mutations import Mutation, prove

from distillkit.diffusion import trig
from distillkit.losses import tangent
from distillkit.methods.rcm import RCM
from distillkit.methods.scm import SCM, TangentConsistency

VE = PROCESSES["ve"]
no_residual = partial(test_tangent.test_no_residual_at_the_exact_jump_at_any_state, VE, 0.5)
back = partial(test_tangent.test_gradient_back_to_the_exact_jump, "scale", 0.3)
padding = {how: partial(test_tangent.test_padding_has_no_part_in_the_normalisers, how) for how in ("rms", "norm")}
lengths, loss = (
    test_tangent.test_the_normalisers_are_lengths_of_whole_samples,
    test_tangent.test_the_loss_and_its_gradients_in_closed_form,
)
without = test_tangent.test_without_tangent_the_teachers_own_field_rests
LOSSES = [
    (tangent.residual, "the sign of the tangent", "- r *", "+ r *", no_residual),
    (tangent.residual, "the sign of the tangent, by its gradient", "- r *", "+ r *", back),
    (tangent.residual, "the sign of the derivative", "+ sd * rate", "- sd * rate", no_residual),
    (tangent.residual, "the derivative not scaled", "sd * rate", "rate", no_residual),
    (tangent.residual, "the field not scaled", "sd * F", "F", no_residual),
    (tangent.residual, "the teacher on the other side", "- dx", "+ dx", no_residual),
    (tangent.residual, "the cosine not squared", "cos**2", "cos", no_residual),
    (tangent.residual, "the pace left out", "cos * sin * x", "x", no_residual),
    (tangent.residual, "the warm-up ignored", "- r *", "-", without),
    (tangent.residual, "the warm-up squared", "- r *", "- r**2 *", without),
    (tangent.residual, "the warm-up of the derivative alone", "r * (cos * sin * x + sd * rate)", "(cos * sin * x + r * sd * rate)", without),
    (tangent.normalised, "the floor left out", "sqrt() + FLOOR", "sqrt()", lengths),
    (tangent.normalised, "the norm's floor left out", "g) + FLOOR", "g)", lengths),
    (tangent.normalised, "the norm for the rms", 'how == "rms"', "False", lengths),
    (tangent.normalised, "the mask ignored", "g.square(), mask", "g.square()", padding["rms"]),
    (tangent.normalised, "the norm's mask ignored", "if mask is None", "if True", padding["norm"]),
    (tangent.tangent_loss, "the wrong way", "+ g.detach()", "- g.detach()", loss),
    (tangent.tangent_loss, "the residual not stopped", "g.detach()", "g", loss),
    (tangent.tangent_loss, "the target not stopped", "F.detach()", "F", loss),
    (tangent.tangent_loss, "the field stopped", "(F - target)", "(F.detach() - target)", loss),
    (tangent.tangent_loss, "the weight squared", "weight * loss", "weight**2 * loss", loss),
    (tangent.tangent_loss, "the weight dropped", "weight * loss", "loss", loss),
    (tangent.tangent_loss, "the sign of the log-variance", "(-log_variance)", "log_variance", loss),
    (tangent.tangent_loss, "the log-variance stopped", "+ log_variance", "+ log_variance.detach()", loss),
    (tangent.tangent_loss, "the mask ignored", ".square(), mask)", ".square())", test_tangent.test_the_loss_of_a_padded_batch_is_the_mean_of_the_samples_alone),
]  # fmt: skip

coordinates, order = (
    partial(test_trig.test_trig_coordinates_are_those_of_every_process, VE, 0.5),
    partial(test_trig.test_the_quotient_is_of_second_order_and_of_first_at_the_ends, None, 4),
)
top, rate = (
    partial(test_trig.test_the_quotient_is_of_second_order_and_of_first_at_the_ends, "high", 2),
    test_trig.test_the_exact_rate_is_that_along_the_ode,
)
TRIG = [
    (trig.scale, "not over sd", "/ sd", "", coordinates),
    (trig.angle, "sd left out", "sd * process.alpha(t)", "process.alpha(t)", coordinates),
    (trig.angle, "no end", ".clamp_max(LARGEST)", "", test_trig.test_no_angle_is_pure_noise),
    (trig.noised, "the noise of another scale", "sd * tau.sin()", "tau.sin()", coordinates),
    (trig.trig_field, "the sample not scaled", "* x, t)", "** 0 * x, t)", coordinates),
    (trig.trig_field, "the sign", "expand(tau.cos(), x) * x - D", "D - expand(tau.cos(), x) * x", coordinates),
    (trig.hop, "the other way", "- expand(step.sin(), x) * dx", "+ expand(step.sin(), x) * dx", test_trig.test_a_hop_is_ddims_step),
    (trig.exact_rate, "the sample stands still", "expand(pace, x) * dx", "0 * dx", rate),
    (trig.exact_rate, "the time stands still", ", pace))", ", 0 * pace))", rate),
    (trig.exact_rate, "the sample's pace left out", "expand(pace, x) * dx", "dx", rate),
    (trig.quotient_rate, "one side alone", "(-delta, delta)", "(0, delta)", order),
    (trig.quotient_rate, "the sample stands still", "x + expand(way * pace, x) * dx", "x", order),
    (trig.quotient_rate, "over one side", "ahead - behind", "ahead", order),
    (trig.quotient_rate, "beyond the end", ".clamp(low, high)", "", top),
    (trig.quotient_rate, "the value of the far side", "F_behind - expand(behind, x) * rate", "F_behind", top),
]  # fmt: skip


def patched(test, *args):
    """A test that asks for `monkeypatch`, which is undone when it ends."""

    def check():
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(*args, monkeypatch=monkeypatch)

    return check


field = partial(test_scm.test_only_the_bare_field_is_differentiated, "rms")
chain, cells = (
    partial(test_scm.test_the_chain_is_as_narrow_as_its_hops_are_long, VE, 16),
    test_scm.test_states_are_one_in_each_cell_and_not_the_first,
)
told = partial(test_scm.test_one_student_answers_every_kappa_it_is_told, {"states": "data"})
mean, simulation = (
    partial(test_rcm.test_dmds_gradient_on_the_mean_is_the_closed_one, VE, 0.5),
    test_rcm.test_the_simulation_goes_round_and_falls,
)
last = test_rcm.test_the_gradient_is_in_the_last_step_alone
METHODS = [
    (TangentConsistency.pull, "the prior upside down", "1 / (self.sd * tau.tan())", "self.sd * tau.tan()", field),
    (TangentConsistency.pull, "the prior without sd", "1 / (self.sd * tau.tan())", "1 / tau.tan()", field),
    (TangentConsistency.pull, "the prior ignored", 'if self.prior == "tan"', "if False", field),
    (TangentConsistency.pull, "the log-variance ignored", "if self.learns_log_variance", "if False", field),
    (TangentConsistency.pull, "not normalised", "self.normaliser, mask", "None, mask", field),
    (TangentConsistency.warmth.fget, "all steps counted", 'self.updates_before("student", self.global_step)', "self.global_step", test_scm.test_the_tangent_warms_up_over_the_students_steps),
    (TangentConsistency.velocity, "a fixed kappa", 'cond.get("kappa", self.kappa)', "self.kappa", told),
    (TangentConsistency.velocity, "kappa off by one", 'cond.get("kappa", self.kappa)', 'cond.get("kappa", self.kappa) + 1', told),
    (TangentConsistency.velocity, "the student in the teacher's place", "guided(self.teacher.denoiser,", "guided(self.student,", told),
    (TangentConsistency.rate, "under autocast", "enabled=False", "enabled=torch.is_autocast_enabled('cpu'), dtype=torch.bfloat16", partial(test_scm.test_the_tangent_is_in_float32_at_any_precision, "jvp")),
    (TangentConsistency.on_trajectories, "the first state too", "edges[:-1, None] + share", "edges[:-1, None] + 0 * share", cells),
    (TangentConsistency.on_trajectories, "all in the upper half", "share * edges", "share / 2 * edges", cells),
    (TangentConsistency.on_trajectories, "the wrong way", "tau - after), after", "after - tau), after", chain),
    (TangentConsistency.on_trajectories, "the start not scaled", "x / trig.scale(process, start, self.sd).to(x)", "x", chain),
    (TangentConsistency.on_trajectories, "the velocity of the state before", "dx = self.velocity(x, tau, cond)", "pass", cells),
    (TangentConsistency.levels, "no end", ".clamp(self.low, self.high)", "", test_scm.test_no_level_is_above_the_students_first),
    (TangentConsistency.watch, "never back to none", ", 0))", ", self.runaway))", test_scm.test_the_count_of_runaway_steps_starts_anew),
    (SCM.samples, "noise everywhere", "< self.largest", "< 2", partial(test_scm.test_a_share_of_samples_starts_from_noise, 0.3)),
    (SCM.samples, "the time of data for noise", "torch.where(noise, start.to(t), t)", "t", partial(test_scm.test_a_share_of_samples_starts_from_noise, 0.3)),
    (SCM.student_loss, "the weight squared", "self.gan * self", "self.gan**2 * self", test_scm.test_the_adversarial_part_reaches_the_student),
    (SCM.heads_loss, "real and fake swapped", "fake, self.logits(x_0", "-fake, -self.logits(x_0", patched(test_scm.test_hinge_losses_in_closed_form)),
    (SCM.heads_loss, "levels of its own", 'cond, "heads gan", "real"', 'cond, "real gan", "real"', patched(test_scm.test_hinge_losses_in_closed_form)),
    (RCM.student_loss, "the weight squared", "self.dmd_weight * super()", "self.dmd_weight**2 * super()", mean),
    (RCM.student_loss, "DMD from the first step", ">= self.settings", "> -1 + 0 * self.settings", test_rcm.test_consistency_alone_until_the_fake_score_joins),
    (RCM.generate, "gradient in every step", "i == len(times) - 1", "True", last),
    (RCM.generate, "the noise before again", "noise {i}", "noise 0", last),
    (RCM.simulated_times, "one step less", "% self.max_steps + 1", "% self.max_steps", simulation),
    (RCM.simulated_times, "not falling", "torch.minimum(drawn, times[-1])", "drawn", simulation),
    (RCM.simulated_times, "all steps counted", "self.updates_before(role, self.global_step)", "self.global_step", simulation),
]  # fmt: skip

MUTATIONS = [Mutation(says, function, *rest) for function, says, *rest in (*LOSSES, *TRIG, *METHODS)]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)

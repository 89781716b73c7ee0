"""Tests of the closed-form tests of losses: each fault of the table must be noticed."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
from helpers import PROCESSES
from losses import test_denoising, test_dmd, test_gan, test_mdt, test_sid
from methods import test_sets
from mutations import Mutation, mutated, prove

from distillkit.diffusion import flow
from distillkit.losses import gan, mdt, reduce
from distillkit.losses.denoising import denoising_loss
from distillkit.losses.dmd import dmd_loss, regression_loss
from distillkit.losses.sid import sid_loss

VE = PROCESSES["ve"]
N = "distance_scale(x_g, real, normalise, mask)"  # how the losses ask for their normaliser

sid_mean = partial(test_sid.test_mean_gradient, 1.2, VE)
sid_scale = partial(test_sid.test_scale_gradient, 1.2, 1.7, VE)
sid_value = partial(test_sid.test_value, 0.5)
sid_normaliser = {over: partial(test_sid.test_the_normaliser_is_a_constant_of_each_sample_or_of_the_batch, over, axes)
                  for over, axes in (("sample", (1, 2)), ("batch", (0, 1, 2)))}  # fmt: skip
sid_sets = partial(test_sets.test_losses_of_a_padded_batch_are_the_mean_of_the_samples_alone, sid_loss)
SID = [
    ("the sign of alpha", "- alpha * difference", "+ alpha * difference", sid_value),
    ("alpha left out", "alpha * difference", "difference", sid_value),
    ("alpha taken for 1 - alpha", "- alpha * difference", "- (1 - alpha) * difference", sid_scale),
    ("alpha squared", "alpha * difference", "alpha**2 * difference", sid_value),
    ("teacher and fake score swapped", "real - fake", "fake - real", sid_mean),
    ("both scores stopped: DMD", "difference = real", "real, fake = real.detach(), fake.detach(); difference = real", sid_mean),
    ("their difference stopped", "real - fake", "(real - fake).detach()", sid_scale),
    ("the teacher stopped", "real - fake", "real.detach() - fake", sid_mean),
    ("the fake score stopped", "real - fake", "real - fake.detach()", sid_mean),
    ("the samples stopped", "(real - x_g)", "(real - x_g.detach())", sid_mean),
    ("the second factor's teacher stopped", "(real - x_g)", "(real.detach() - x_g)", sid_mean),
    ("the fake score's distance to the samples", "(real - x_g)", "(fake - x_g)", sid_value),
    ("the normaliser dropped", "if normalise:", "if False:", sid_normaliser["sample"]),
    ("the normaliser squared", N, f"{N} ** 2", sid_normaliser["sample"]),
    ("the normaliser of the fake score", "distance_scale(x_g, real,", "distance_scale(x_g, fake,", sid_normaliser["sample"]),
    ("each sample for the batch", "real, normalise,", "real, 'sample',", sid_normaliser["batch"]),
    ("the batch for each sample", "real, normalise,", "real, 'batch',", sid_normaliser["sample"]),
    ("the mask not in the mean", "mean(loss, mask)", "mean(loss)", sid_sets),
    ("the mask not in the normaliser", "normalise, mask)", "normalise)", sid_sets),
]  # fmt: skip

dmd_mean, dmd_scale = partial(test_dmd.test_mean_gradient, VE), partial(test_dmd.test_scale_gradient, 1.7, VE)
dmd_g = {
    over: partial(test_dmd.test_the_gradient_is_g_over_the_number_of_elements, over) for over in ("sample", "batch")
}
dmd_weight = partial(test_dmd.test_the_weight_multiplies_the_injected_gradient, None)
dmd_sets = partial(test_sets.test_losses_of_a_padded_batch_are_the_mean_of_the_samples_alone, dmd_loss)
DMD = [
    ("teacher and fake score swapped", "fake - real", "real - fake", dmd_mean),
    ("the target on the other side", "target = x_g - g", "target = x_g + g", dmd_mean),
    ("the scores not stopped", "torch.no_grad()", "torch.enable_grad()", partial(test_dmd.test_denoised_samples_are_constants, None)),
    ("the samples stopped", "(x_g - target)", "(0 * x_g + x_g.detach() - target)", dmd_mean),
    ("the half dropped", "0.5 * mean", "mean", dmd_mean),
    ("the distance not squared", "(x_g - target).square()", "(x_g - target).abs()", dmd_scale),
    ("the normaliser dropped", "if normalise:", "if False:", dmd_g["sample"]),
    ("the normaliser squared", N, f"{N} ** 2", dmd_g["sample"]),
    ("the normaliser of the fake score", "distance_scale(x_g, real,", "distance_scale(x_g, fake,", dmd_g["sample"]),
    ("each sample for the batch", "real, normalise,", "real, 'sample',", dmd_g["batch"]),
    ("the batch for each sample", "real, normalise,", "real, 'batch',", dmd_g["sample"]),
    ("the weight dropped", "if weight is not None:", "if False:", dmd_weight),
    ("the weight squared", "expand(weight, g)", "expand(weight, g) ** 2", dmd_weight),
    ("the weight squared, of SwiftBrush", "expand(weight, g)", "expand(weight, g) ** 2", partial(test_dmd.test_the_weight_of_swiftbrush, VE)),
    ("the mask not in the mean", "target).square(), mask)", "target).square())", dmd_sets),
    ("the mask not in the normaliser", "normalise, mask)", "normalise)", dmd_sets),
]  # fmt: skip

huber = test_dmd.test_regression_is_pseudo_huber_per_sample
REGRESSION = [
    ("the root dropped", ".sqrt() - c", " - c", huber),
    ("c not subtracted", ".sqrt() - c)", ".sqrt())", huber),
    ("c not squared", "c**2", "c", huber),
    ("of the batch", "mean_per_sample((x_g - y).square(), mask)", "(x_g - y).square().mean()", huber),
    ("the samples on the wrong side", "(x_g - y)", "(2 * x_g.detach() - x_g - y)", huber),
    ("the mask ignored", ".square(), mask)", ".square())", test_sets.test_the_regression_of_a_padded_batch_is_the_mean_of_the_samples_alone),
]  # fmt: skip

by_hand = test_sets.test_means_are_of_what_is_valid_and_samples_weigh_the_same
SCALE = [
    ("not stopped", ".abs().detach()", ".abs()", test_dmd.test_distance_scale),
    ("a square", ".abs()", ".square()", test_dmd.test_distance_scale),
    ("sample and batch exchanged", 'over == "sample"', 'over == "batch"', test_dmd.test_distance_scale),
    ("zero", ".clamp_min(1e-5)", "", test_dmd.test_distance_scale),
    ("the mask ignored per sample", "mean_per_sample(distance, mask)", "mean_per_sample(distance)", dmd_sets),
    ("the mask ignored over the batch", "else mean(distance, mask)", "else mean(distance)", by_hand),
]  # fmt: skip
MEANS = [
    (reduce.mean, "large samples weigh more", "mean_per_sample(x, mask).mean()", "x[mask].mean()", by_hand),
    (reduce.mean, "the mask ignored", "if mask is None", "if True", by_hand),
    (reduce.mean_per_sample, "divided by all places", "/ valid.sum(dims, keepdim=True)", "/ valid.sum(dims, keepdim=True).new_tensor(valid[0].numel())", by_hand),
    (reduce.mean_per_sample, "over the batch too", "tuple(range(1, x.ndim))", "tuple(range(x.ndim))", test_dmd.test_mean_per_sample_broadcasts_back),
]  # fmt: skip

no_residual, hop = (
    partial(test_mdt.test_no_residual_at_the_exact_jump, VE),
    partial(test_mdt.test_the_fixed_point_of_a_hop_is_the_published_one, 0.1),
)
short_hop = partial(test_mdt.test_a_hop_leaves_a_residual_of_its_own_length, VE)
sample_pull = partial(test_mdt.test_distillation_pulls_samples_back, 0.3, 0.4, 0, -0.117)
back = partial(test_mdt.test_gradient_back_to_the_exact_jump, "scale", 0.5, 0.1429)
guided = partial(test_mdt.test_a_guided_teacher_is_answered_by_the_shifted_jump, 41.0)
MDT = [
    (mdt.residual, "the sign of the derivative, by its gradient", "phi + expand", "phi - expand", back),
    (mdt.residual, "the time scale left out", "expand(tau, phi) * rate", "rate", no_residual),
    (mdt.residual, "the time squared", "expand(tau, phi) * rate", "expand(tau, phi) ** 2 * rate", no_residual),
    (mdt.residual, "1 - tau for tau", "expand(tau, phi) * rate", "expand(1 - tau, phi) * rate", no_residual),
    (mdt.residual, "the derivative left out", "expand(tau, phi) * rate", "0 * rate", no_residual),
    (mdt.residual, "the teacher on the other side", "- v", "+ v", no_residual),
    (mdt.residual, "the guided teacher twice", "- v", "- 2 * v", guided),
    (mdt.pull, "the wrong way", "+ push.detach()", "- push.detach()", test_mdt.test_pull_moves_y_alone),
    (mdt.pull, "the wrong way, of the samples", "+ push.detach()", "- push.detach()", sample_pull),
    (mdt.pull, "the push not stopped", "push.detach()", "push", test_mdt.test_pull_moves_y_alone),
    (mdt.pull, "y not subtracted", "y - y.detach()", "y", test_mdt.test_pull_moves_y_alone),
    (mdt.pull, "y stopped", "y - y.detach()", "0 * y", test_mdt.test_pull_moves_y_alone),
    (mdt.pull, "the mask ignored", ".square(), mask)", ".square())", test_mdt.test_padding_counts_nowhere),
    (mdt.unit_tangent, "the mask ignored", "if mask is None", "if True", test_mdt.test_padding_counts_nowhere),
    (mdt.unit_tangent, "no norm", "rate / expand", "rate + 0 * expand", partial(test_mdt.test_the_released_norm_moves_the_fixed_point_to_collapse, 64)),
    (flow.difference_quotient, "the hop away from the data", "x - delta * v", "x + delta * v", short_hop),
    (flow.difference_quotient, "the time stands still", "tau - delta)", "tau)", short_hop),
    (flow.difference_quotient, "the sample stands still", "x - delta * v", "x", short_hop),
    (flow.difference_quotient, "not over delta", " / delta", "", hop),
    (flow.difference_quotient, "two hops for one", "tau - delta)", "tau - 2 * delta)", short_hop),
    (flow.difference_quotient, "the sign", "(phi - student(x - delta * v, tau - delta))", "(student(x - delta * v, tau - delta) - phi)", short_hop),
    (flow.forward_derivative, "the partial one in tau", "(v, torch", "(0 * v, torch", no_residual),
    (flow.forward_derivative, "the time stands still", "torch.ones_like(tau)", "torch.zeros_like(tau)", no_residual),
    (flow.forward_derivative, "against the ODE", "(v, torch", "(-v, torch", no_residual),
    (flow.flow_velocity, "the sample not scaled", "* x\n", "** 0 * x\n", no_residual),
    (flow.flow_velocity, "not over tau", "/ expand(tau, x)", "", no_residual),
    (flow.flow_velocity, "tau taken for the ratio", "tau / (1 - tau)", "tau", no_residual),
]  # fmt: skip

signs, hinge = test_gan.test_signs_and_values, test_gan.test_the_hinge_discriminator_pulls_within_its_margin_alone
published_student, published_fake = (
    test_gan.test_the_students_loss_is_the_published_one_times_a_constant,
    test_gan.test_the_discriminators_loss_is_the_published_one_times_a_constant,
)
GAN = [
    (gan.generator_loss, "the student wants to be found out", "-fake_logits", "fake_logits", test_gan.test_generator_gradient_on_the_mean),
    (gan.generator_loss, "saturating", "softplus(-fake_logits).mean()", "-softplus(fake_logits).mean()", test_gan.test_generator_gradient_on_the_mean),
    (gan.discriminator_loss, "real and fake swapped", "softplus(fake_logits).mean() + softplus(-real_logits)", "softplus(-fake_logits).mean() + softplus(real_logits)", test_gan.test_the_discriminators_optimum_is_the_log_ratio),
    (gan.discriminator_loss, "real samples left out", "softplus(-real_logits)", "0 * real_logits", signs),
    (gan.discriminator_loss, "fake samples twice", "softplus(fake_logits)", "2 * softplus(fake_logits)", test_gan.test_the_discriminators_optimum_is_the_log_ratio),
    (gan.hinge_generator_loss, "the sign", "-fake_logits", "fake_logits", test_gan.test_the_hinge_generators_gradient_on_the_mean),
    (gan.hinge_discriminator_loss, "the margin of the fake", "1 + fake_logits", "fake_logits", hinge),
    (gan.hinge_discriminator_loss, "the margin of the real", "1 - real_logits", "-real_logits", hinge),
    (gan.hinge_discriminator_loss, "real and fake swapped", "relu(1 + fake_logits).mean() + relu(1 - real_logits)", "relu(1 - fake_logits).mean() + relu(1 + real_logits)", hinge),
    (gan.r1_penalty, "not differentiable", "gradient.flatten(1).square()", "(gradient.detach() + 0 * gradient).flatten(1).square()", test_gan.test_r1_is_the_mean_squared_gradient_at_real_samples),
    (gan.r1_penalty, "a mean over elements", ".square().sum(1)", ".square().mean(1)", test_gan.test_r1_is_the_mean_squared_gradient_at_real_samples),
    (gan.r1_penalty, "not squared", ".square()", ".abs()", test_gan.test_r1_of_several_inputs_is_their_sum),
    (gan.sida_generator_loss, "the normaliser dropped", "(1 / scale).mean() * ", "", published_student),
    (gan.sida_generator_loss, "the mean's inverse for the inverse's mean", "(1 / scale).mean()", "1 / scale.mean()", published_student),
    (gan.sida_generator_loss, "the normaliser squared", "(1 / scale)", "(1 / scale**2)", published_student),
    (gan.sida_generator_loss, "not clipped", "fake_logits.clamp(-clamp, clamp)", "fake_logits", published_student),
    (gan.sida_discriminator_loss, "the half dropped", " / 2", "", published_fake),
    (gan.sida_discriminator_loss, "the number of elements dropped", "weight / counted.flatten(1).sum(1).clamp_min(1)", "weight", published_fake),
    (gan.sida_discriminator_loss, "the weight squared", "(weight / counted", "(weight**2 / counted", published_fake),
    (gan.sida_discriminator_loss, "the mask ignored", "if mask is None", "if True", test_gan.test_of_sets_the_discriminator_counts_what_the_mask_shows),
]  # fmt: skip

minimum = partial(test_denoising.test_value_at_the_minimum, "eps", test_denoising.RATIO**-2, VE)
DENOISING = [
    ("the data not stopped", "x_0.detach()", "x_0", test_denoising.test_clean_samples_are_constants),
    ("the weight dropped", "expand(denoiser.loss_weight(t), error) * ", "", minimum),
    ("the weight squared", "expand(denoiser.loss_weight(t), error)", "expand(denoiser.loss_weight(t), error) ** 2", minimum),
    ("the noise as target", "(x_t, t, cond) - x_0", "(x_t, t, cond) - eps", partial(test_denoising.test_the_posterior_mean_is_the_minimiser, "x0", VE)),
    ("the noised sample as target", "(x_t, t, cond) - x_0", "(x_t, t, cond) - x_t", partial(test_denoising.test_the_posterior_mean_is_the_minimiser, "x0", VE)),
    ("not squared", "error.square()", "error.abs()", minimum),
    ("the guided call not asked", "(denoise or denoiser)", "denoiser", test_denoising.test_a_guided_call_can_take_its_place),
    ("the mask ignored", 'cond.get("mask")', "None", test_sets.test_denoising_loss_of_a_padded_batch_is_the_mean_of_the_samples_alone),
]  # fmt: skip

MUTATIONS = [
    *(Mutation(says, sid_loss, *rest) for says, *rest in SID),
    *(Mutation(says, dmd_loss, *rest) for says, *rest in DMD),
    *(Mutation(says, regression_loss, *rest) for says, *rest in REGRESSION),
    *(Mutation(says, reduce.distance_scale, *rest) for says, *rest in SCALE),
    *(Mutation(says, denoising_loss, *rest) for says, *rest in DENOISING),
    *(Mutation(says, function, *rest) for function, says, *rest in (*MEANS, *MDT, *GAN)),
]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)


def test_a_mutation_of_code_that_has_changed_is_an_error():
    """Otherwise it would change nothing and prove nothing; and what was exchanged is put back."""
    for old in ("no such words", "real"):
        with pytest.raises(ValueError, match="stands . times in sid_loss, not once: make the mutation anew"):
            prove(Mutation("", sid_loss, old, "", lambda: None))
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        prove(Mutation("nobody looks", sid_loss, "real - fake", "fake - real", lambda: None))
    code = sid_loss.__code__
    with mutated(sid_loss, "real - fake", "fake - real"):
        assert sid_loss.__code__ is not code
    assert sid_loss.__code__ is code

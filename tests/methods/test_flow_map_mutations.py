"""Tests of the tests of MeanFlow and TwinFlow: each fault must be noticed."""

# ruff: noqa: E501 (a fault is a row of a table)

from functools import partial

import pytest
from helpers import PROCESSES
from losses import test_flow_map as losses
from methods import test_flow_map as flow_map
from methods import test_twinflow as twinflow
from mutations import Mutation, prove

from distillkit.diffusion.process import RectifiedFlow
from distillkit.losses.flow_map import adaptive_weight, hop_residual, jump, rectifying, span_weight, weighted_pull
from distillkit.methods.flow_map import FlowMap
from distillkit.methods.twinflow import TwinFlow, on_side


def patched(test, *args):
    """A test that asks for `monkeypatch`, which is undone when it ends."""

    def check():
        with pytest.MonkeyPatch.context() as monkeypatch:
            test(*args, monkeypatch=monkeypatch)

    return check


FLOW = RectifiedFlow()
exact = partial(flow_map.test_nothing_pulls_at_the_exact_map, FLOW, (0.25, 0.5))
by_jvp, by_hop = (
    partial(flow_map.test_the_bare_velocity_alone_is_differentiated, *case) for case in (("jvp", 1), ("quotient", 3))
)
matching = flow_map.test_to_the_datum_it_is_velocity_matching
agree = flow_map.test_both_tangents_agree_on_attention
at_level = patched(flow_map.test_at_the_level_itself_it_is_regression_on_the_teacher)
spans = partial(flow_map.test_levels_and_ends, PROCESSES["flow"])
hop, size, fits = (
    partial(losses.test_a_hop_leaves_a_residual_of_its_own_length, 2),
    partial(losses.test_the_size_of_that_residual, 0.01),
    losses.test_a_hop_that_does_not_fit_ends_at_the_end,
)
loss, pulled = (
    losses.test_the_value_and_the_gradient_of_the_loss,
    partial(losses.test_the_rectification_pulls_the_mean_to_the_teacher, 0.4, False, 1.80),
)
guided = patched(flow_map.test_guidance_reaches_the_teacher)
told, parts, sample = (
    twinflow.test_what_each_row_is_told,
    twinflow.test_the_loss_is_the_sum_of_its_parts,
    twinflow.test_the_rectification_moves_the_sample_alone,
)
closed = partial(twinflow.test_the_rectification_in_closed_form, FLOW, "own")
rows = partial(twinflow.test_the_rows_of_the_map, PROCESSES["flow"])
labels = twinflow.test_the_rows_keep_their_conditions
own = twinflow.test_the_own_side_is_fitted_to_the_mean
FAULTS = [
    # losses
    (jump, "upwards", "x - expand", "x + expand", losses.test_jumps_in_a_row_are_one_jump),
    (hop_residual, "sign", "(after - jump(x, tau, r, u))", "(jump(x, tau, r, u) - after)", size),
    (hop_residual, "the edge not seen", "expand(tau - r > hop, u)", "expand(tau - r > 0, u)", fits),
    (hop_residual, "over the whole way", "expand(length, u)", "expand(tau - r, u)", size),
    (adaptive_weight, "not stopped", "R.detach()", "R", losses.test_the_adaptive_weight),
    (adaptive_weight, "squared", "-power", "-2 * power", losses.test_the_adaptive_weight),
    (adaptive_weight, "the mask not handed on", "mask)", "None)", losses.test_the_adaptive_weight),
    (span_weight, "long ways", "(1 - (tau - r))", "(tau - r)", losses.test_short_ways_weigh_more),
    (weighted_pull, "the target not stopped", "y - y.detach()", "y - y", loss),
    (weighted_pull, "R not stopped", "push.detach()", "push", loss),
    (weighted_pull, "the weight not stopped", "weight.detach()", "weight", loss),
    (weighted_pull, "sign", "+ push", "- push", loss),
    (weighted_pull, "the weight squared", "weight.detach() *", "weight.detach() ** 2 *", loss),
    (rectifying, "sides swapped", "own - data", "data - own", pulled),
    (rectifying, "not stopped", ".detach()", "", losses.test_the_rectification_is_clamped_and_constant),
    (rectifying, "not clamped", ".clamp(-clamp, clamp)", "", losses.test_the_rectification_is_clamped_and_constant),
    # MeanFlow
    (FlowMap.matching, "u not differentiated", "self.average_velocity(cond, r)(x, tau)", "(1 + 0 * self.average_velocity(cond, r)(x, tau)) * self.average_velocity(cond, r)(x, tau).detach()", matching),
    (FlowMap.matching, "the wrong way", "R = u - v", "R = v - u", at_level),
    (FlowMap.matching, "no derivative", "instant < len(x)", "instant > len(x)", exact),
    (FlowMap.matching, "a row late", "slice(instant, None)", "slice(instant + 1, None)", by_jvp),
    (FlowMap.matching, "data turned round", "eps - x_0", "x_0 - eps", flow_map.test_the_velocity_of_the_data_asks_no_teacher),
    (FlowMap.matching, "the weight left out", "adaptive_weight(R, self.power", "adaptive_weight(R, 0.0", by_jvp),
    (FlowMap.matching, "spans not weighed", "if self.weigh_span", "if False", flow_map.test_clamp_and_span_weight_reach_the_loss),
    (FlowMap.matching, "not clamped", "R if self.clamp is None else", "R if True else", flow_map.test_clamp_and_span_weight_reach_the_loss),
    (FlowMap.residual, "the whole tau", "v, tau - r)\n    else", "v, tau)\n    else", exact),
    (FlowMap.residual, "the sign of the tangent", "residual(u, rate", "residual(u, -rate", exact),
    (FlowMap.residual, "the hop upwards", "x - expand(hop, x) * v", "x + expand(hop, x) * v", agree),
    (FlowMap.residual, "the warm-up turned round", "self.global_step / self.tangent_warmup", "1 - self.global_step / self.tangent_warmup", partial(flow_map.test_the_derivatives_part_rises, 0, 0.0)),
    (FlowMap.chain, "a jump too many", "self.order - 1, -1, -1", "self.order - 1, 0, -1", agree),
    (FlowMap.average_velocity, "not told the end", "END: end", "END: 0 * end", at_level),
    (FlowMap.average_velocity, "under autocast", "enabled=False", "enabled=torch.is_autocast_enabled('cpu')", flow_map.test_nothing_is_differenced_under_autocast),
    (FlowMap.ode_velocity, "kappa off by one", 'cond.get("kappa", self.kappa)', 'cond.get("kappa", self.kappa) + 1', guided),
    (FlowMap.ode_velocity, "kappa left out", ", null, kappa)", ", null, 1.0)", guided),
    (FlowMap.spans, "ends above", "torch.maximum(one, other), torch.minimum(one, other)", "torch.minimum(one, other), torch.maximum(one, other)", spans),
    (FlowMap.spans, "the share left out", "self.instant, ", "0.0, ", spans),
    (FlowMap.spans, "not the datum", "0 * r[num", "r[num", spans),
    (FlowMap.mapped, "not mapped", "self.low + (self.last - self.low) * share", "share", partial(flow_map.test_levels_are_the_papers_logit_normal_mapped_onto_the_students_range, 2.0)),
    # TwinFlow
    (on_side, "sides swapped", "side, device", "1 - side, device", told),
    (TwinFlow.student_loss, "the rows swapped", "cond, own = rows(cond, slice(num - fake)), rows(cond, slice(num - fake, None))", "own, cond = rows(cond, slice(fake)), rows(cond, slice(fake, None))", labels),
    (TwinFlow.student_loss, "rows do not count alike", "(1 - fake / num) *", "", parts),
    (TwinFlow.student_loss, "the weight left out", "self.rectify * self", "1.0 * self", parts),
    (TwinFlow.student_loss, "a step late", ">= self.rectify_start", "> self.rectify_start", partial(twinflow.test_the_rectification_counts_from_its_start_on, 3)),
    (TwinFlow.student_loss, "no own side", "fake / num * self.own_side", "0.0 * self.own_side", parts),
    (TwinFlow.own_side, "on the side of data", "on_side(1, cond, tau)", "on_side(0, cond, tau)", own),
    (TwinFlow.own_side, "the target turned round", "eps - x_g", "x_g - eps", own),
    (TwinFlow.rectification, "the noised sample not stopped", "torch.no_grad()", "torch.enable_grad()", told),
    (TwinFlow.rectification, "the sides swapped", "rectifying(own, data,", "rectifying(data, own,", closed),
    (TwinFlow.rectification, "one side alone", "on_side(1, cond, tau)", "on_side(0, cond, tau)", closed),
    (TwinFlow.rectification, "the weight left out", "adaptive_weight(push, self.rectify_power", "adaptive_weight(push, 0.0", sample),
    (TwinFlow.own_samples, "on the side of own samples", "on_side(0, cond, x_t)", "on_side(1, cond, x_t)", told),
    (TwinFlow.own_samples, "not to the datum", "x_t.new_zeros(num)", "x_t.new_ones(num)", told),
    (TwinFlow.spans, "the whole way not whole", "self.last, 0", "self.last, 0.1", rows),
    (TwinFlow.spans, "short ways long", ".clamp_max(SHORT)", "", rows),
    (TwinFlow.spans, "shares of the map, not of all", "self.short / (1 - self.fake)", "self.short", rows),
]  # fmt: skip


@pytest.mark.parametrize("mutation", [Mutation(says, function, *rest) for function, says, *rest in FAULTS], ids=str)
def test_the_fault_is_noticed(mutation):
    prove(mutation)

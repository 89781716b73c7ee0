"""REINFORCE with leave-one-out baselines: its expectation is the gradient of the mean reward."""

import itertools

import pytest
import torch
from helpers import f64

from distillkit.losses.bandit import reinforce

LOGITS, REWARDS = f64(0.3, -0.8, 0.5), f64(-2.0, 1.0, 0.25)


def enumerated(num, rewards=REWARDS):
    """The gradient in the logits, averaged over all draws of `num` actions by their probability."""
    logits = LOGITS.clone().requires_grad_()
    draws = torch.tensor([*itertools.product(range(3), repeat=num)])
    loss = reinforce(logits.log_softmax(0).expand(len(draws), 3), draws, rewards[draws])
    likely = LOGITS.softmax(0)[draws].prod(1)
    return torch.autograd.grad((likely * loss).sum(), logits)[0]


@pytest.mark.parametrize("num", [2, 3])
def test_its_expectation_is_the_gradient_of_the_mean_reward(num):
    """`d/dl_k sum_a pi_a r_a = pi_k (r_k - sum_a pi_a r_a)` of a softmax, and it climbs."""
    pi = LOGITS.softmax(0)
    expected = -pi * (REWARDS - (pi * REWARDS).sum())
    torch.testing.assert_close(enumerated(num), expected)
    assert enumerated(num)[1] < 0  # descent raises the logit of the best action


def test_what_all_rewards_share_leaves_every_single_draw():
    logits, draws = LOGITS.log_softmax(0)[None], torch.tensor([[0, 2]])
    apart, same = (reinforce(logits, draws, REWARDS[draws] + shift) for shift in (0.0, 100.0))
    torch.testing.assert_close(apart, same)
    assert not reinforce(logits, draws, torch.full((1, 2), 7.0)).any()


def test_the_baseline_of_a_draw_is_the_mean_of_the_others():
    """Which the expectation does not tell: it is the same with any baseline of the state."""
    log = LOGITS.log_softmax(0)
    two = reinforce(log[None], torch.tensor([[0, 1]]), REWARDS[None, :2])
    torch.testing.assert_close(two, -(-3.0 * log[0] + 3.0 * log[1])[None] / 2)
    three = reinforce(log[None], torch.tensor([[0, 1, 2]]), REWARDS[None])
    apart = f64(-2.0 - 1.25 / 2, 1.0 - -1.75 / 2, 0.25 - -1.0 / 2)
    torch.testing.assert_close(three, -(apart * log).mean()[None])


def test_rewards_are_constants():
    rewards = REWARDS[None, :2].clone().requires_grad_()
    loss = reinforce(LOGITS.log_softmax(0)[None].clone().requires_grad_(), torch.tensor([[0, 1]]), rewards)
    assert torch.autograd.grad(loss.sum(), rewards, allow_unused=True) == (None,)

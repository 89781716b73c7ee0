"""The policy gradient of contextual bandits: REINFORCE (Williams 1992) with baselines."""

from __future__ import annotations

from torch import Tensor


def reinforce(log_policy: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
    """`- mean_i (r_i - b_i) log pi(a_i)`, b_i the mean reward of the state's other actions, [B].

    Its gradient is an unbiased estimate of that of `- sum_a pi(a) r(a)`, since b_i does not depend
    on a_i (Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"). What all rewards
    of a state have in common leaves it.

    Args:
        log_policy: log-probabilities of the K actions in each state, [B, K].
        actions: n of them drawn from the policy, with replacement, int64 [B, n]; n is at least 2.
        rewards: of these actions, [B, n]; constants.
    """
    num = actions.shape[1]
    rewards = rewards.detach()
    baseline = (rewards.sum(1, keepdim=True) - rewards) / (num - 1)
    return -((rewards - baseline) * log_policy.gather(1, actions)).mean(1)

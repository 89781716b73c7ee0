"""The network passes of a run by role, counted as they happen."""

from __future__ import annotations

import time
from typing import Any


class Passes:
    """Counts how many samples go through the networks, with hooks that cost microseconds.

    A pass is one sample through one denoiser, that of the teacher or one that is trained; what asks
    for features alone is not counted. Between `begin` and `end` it belongs to a role.

    Args:
        model: the method in training.
        batch_size: samples of a micro-batch.
    """

    def __init__(self, model: Any, batch_size: int):
        owned = [getattr(model, name) for names in model.roles.values() for name in names]
        teacher = getattr(model, "teacher", None)
        denoisers = [teacher.denoiser] if hasattr(teacher, "denoiser") else []
        denoisers += [module for module in owned if hasattr(module, "network")]
        self.batch_size, self.calls, self.seconds, self.begun = batch_size, 0, 0.0, 0.0
        self.role = next(iter(model.roles))
        self.by_role = {role: [0, 0] for role in model.roles}  # passes, micro-batches
        self.hooks = [denoiser.register_forward_pre_hook(self.counter(), with_kwargs=True) for denoiser in denoisers]

    def counter(self) -> Any:
        """A hook: a function, which copies of a module share."""

        def count(module: Any, inputs: tuple, named: dict[str, Any]) -> None:
            self.calls += len(next(iter((*inputs, *named.values()))))

        return count

    def begin(self, role: str) -> None:
        """A micro-batch of the role begins."""
        self.role, self.calls, self.begun = role, 0, time.monotonic()

    def end(self) -> None:
        """The micro-batch has ended."""
        entry = self.by_role[self.role]
        entry[0] += self.calls
        entry[1] += 1
        self.seconds += time.monotonic() - self.begun

    def facts(self) -> dict[str, float]:
        """The counts by name.

        `passes_per_second` is that of training steps, `passes_ROLE` the number of passes for each
        sample of a batch in a step of the role.
        """
        facts = {"passes_per_second": sum(calls for calls, _ in self.by_role.values()) / max(self.seconds, 1e-9)}
        for role, (calls, batches) in self.by_role.items():
            if batches:
                facts[f"passes_{role}"] = calls / (batches * self.batch_size)
        return facts

    def remove(self) -> None:
        """Takes the hooks away."""
        for hook in self.hooks:
            hook.remove()

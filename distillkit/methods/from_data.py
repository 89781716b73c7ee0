"""The base of methods that have no teacher: a network of the run's own is fitted to data."""

from __future__ import annotations

from torch import Tensor, nn

from distillkit import checks
from distillkit.codec import Codec
from distillkit.diffusion.denoiser import Cond
from distillkit.methods.base import Adam, Distiller
from distillkit.methods.refusals import check_sizes, check_tokens
from distillkit.rollouts import Continuation
from distillkit.spec import Recorded


class FromData(Distiller):
    """A method whose only role `student` trains a new denoiser on data; there is no teacher.

    Args:
        denoiser: the denoiser to train.
        event_shape: shape of one sample in the space of the diffusion.
        classes: categorical conditions, `{batch key: number of classes}`.
        context: batch keys of further conditions, see `BaseTeacher`.
        codec: the map between data and the space of the diffusion; None means they are the same.
        continuation: how a sample of the product follows another; None means that samples do not
            follow each other.
        student: optimiser of the network, whose role is called `student` as in every method.

    Raises:
        ValueError: the network is made for another shape.
    """

    requires = frozenset({"data"})

    def __init__(
        self,
        denoiser: nn.Module,
        event_shape: list[int],
        classes: dict[str, int] | None = None,
        context: list[str] | None = None,
        codec: Codec | None = None,
        continuation: Continuation | None = None,
        student: Adam = Adam(lr=1e-3),
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.whole(1, event_shape=event_shape, classes=classes or {})
        check_made_for(denoiser.network, event_shape)
        self.event_shape, self.classes, self.context = tuple(event_shape), dict(classes or {}), tuple(context or ())
        self.codec, self.continuation = codec or Codec(), continuation
        self.add_role("student", student, student=denoiser)
        self.keep_ema()

    def condition(self, batch: dict[str, Tensor]) -> Cond:
        return {name: batch[name] for name in (*self.classes, *self.context)}

    def check(self, data) -> None:
        if tuple(data.event_shape) != (made := self.codec.data_shape(self.event_shape)):
            raise ValueError(
                f"the data have shape {tuple(data.event_shape)}, the network expects {made}: set "
                f"vars.event_shape=[{','.join(map(str, data.event_shape))}]"
            )
        check_tokens(self.student.process, data)
        if lacking := sorted(set(self.context) - set(data.context)):
            raise ValueError(f"vars.context says {', '.join(lacking)}, which these data do not have")
        check_sizes(self, data)
        self.codec.check(data)


def check_made_for(network: nn.Module, event_shape: list[int]) -> None:
    """Refuse a network that was made for samples of another shape."""
    made_for = network.recorded().get("event_shape", event_shape) if isinstance(network, Recorded) else event_shape
    if tuple(made_for) != tuple(event_shape):
        raise ValueError(
            f"the network is made for event_shape {list(made_for)}, the run has {list(event_shape)}: say it once, with "
            f"vars.event_shape"
        )

"""What a saliency is."""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pennyweight.core import Format, Registry, Stats
from pennyweight.formats.rounding import round_to_nearest


@runtime_checkable
class Saliency(Protocol):
    """A score of each weight. Rows are independent; only the order of scores means anything."""

    needs: ClassVar[frozenset[str]]  # the fields of Stats it reads
    source: ClassVar[str]  # where it is described

    def __call__(
        self, weight: Float[Tensor, "out in"], format: Format, stats: Stats
    ) -> Float[Tensor, "out in"]:
        """The larger, the more is lost when this weight is stored in `format`. Raises
        NumericalError if what it needs was not observed. Must not modify its arguments."""
        ...


def squared_rounding_error(
    weight: Float[Tensor, "out in"], format: Format
) -> Float[Tensor, "out in"]:
    """dq^2: what plain rounding would do to each weight."""
    return (weight - round_to_nearest(weight, format).dequantize()).square_()


SALIENCIES: Registry[type[Saliency]] = Registry("saliency")
saliency = SALIENCIES.register

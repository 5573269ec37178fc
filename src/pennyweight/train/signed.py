"""Steps along the sign of the gradient: every parameter moves by its rate, which falls to zero."""

from collections.abc import Mapping

from torch import Tensor


class SignDescent:
    """SignSGD with rates that fall linearly from their first value to 0 after `steps` steps."""

    def __init__(self, values: Mapping[str, Tensor], rates: Mapping[str, float], steps: int):
        """values: changed in place by each step, where they have a gradient."""
        self.values, self.rates, self.steps, self.taken = values, rates, steps, 0

    def step(self) -> None:
        left = max(1 - self.taken / self.steps, 0.0)
        for name, value in self.values.items():
            if value.grad is not None:
                value.sub_(value.grad.sign(), alpha=self.rates[name] * left)
        self.taken += 1

    def zero_grad(self) -> None:
        for value in self.values.values():
            value.grad = None

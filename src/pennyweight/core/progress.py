"""How a long run tells its caller where it is. Silent unless the caller passes something louder."""


class Progress:
    """The silent progress. A caller that wants to see more overrides what it wants to show."""

    def begin(self, *, blocks: int, done: int, linears: int) -> None:
        """`blocks` in the model, `done` of them finished by an earlier run, `linears` still to
        do."""

    def linear(self, *, block: int, name: str, loss: float, metric: str) -> None:
        """One linear is quantized; loss is relative squared error, metric says of what."""

    def block(self, *, index: int, peak_bytes: int) -> None:
        """Block `index` is a finished file."""

    def measured(self, what: str, *, done: int, total: int) -> None:
        """`done` of `total` measurements of one kind are made; `what` came out of the last."""

    def say(self, message: str) -> None:
        """A line that the user should see: a warning, a fallback taken, a phase that begins."""

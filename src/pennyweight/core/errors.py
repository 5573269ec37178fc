"""One exception tree. The CLI prints these without a traceback; anything else is a bug."""


class PennyweightError(Exception):
    """Base class of every error a user can cause or fix."""


class RecipeError(PennyweightError):
    """The recipe is wrong: an unknown key, an unused rule, an impossible combination."""


class UnknownNameError(PennyweightError):
    """No quantizer, format, transform, ... of that name."""


class FormatError(PennyweightError):
    """A tensor does not fit the number format asked for."""


class CheckpointError(PennyweightError):
    """A file is missing, truncated, or belongs to another model or plan."""


class UnsupportedError(PennyweightError):
    """What is asked for cannot be done with this model, file or device."""


class NumericalError(PennyweightError):
    """The mathematics failed: a singular Hessian, a non-finite value."""


class DataError(PennyweightError):
    """A calibration or evaluation text cannot be used."""


class BudgetError(PennyweightError):
    """No plan is inside the budget, or the budget cannot be told from noise."""

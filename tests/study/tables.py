"""A table of sensitivities by hand, for the tests of plans."""

from pennyweight.study.sensitivity.table import Loss, Sensitivity, UnitLoss

BITS = {"W4A16_g32": 4.5, "W8A16_g32": 8.5, "W16A16": 16}
LOSSES = {"W4A16_g32": 0.01, "W8A16_g32": 0.0001, "W16A16": 0.0}


def unit(name: str, parameters: int = 1000, times: float = 1.0, tensors=None) -> UnitLoss:
    options = {
        scheme: Loss(value=times * loss, lower=None, upper=None,
                     stored_bits=int(BITS[scheme] * parameters))
        for scheme, loss in LOSSES.items()
    }  # fmt: skip
    return UnitLoss(
        name=name, kind=name, tensors=tensors or (f"{name}.weight",), parameters=parameters,
        options=options,
    )  # fmt: skip


def table(*units: UnitLoss) -> Sensitivity:
    return Sensitivity(
        model="toy", fingerprint="f", data="d", quantizer="rtn", estimator="direct",
        granularity="fused", units=units,
    )  # fmt: skip

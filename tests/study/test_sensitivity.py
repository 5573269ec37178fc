"""The file of a table: it comes back as it was, and what is no table is refused."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.core import CheckpointError, NumericalError
from pennyweight.study.sensitivity.table import Loss, Sensitivity, UnitLoss


def unit(name="a", tensors=("a.weight",), **losses) -> UnitLoss:
    none = Loss(value=0.0, lower=0.0, upper=0.0, stored_bits=160)
    return UnitLoss(
        name=name, kind="a", tensors=tensors, parameters=10, options={**losses, "W16A16": none}
    )


def table(*units: UnitLoss) -> Sensitivity:
    return Sensitivity(
        model="m", fingerprint="f", data="d", quantizer="rtn", estimator="direct",
        granularity="matmul", settings={"seed": 0}, units=units or (unit(),),
    )  # fmt: skip


finite = st.floats(allow_nan=False, allow_infinity=False)
losses = st.builds(
    Loss, value=finite, lower=st.none() | finite, upper=st.none() | finite,
    stored_bits=st.integers(0, 2**50),
)  # fmt: skip


@given(st.lists(st.dictionaries(st.sampled_from(["W3A16", "W4A16", "W8A8"]), losses), min_size=1))
def test_a_file_comes_back_as_it_was(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("table") / "sense.json"
    before = table(*(unit(f"u{i}", (f"{i}.weight",), **each) for i, each in enumerate(found)))
    before.dump(path)
    after = Sensitivity.load(path)
    assert after == before
    assert after.parameters == 10 * len(found)
    assert set(after.schemes) == {"W16A16"}.union(*found)


def test_the_same_table_gives_the_same_bytes(tmp_path):
    some = Loss(value=0.1, lower=0.0, upper=0.2, stored_bits=40)
    table(unit(W4A16=some, W8A8=some)).dump(tmp_path / "a")
    table(unit(W8A8=some, W4A16=some)).dump(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def broken(path, change) -> None:
    table().dump(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(version=2),
            "expected a sensitivity file of version 1, found version 2",
        ),
        (lambda d: d.pop("version"), "found version None"),
        (lambda d: d.pop("fingerprint"), "fingerprint: Field required"),
        (lambda d: d.update(units=[]), "units: expected at least one"),
        (lambda d: d["units"].append(d["units"][0]), "a.weight is in two units, a and a"),
        (lambda d: d["units"][0]["options"].clear(), "a: options: W16A16 is missing"),
        (lambda d: d["units"][0].update(parameters=-1), "a: W16A16: a size below 0"),
        (
            lambda d: d["units"][0]["options"]["W16A16"].update(value="much"),
            "units.0.options.W16A16.value: Input should be a valid number",
        ),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, change, message):
    broken(path := tmp_path / "sense.json", change)
    with pytest.raises(CheckpointError, match=message):
        Sensitivity.load(path)


def test_nan_in_an_edited_file_names_the_unit(tmp_path):
    options = lambda data: data["units"][0]["options"]["W16A16"]
    broken(path := tmp_path / "sense.json", lambda d: options(d).update(value=math.nan))
    with pytest.raises(NumericalError, match="a: the loss under W16A16 is nan"):
        Sensitivity.load(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="no such file; `pennyweight sense MODEL -o"):
        Sensitivity.load(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("[1")
    with pytest.raises(CheckpointError, match="not a sensitivity file"):
        Sensitivity.load(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(CheckpointError, match="version None"):
        Sensitivity.load(tmp_path / "b.json")


def test_a_table_of_another_model_is_refused():
    table().require_model("f", "sense.json")
    with pytest.raises(CheckpointError, match=r"sense\.json: .* measured on other weights"):
        table().require_model("g", "sense.json")

"""The verb from a request to a file: complete, repeatable, resumable; and what it refuses."""

import math
from dataclasses import replace

import pytest

from pennyweight.core import (
    CheckpointError,
    FormatError,
    NumericalError,
    Progress,
    RecipeError,
    UnknownNameError,
)
from pennyweight.evaluate import Settings
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.records import Store
from pennyweight.study.bank import Ingredients
from pennyweight.study.sensitivity import sensing
from pennyweight.study.sensitivity.estimators import ESTIMATORS, direct
from pennyweight.study.sensitivity.estimators.base import Estimate
from pennyweight.study.sensitivity.sense import Places, ratio, sense, spearman
from pennyweight.study.sensitivity.sensing import Request
from pennyweight.study.sensitivity.table import Sensitivity
from tests.study.benches import request

SCHEMES = ("W3A16_g32", "W8A8")


@pytest.fixture
def asked(tiny_llama, token_file) -> Request:
    return request(tiny_llama, token_file, schemes=SCHEMES, granularity="layer")


def places(folder, **changes) -> Places:
    return Places(output=folder / "sense.json", **changes)


def test_the_file_holds_every_unit_under_every_scheme(asked, tiny_llama, tmp_path):
    table, comparison = sense(asked, places(tmp_path), threads=1)
    assert comparison is None and Sensitivity.load(tmp_path / "sense.json") == table
    assert table.fingerprint == Checkpoint.open(tiny_llama).fingerprint
    assert (table.estimator, table.quantizer, table.metric) == ("direct", "rtn", "kl_nats")
    assert [unit.name for unit in table.units] == ["model.layers.0", "model.layers.1"]
    # q 64 x 64, k and v 32 x 64, o 64 x 64, and three of 64 x 96
    assert {unit.parameters for unit in table.units} == {4 * 64 * 64 - 64 * 64 + 3 * 64 * 96}
    for unit in table.units:
        assert tuple(unit.options) == (*SCHEMES, "W16A16")
        for scheme in SCHEMES:
            loss = unit.options[scheme]
            assert 0 < loss.lower < loss.value < loss.upper
        assert unit.options["W16A16"].value == 0.0
        assert unit.options["W16A16"].stored_bits == 32 * unit.parameters
    assert [path.name for path in tmp_path.iterdir()] == ["sense.json"]


def test_hours_are_told_beforehand(asked, tmp_path, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, message: told.append(message))
    monkeypatch.setattr(sensing, "LONG_S", 0.0)
    sense(asked, places(tmp_path), threads=1)
    (line,) = [line for line in told if "at the pace of the first" in line]
    assert line.startswith("direct: some 0.0 hours") and "fisher or output_error take" in line


def test_interrupted_it_continues_and_ends_with_the_same_bytes(asked, tmp_path, monkeypatch):
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    sense(asked, places(tmp_path / "whole"), threads=2)
    original, count = direct.Direct.__call__, []

    def interrupted(self, bench, wanted):
        for one in original(self, bench, wanted):
            count.append(one)
            yield one
            if len(count) == 3:  # the third is a record, and the fourth was not begun
                raise KeyboardInterrupt

    monkeypatch.setattr(direct.Direct, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sense(asked, places(tmp_path / "broken"), threads=1)
    assert not (tmp_path / "broken" / "sense.json").exists()
    sense(asked, places(tmp_path / "broken"), threads=1)
    assert len(count) == 4  # two units, two schemes, each once
    files = [tmp_path / name / "sense.json" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_records_and_bank_are_used_again(asked, tmp_path, monkeypatch):
    by_products = {"bank": tmp_path / "bank", "records": tmp_path / "records.sqlite"}
    table, _ = sense(asked, places(tmp_path, **by_products), threads=1)
    found = Store.open(by_products["records"]).find(study="sense", metric="kl_nats")
    assert [r.value for r in found] == [
        unit.options[scheme].value for unit in table.units for scheme in SCHEMES
    ]
    assert all(r.confidence == 0.95 and r.data == table.data and r.plan for r in found)
    monkeypatch.setattr(direct.Direct, "__call__", None)  # calling it would be an error
    (tmp_path / "again").mkdir()
    again, _ = sense(asked, places(tmp_path / "again", **by_products), threads=1)
    assert again == table
    assert len(Store.open(by_products["records"]).find()) == len(found)


def test_the_comparison(tiny_llama, token_file, tmp_path):
    asked = request(tiny_llama, token_file, schemes=("W3A16_g32", "W4A16_g32"), granularity="fused")
    table, comparison = sense(asked, places(tmp_path), compared=True, threads=1)
    found = {one.estimator: one for one in comparison.rankings}
    assert found.keys() == set(ESTIMATORS)
    assert found["direct"].spearman == pytest.approx(1.0)
    assert found["direct"].spread == 1.0
    assert found["direct"].forward_passes == 16  # 8 units, 2 schemes
    assert "observes no inputs" in found["output_error"].refused
    for name in ("fisher", "linearity"):
        assert found[name].spearman > 0.6  # 16 pairs without any relation: above 0.6 in 1 of 140
        assert found[name].forward_passes < 16 / 2
    for one in comparison.additivity:
        losses = [unit.options[one.scheme].value for unit in table.units]
        assert one.sum == pytest.approx(sum(losses), rel=1e-12)
        assert one.together.low < one.together.value < one.together.high
    assert comparison.to_dict()["additivity"][0]["scheme"] == "W3A16_g32"


def test_rank_and_scale_by_hand():
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert spearman([(1.0, 10.0), (2.0, 30.0), (3.0, 20.0), (4.0, 40.0)]) == pytest.approx(0.8)
    assert spearman([(1.0, 5.0), (2.0, 5.0)]) is None
    mean, spread, compared = ratio([(2.0, 1.0), (8.0, 1.0), (0.0, 1.0)])
    assert (mean, compared) == (pytest.approx(4.0), 2)
    assert spread == pytest.approx(2.0)  # both are a factor of 2 from 4
    assert ratio([(0.0, 1.0)]) == (None, None, 0)


@pytest.fixture
def broken_estimator(monkeypatch):
    class Broken(direct.Direct):
        def __call__(self, bench, wanted):
            for number, (unit, scheme) in enumerate(wanted):
                yield Estimate(unit=unit, scheme=scheme, value=math.nan if number else 1.0)

    monkeypatch.setitem(ESTIMATORS._items, "broken", direct.dataclass(frozen=True)(Broken))
    return "broken"


def test_an_estimate_of_nan_names_unit_and_scheme(asked, tmp_path, broken_estimator):
    with pytest.raises(
        NumericalError, match=r"broken: model\.layers\.0: the loss under W8A8 is nan"
    ):
        sense(replace(asked, estimator=broken_estimator), places(tmp_path), threads=1)
    assert not (tmp_path / "sense.json").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"estimator": "dirct"}, UnknownNameError, "unknown estimator 'dirct'; did you mean"),
        ({"granularity": "row"}, UnknownNameError, "unknown granularity 'row'"),
        ({"schemes": ("W9A16",)}, UnknownNameError, "unknown scheme 'W9A16'"),
        ({"schemes": ()}, RecipeError, "expected schemes besides W16A16"),
        ({"options": {"noise": 1}}, RecipeError, "direct: unknown key 'noise'"),
        ({"schemes": ("W4A16_g64",)}, FormatError, "no unit can take it as a whole: W4A16_g64"),
    ],
)
def test_requests_that_cannot_be_met(asked, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        sense(replace(asked, **changes), places(tmp_path), threads=1)
    assert not (tmp_path / "sense.json").exists()


def test_places_that_cannot_be_used(asked, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no folder .*nowhere to write it to"):
        sense(asked, places(tmp_path / "nowhere"))
    (tmp_path / "sense.json.work").mkdir()
    (tmp_path / "sense.json.work" / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="is needed as the work folder, but holds something"):
        sense(asked, places(tmp_path))
    assert (tmp_path / "sense.json.work" / "thesis.tex").exists()


def test_pylm(tmp_path):
    asked = Request(
        ingredients=Ingredients(model="pylm", quantizer="rtn"), granularity="layer",
        schemes=("W3A16_g64", "W4A16_g64"),
        settings=Settings(max_tokens=256, document_tokens=64, context=64, resamples=100),
    )  # fmt: skip
    table, _ = sense(asked, places(tmp_path), threads=1)
    assert [unit.name for unit in table.units] == [f"model.layers.{i}" for i in range(5)]
    for unit in table.units:
        three, four = (unit.options[scheme] for scheme in asked.schemes)
        assert three.lower > four.upper > 0  # measured apart, beyond the intervals
        # codes, and a bfloat16 scale for 64 of them
        assert four.stored_bits == unit.parameters * (4 + 16 / 64)

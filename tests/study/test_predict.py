"""Predictions from a family: the law it was made with comes back, and what is not known is said."""

import json
import math
import random

import pytest
from typer.testing import CliRunner

from pennyweight.cli.main import app
from pennyweight.core import DataError, RecipeError
from pennyweight.core.record import Record, record_key
from pennyweight.records import Store
from pennyweight.study.scaling import cells as scaling_cells
from pennyweight.study.scaling.cells import bands, cells_of
from pennyweight.study.scaling.design import loss_budget
from pennyweight.study.scaling.fit import findings
from pennyweight.study.scaling.predict import Question, parse_size, predict

SIZES = {"small": 1_000_000_000, "middle": 4_000_000_000, "large": 16_000_000_000}
RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0)


def reach(size: float, granularity: str = "matmul") -> float:
    """Of a budget of 5 %: 40 % at a billion, 10 % more for each factor of 4, 5 % less by layers."""
    return 0.4 + 0.1 * math.log(size / 1e9, 4) - (0.05 if granularity == "layer" else 0)


def records(granularities=("matmul",), sizes=SIZES, offsets=(0.0, 1.0), **changes):
    """Perplexity changes on a straight line through 0 that crosses 5 % at `reach`; the second trial
    of each search loses 1 % more."""
    for model, size in sizes.items():
        for granularity in granularities:
            for ratio in RATIOS:
                for trial, offset in enumerate(offsets):
                    subject = {
                        "model": model, "fingerprint": model, "format": "MXINT4",
                        "search": "random",
                        "granularity": granularity, "ratio": ratio, "trial": trial, "seed": 0,
                        "text": "t", "quantizer": "rtn",
                    } | changes  # fmt: skip
                    yield Record(
                        study="scaling", key=record_key(subject), subject=subject,
                        metric="perplexity_change_percent",
                        value=5 * ratio / reach(size, granularity) + offset,
                        detail={"parameters": size, "block_size": 32.0,
                                "quantization_ratio": ratio},
                    )  # fmt: skip


def ask(size="64B", budget="5%", **changes) -> Question:
    return Question(size=parse_size(size), budget=loss_budget(budget), **changes)


def test_the_law_of_the_family_comes_back():
    found = predict(cells_of(records()), ask())
    assert found.ratio == pytest.approx(reach(64e9)) == pytest.approx(0.7)
    assert (found.low, found.high) == (pytest.approx(0.7), pytest.approx(0.7))
    assert found.k == pytest.approx(-math.log(4) / 0.1)
    assert found.times_largest == pytest.approx(4)
    assert [member.ratio for member in found.members] == pytest.approx([0.4, 0.5, 0.6])
    assert [w for w in found.warnings if "4 times the largest" in w]


def test_the_mean_of_the_trials_is_half_a_percent_worse():
    found = predict(cells_of(records()), ask(statistic="mean"))
    # 5 q / reach + .5 = 5 above the first ratio: q = .9 reach.
    assert [m.ratio for m in found.members] == pytest.approx([0.36, 0.45, 0.54])


def test_inside_the_range_there_is_no_warning():
    assert predict(cells_of(records()), ask("8B")).warnings == ()
    assert "250 times as large" in predict(cells_of(records()), ask("4M")).warnings[0]


def test_models_that_do_not_agree_have_a_wide_interval():
    wrong = [
        *records(sizes={"a": 1_000_000_000, "b": 4_000_000_000}),
        *records(sizes={"c": 2_000_000_000}, offsets=(2.0,)),
    ]
    found = predict(cells_of(wrong), ask("70B"))
    assert found.high - found.low > 0.5
    assert found.low == 0.0 or found.high == 1.0


def test_a_family_in_which_size_is_worse_says_so():
    turned = dict(zip(SIZES, reversed(SIZES.values()), strict=True))
    cells = [type(c)(**{**vars(c), "size": turned[c.model]}) for c in cells_of(records())]
    found = predict(cells, ask())
    assert found.k > 0
    assert any("larger models did not tolerate" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (dict(budget="50%"), "0 of 3 models cross ppl<=50%"),
        (dict(format="MXINT8"), "--format 'MXINT8': the family has MXINT4"),
        (dict(search="exact"), "--search 'exact': the family has random"),
        (dict(budget="kl<=0.1"), "no trials with kl_nats"),
    ],
)
def test_questions_without_an_answer(question, message):
    with pytest.raises((DataError, RecipeError), match=message):
        predict(cells_of(records()), ask(**question))


def test_a_question_that_two_searches_answer():
    both = cells_of(records(granularities=("matmul", "layer")))
    with pytest.raises(RecipeError, match=r"several values of granularity.*matmul or layer"):
        predict(both, ask())
    assert predict(both, ask(granularity="layer")).ratio == pytest.approx(0.65)


@pytest.mark.parametrize(
    ("text", "size"), [("70B", 70e9), ("1.1m", 1.1e6), ("7e9", 7e9), ("350K", 350e3), ("2T", 2e12)]
)
def test_sizes(text, size):
    assert parse_size(text) == pytest.approx(size)


@pytest.mark.parametrize("text", ["", "B", "-3B", "0", "many", "7 apples", "1e999"])
def test_wrong_sizes(text):
    with pytest.raises(RecipeError, match=r"--size .* expected a number of parameters"):
        parse_size(text)


@pytest.mark.parametrize("text", ["5", "5%%", "-1%", "bits<=4", "ratio>=0.5", "kl<=x"])
def test_wrong_budgets(text):
    with pytest.raises(RecipeError):
        loss_budget(text)


def test_findings_of_a_family_with_known_laws(monkeypatch):
    """Finer units reach 5 % more everywhere; doubling the size adds .05; the joint law is not exact
    for straight lines, but of one block size."""
    monkeypatch.setattr(scaling_cells, "RESAMPLES", 20)  # no band is looked at
    found = findings(cells_of(records(("matmul", "layer"))), [loss_budget("5%")])
    best = [row for row in found.size if row.of.statistic == "best"]
    for row in best:
        assert row.gain == pytest.approx(0.05)
        assert row.gain_over_models == (pytest.approx(0.05), pytest.approx(0.05))
        assert row.heldout_error == pytest.approx(0, abs=1e-9)
        assert (row.kendall, row.models) == (pytest.approx(1.0), 3)
    finer = [row for row in found.granularity if row.of.statistic == "best"]
    assert [row.difference for row in finer] == pytest.approx([0.05] * 3)
    assert all(row.law.gamma == row.law.d == 0 for row in found.joint)
    assert found.block == ()


def test_bands_hold_the_truth():
    """The mean of 15 normal trials: the 95 % band holds it in at least 85 of 100 repetitions (for
    15 trials the percentile bootstrap is known to be somewhat narrow)."""
    hits, generator = 0, random.Random(0)
    one = next(iter(cells_of(records(sizes={"small": 1_000_000_000}))))
    for repeat in range(100):
        losses = tuple(generator.gauss(3, 1) for _ in range(15))
        cell = type(one)(**{**vars(one), "losses": losses, "ratios": (0.5,) * 15})
        (band,) = bands(lambda cells: [cells[0].point("mean")[1]], [cell], str(repeat))
        assert band is not None
        hits += band[0] <= 3 <= band[1]
    assert 85 <= hits <= 99


def test_records_of_two_checkpoints_are_not_mixed():
    mixed = [*records(), *records(sizes={"small": 1_000_000_000}, fingerprint="other")]
    with pytest.raises(DataError, match="small: trials of two different checkpoints"):
        cells_of(mixed, "here")


def test_the_command(tmp_path):
    file = tmp_path / "records.sqlite"
    Store.open(file).add(records())
    command = ["predict", "--family", str(file), "--size", "64B", "--budget", "5%"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "Q_r 0.700, 95% prediction interval 0.700 to 0.700" in shown.stdout
    assert "4 times the largest" in shown.stderr
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["ratio"] == pytest.approx(0.7)


def test_the_command_without_a_family(tmp_path):
    file = tmp_path / "none.sqlite"
    command = ["predict", "--family", str(file), "--size", "64B", "--budget", "5%"]
    found = CliRunner().invoke(app, command)
    assert "none.sqlite: there is no such file" in str(found.exception)

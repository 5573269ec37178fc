"""Scaling studies: what a file may say, how mixes are drawn, that a study continues, and what is
recorded of a trial."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pennyweight.cli.main import app
from pennyweight.core import DataError, FormatError, PennyweightError
from pennyweight.model.engine import Local
from pennyweight.records import Store
from pennyweight.study.scaling import cells as scaling_cells
from pennyweight.study.scaling.cells import cells_of
from pennyweight.study.scaling.design import draw, load_study, parse_study, parts
from pennyweight.study.scaling.run import METRICS, collect, run_scaling

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tiny_llama, token_file):
    """One random model of 2 blocks with 7 linears each, without a tokenizer."""
    text = {"data": [str(token_file)], "max_tokens": 64, "context": 32}
    return {
        "models": [str(tiny_llama)], "trials": 2, "evaluate": text, "sense": text,
        "grid": [{"formats": ["MXINT4"], "granularities": ["matmul", "layer"],
                  "ratios": [0.5, 1.0]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trial": 1}, "unknown key 'trial'; did you mean 'trials'"),
        ({"models": []}, "models: is empty"),
        ({"grid": []}, "grid: is empty"),
        ({"trials": 0}, "trials is 0; expected at least 1"),
        ({"budgets": ["lots"]}, "'ppl<=lots'"),
        ({"budgets": ["bits<=4"]}, "expected a budget of a loss"),
        ({"quantizer": "rnt"}, "did you mean 'rtn'"),
        ({"evaluate": {"datas": ["a"]}}, "evaluate: unknown key 'datas'"),
        ({"grid": [{"formats": ["MXINT4"], "ratio": [1]}]}, "grid: unknown key 'ratio'"),
        ({"grid": [{"formats": ["MXINT4"], "ratios": [1.5]}]}, "ratios: 1.5; expected above 0"),
        ({"grid": [{"formats": ["MXINT4"], "ratios": [0.5, 0.5]}]}, "ratios: each value counts"),
        ({"grid": [{"formats": ["MXINT5X"], "ratios": [0.5]}]}, "unknown scheme 'MXINT5X'"),
        ({"grid": [{"formats": ["W16A16"], "ratios": [0.5]}]}, "is the high precision"),
        (
            {"grid": [{"formats": ["MXINT4"], "ratios": [0.5], "granularities": ["row"]}]},
            "'row'; known: matmul, fused, layer",
        ),
        (
            {"grid": [{"formats": ["MXINT4"], "ratios": [0.5], "searches": ["greedy"]}]},
            "searches.0: .*'greedy'",
        ),
        (
            {"grid": [{"formats": ["MXINT4"], "ratios": [0.5], "models": ["other"]}]},
            "'other' is not among the models",
        ),
    ],
)
def test_a_wrong_study_says_where(study, change, message):
    with pytest.raises(PennyweightError, match=message):
        parse_study(study | change)


def test_the_shipped_study_has_every_combination():
    found = load_study(ROOT / "recipes/studies/scaling.toml")
    sizes = [g.formats for g in found.grid]
    assert len(found.models) >= 4
    assert len(list(parts(found))) == len(found.models) * (
        len(sizes[0]) * 2 * 2 * len(found.grid[0].ratios)
        + len(sizes[1]) * len(found.grid[1].ratios)
    )


def test_a_combination_of_two_grids_is_one(study):
    twice = parse_study(study | {"grid": study["grid"] * 1 + [
        {"formats": ["MXINT4", "W4A16_fp4"], "ratios": [0.5]}
    ]})  # fmt: skip
    # matmul and layer, random and exact, two ratios; then FP4 by both searches.
    assert len(list(parts(twice))) == 2 * 2 * 2 + 2


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=40), st.floats(0.01, 1.0), st.integers(0, 9)
)
def test_a_draw_is_as_close_as_taking_or_leaving_one_more_unit(sizes, ratio, trial):
    named = {f"unit {place}": size for place, size in enumerate(sizes)}
    low, total = draw(named, ratio, (0, "model", trial)), sum(sizes)
    assert low == draw(named, ratio, (0, "model", trial))
    miss = sum(named[name] for name in low) - ratio * total
    # Nothing that was left out would have brought it closer.
    for name in named.keys() - set(low):
        assert abs(miss + named[name]) >= abs(miss) - 1e-9 * total


def test_draws_of_other_keys_differ_and_take_every_unit():
    named = {str(place): 1 for place in range(20)}
    found = [draw(named, 0.5, (0, trial)) for trial in range(20)]
    assert all(len(each) == 10 for each in found)
    assert len(set(found)) == 20
    assert set().union(*map(set, found)) == set(named)


def test_a_tie_takes_the_larger_share():
    assert len(draw({str(place): 1 for place in range(5)}, 0.5, (0,))) == 3


def test_a_study_that_is_killed_continues_without_duplicates(study, tmp_path):
    plan, store = parse_study(study), Store.open(tmp_path / "records.sqlite")

    class Dies(Local):
        def map(self, function, items):
            for number, item in enumerate(items):
                if number == 3:
                    raise KeyboardInterrupt
                yield function(item)

    with pytest.raises(KeyboardInterrupt):
        run_scaling(plan, store, tmp_path / "work", engine=Dies(), threads=1)
    first = store.find()
    assert len({record.key for record in first}) >= 3
    run_scaling(plan, store, tmp_path / "work", threads=1)
    second = store.find()
    assert second[: len(first)] == first
    assert run_scaling(plan, store, tmp_path / "work", threads=1) == 0
    assert store.find() == second
    # 14 matmuls and 2 layers alone; (random 2 + exact 1) x 2 ratios x 2 granularities.
    assert len(second) == len(METRICS) * (14 + 2 + 12)

    # From here what is in the records. All low is the same mix whoever chose it.
    cells = collect(plan, store)
    whole = {c.losses for c in cells if c.asked == 1.0 and c.metric == "kl_nats"}
    assert len({loss for losses in whole for loss in losses}) == 1
    assert all(ratio == 1 for c in cells if c.asked == 1.0 for ratio in c.ratios)
    # The exact choice has at least the share that was asked for; draws are only close.
    assert all(c.ratios[0] >= c.asked for c in cells if c.search == "exact")
    record = next(r for r in second if r.subject.get("ratio") == 1.0)
    # MXINT4: 4 bits and 8 for each 32 weights. q, o 64x64; k, v 32x64; gate, up, down 96x64.
    considered = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64)
    assert record.detail["parameters_considered"] == considered
    assert record.detail["parameters"] == considered + 2 * 128 * 64 + 5 * 64
    assert record.detail["bits_per_weight"] == pytest.approx(4.25)
    assert record.detail["quantization_ratio_with_scales"] == pytest.approx(1 / (1 + 0.25 / 16))
    assert record.detail["block_size"] == 32

    one = {"formats": ["MXINT4"], "granularities": ["layer"], "ratios": [1.0],
           "searches": ["random"]}  # fmt: skip
    changed = parse_study(study | {"seed": 1, "grid": [one]})
    run_scaling(changed, store, tmp_path / "other", threads=1)
    with pytest.raises(DataError, match=r"2 different values of 'seed'.*another `name`"):
        collect(changed, store)


@pytest.mark.parametrize(
    ("format", "block"),
    [("W4A16_fp4_g16", 16.0), ("W4A16_fp4", 64 * 0.75 + 96 * 0.25), ("W4A16_fp4_tensor", None)],
)
def test_the_block_size_is_weights_per_scale(study, tmp_path, format, block):
    """Rows have 64 weights and of `down` 96; tensors 36,864 / 7 on average."""
    grid = {"formats": [format], "ratios": [1.0], "searches": ["random"]}
    plan = parse_study(study | {"grid": [grid], "trials": 1})
    store = Store.open(tmp_path / "records.sqlite")
    run_scaling(plan, store, tmp_path / "work", threads=1)
    (cell,) = [c for c in collect(plan, store) if c.metric == "kl_nats"]
    weights = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64
    rows = 2 * 64 + 2 * 32 + 2 * 96 + 64
    expected = {"W4A16_fp4": weights / rows, "W4A16_fp4_tensor": weights / 7}
    assert cell.block == pytest.approx(expected.get(format, block))


def test_a_format_that_a_unit_cannot_take_is_refused(study, tmp_path):
    grid = {"formats": ["W4A16_fp4_g64"], "ratios": [1.0], "searches": ["random"]}
    store = Store.open(tmp_path / "records.sqlite")
    with pytest.raises(FormatError, match=r"down_proj.*leave the format out for this model"):
        run_scaling(parse_study(study | {"grid": [grid]}), store, tmp_path / "work", threads=1)
    assert not store.find()


def test_records_without_trials():
    with pytest.raises(DataError, match="here: holds no trials"):
        cells_of([], "here")


def test_the_command_prints_the_laws(study, save_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling_cells, "RESAMPLES", 10)  # nothing here looks at the bands
    file = tmp_path / "study.toml"
    other = save_tiny("llama", num_hidden_layers=1)
    text = json.dumps(study["evaluate"]).replace(":", "=")
    file.write_text(
        f"models = {json.dumps([*study['models'], str(other)])}\ntrials = 2\nevaluate = {text}\n"
        f"sense = {text}\nbudgets = ['kl<=0.0001']\n[[grid]]\nformats = ['MXINT4']\n"
        "granularities = ['matmul', 'layer']\nratios = [0.3, 0.6, 1.0]\n"
    )
    records = tmp_path / "r.sqlite"
    command = ["study", "scaling", str(file), "--records", str(records), "--threads", "1", "-q"]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
    assert shown.exit_code == 0, shown.output
    for part in ("reachable Q_r", "N = exp(k (1 - Q_r) + c)", "less that with layers"):
        assert part in shown.stdout
    assert not (tmp_path / "r.sqlite.work").exists()
    again = CliRunner().invoke(app, [*command, "--json"])
    found = json.loads(again.stdout)
    assert len(found["reach"]) == 2 * 2 * 3  # models x granularities x (best, mean, exact)
    assert {row["of"]["statistic"] for row in found["reach"]} == {"best", "mean"}

"""What the sections hold: numbers by hand, and what is left out without data."""

import dataclasses
import json
import math
import re
import shlex
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from pennyweight.cli.main import app
from pennyweight.evaluate import Interval
from pennyweight.evaluate.verdict import Verdict
from pennyweight.report import (
    blocks,
    calibration,
    diagnosis,
    figure,
    frontier,
    generations,
    outliers,
    pareto,
    provenance,
    quality,
    summary,
    words,
)
from pennyweight.report.content import Absent, Cards, Code, Plot, Table, Text
from pennyweight.report.material import Sources, gather
from pennyweight.report.report import sections
from tests.report.examples import EVIL, cell_records, eval_records, store


def parts(section, kind):
    return [part for part in section.parts if isinstance(part, kind)]


def test_the_verdict_names_the_smallest_that_is_good_enough(full):
    found = summary.section(full.material)
    (said,), (cards,) = parts(found, Text), parts(found, Cards)
    assert said.text.startswith("Of 2 measured models 1 stays within 1 %")
    assert "large" in said.text and "+0.05 %, 95 % interval -0.10 to +0.20" in said.text
    small, large = cards.cards
    assert [(b.mark, b.text) for b in small.badges] == [("✕", "loses more than 1 %")]
    (on_texts, on_tasks) = large.badges
    assert (on_texts.mark, on_texts.text) == ("✓", "texts: lossless within noise")
    assert (on_tasks.mark, on_tasks.text) == ("?", "tasks: undecided at 1 %")
    assert ("perplexity", "+3.00 %", "+2.00 to +4.00") in small.numbers


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1.0, Verdict.OVER), (3.0, Verdict.UNDECIDED), (4.0, Verdict.WITHIN)],
)
def test_the_verdict_is_by_the_interval_of_the_perplexity(full, budget, expected):
    (score, _) = quality.comparable(quality.scores(full.material))
    assert summary.judge(score, budget) == expected


def test_nothing_measured_is_said_with_the_command(copy):
    material = gather(Sources(directories=(copy,)))
    (said,) = parts(summary.section(material), Text)
    assert f"pennyweight eval {copy} --against" in said.text
    (badge,) = parts(summary.section(material), Cards)[0].cards[0].badges
    assert badge.text == "not measured"
    absent = quality.section(material)
    assert isinstance(absent, Absent) and "pennyweight eval" in absent.need


def test_sections_without_data_are_left_out(copy):
    found = list(sections(gather(Sources(directories=(copy,)))))
    missing = {each.title for each in found if isinstance(each, Absent)}
    modules = (quality, pareto, frontier, diagnosis, outliers, calibration, generations)
    assert missing == {module.TITLE for module in modules}


def test_all_sections_are_there_with_all_data(full):
    assert not [each for each in sections(full.material) if isinstance(each, Absent)]


def test_scores_of_records_belong_to_their_directory(full):
    small, large = quality.scores(full.material)
    assert (small.model.path, large.model.path) == (full.small, full.large)
    kl = small.metrics["kl_nats"]
    assert [kl.low, kl.value, kl.high] == pytest.approx([0.045, 0.05, 0.055])
    assert small.conditions == "text.txt, 1,234 tokens, context 512"


def test_the_quality_table_says_once_what_all_rows_share(full):
    table, tasks = parts(quality.section(full.material), Table)
    assert table.caption.endswith("against reference, on text.txt, 1,234 tokens, context 512")
    assert table.rows[1][2:4] == ("+0.05 (-0.10 to +0.20)", "0.001 (0.0009 to 0.0011)")
    row = ("large", EVIL, "62.5", "60.0", "96.0 (90.0 to 102.0)", "undecided")
    assert tasks.rows == (row,)


def test_an_evaluation_in_the_directory_counts(copy):
    ends = {"low": 1.0, "value": 2.0, "high": None}
    found = {
        "perplexity": ends, "tokens": 7, "settings": {"context": 64, "stride": 32}, "digest": "x",
        "comparison": {"perplexity": ends, "kl_nats": ends, "perplexity_change_percent": ends,
                       "bits_per_byte": None, "top1_agreement_percent": ends},
        "data": ["a.txt"], "attention": {"kv_cache": "int8"}, "reference": "ref",
    }  # fmt: skip
    (copy / "evaluation.json").write_text(json.dumps(found))
    (score,) = quality.scores(gather(Sources(directories=(copy,))))
    assert score.conditions == "a.txt, 7 tokens, context 64, stride 32, KV cache int8"
    assert score.metrics["kl_nats"].value == 2 and math.isnan(score.metrics["kl_nats"].high)


def test_the_front_is_what_nothing_beats(full):
    base = quality.comparable(quality.scores(full.material))[0]

    def score(name, size, kl):
        proof = base.model.proof
        proven = dataclasses.replace(
            proof.proof, size=dataclasses.replace(proof.proof.size, bytes_after=size)
        )
        model = dataclasses.replace(
            base.model, name=name, proof=dataclasses.replace(proof, proof=proven)
        )
        kls = {"kl_nats": Interval(low=kl, value=kl, high=kl)}
        return dataclasses.replace(base, model=model, metrics=kls)

    points = [score("a", 10, 3.0), score("b", 20, 1.0), score("c", 20, 2.0), score("d", 30, 1.0)]
    assert [s.model.name for s in pareto.front(points)] == ["a", "b"]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_front_equals_the_definition(full, points):
    base = quality.comparable(quality.scores(full.material))[0]
    made = []
    for size, kl in points:
        proof = base.model.proof
        after = dataclasses.replace(proof.proof.size, bytes_after=size)
        proven = dataclasses.replace(proof, proof=dataclasses.replace(proof.proof, size=after))
        made.append(dataclasses.replace(
            base, model=dataclasses.replace(base.model, proof=proven),
            metrics={"kl_nats": Interval(low=float(kl), value=float(kl), high=float(kl))},
        ))  # fmt: skip
    expected = {
        (s, k) for s, k in points
        if not any(a <= s and b <= k and (a < s or b < k) for a, b in points)
    }  # fmt: skip
    assert {(pareto.size(s), pareto.loss(s)) for s in pareto.front(made)} == expected


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        ("model.layers.3.mlp.up_proj.weight", (3, "mlp.up_proj")),
        ("h.11.attn.c_attn.weight", (11, "attn.c_attn")),
        ("model.layers.3.mlp.experts.15.w1.weight", (3, "mlp.experts.*.w1")),
        ("3.fc.weight", (3, "fc")),
        ("lm_head.weight", None),
        ("model.layers.3.mlp.up_proj.bias", None),
    ],
)
def test_where_a_weight_is(tensor, expected):
    assert blocks.where(tensor) == expected


def test_bits_of_a_block_are_those_of_its_files(full):
    found = blocks.grid(full.material.models[0])
    assert found.blocks == [0, 1] and len(found.kinds) == 7
    # fp32 model: scales of 4 bytes a group of 32, so 1 bit a weight beside the codes.
    assert found.linears[0, "self_attn.q_proj"].bits == 5
    assert found.linears[1, "mlp.down_proj"].bits == 9
    assert found.linears[1, "self_attn.v_proj"].bits == 32
    assert found.linears[1, "self_attn.v_proj"].error is None
    assert found.linears[0, "mlp.up_proj"].scheme == "W4A16_g32"


def test_experts_are_joined_by_their_weights():
    joined = blocks._joined(
        0, "experts.*.w1",
        [(10, 40.0, 0.1, "output", "W4A16"), (30, 240.0, 0.5, "output", "W8A16")],
    )  # fmt: skip
    assert joined.bits == 7 and joined.error == pytest.approx(0.4)
    assert joined.scheme == "W4A16, W8A16"


def test_maps_of_a_mixed_model_and_of_an_even_one(full):
    found = blocks.section(full.material)
    names = [plot.name for plot in parts(found, Plot)]
    assert names == ["bits-0", "error-0", "error-1"]
    assert any(text.text == "All 14 at 9 bits a weight." for text in parts(found, Text))
    bits = parts(found, Plot)[0].figure["data"][0]
    assert (bits["zmin"], bits["zmax"]) == (0, 16)


def test_small_errors_are_in_millionths():
    def one(error):
        return blocks.Linear(block=0, kind="a", bits=8.0, error=error, metric="", scheme="")

    assert blocks.Grid(linears={(0, "a"): one(1e-3)}).error_unit == ("%", 100)
    assert blocks.Grid(linears={(0, "a"): one(9e-4)}).error_unit == ("millionths", 1e6)
    assert blocks.Grid(linears={(0, "a"): one(None)}).error_unit[1] == 1e6


def test_seeds_and_sets_by_hand():
    values = {("m", "a", 0): 1.0, ("m", "a", 1): 3.0, ("m", "b", 0): 2.0, ("m", "b", 1): 2.0}
    records = cell_records(values)
    assert calibration.seed_deviation(records, "a") == pytest.approx(statistics.stdev([1, 3]))
    assert calibration.seed_deviation(records, "b") == 0
    assert calibration.seed_deviation(records[:1], "a") is None
    assert calibration._row(records, "a") == ("a", "2", "2", "1.4", "1", "3")


def test_the_study_is_drawn_by_method(full):
    (plot,) = parts(calibration.section(full.material), Plot)
    points, means = plot.figure["data"]
    assert points["x"] == [0.02, 0.04, 0.05, 0.05]
    assert means["x"] == [pytest.approx(0.03), 0.05]


def test_the_plan_is_drawn_as_predicted_and_as_measured(full):
    found = frontier.section(full.material)
    (plot,) = parts(found, Plot)
    line, predicted, measured, chosen = plot.figure["data"]
    assert line["y"] == [0.05, 0.001] and predicted["y"] == [0.03, 0.012]
    assert measured["error_y"]["array"] == [0.025, 0.01]
    assert chosen["x"] == [6.0]
    assert plot.figure["layout"]["shapes"][0]["y0"] == 0.02
    assert [row[0] for row in plot.table.rows] == ["1", "chosen", "frontier", "frontier"]


def test_the_costliest_part_is_on_top_with_what_it_wins_back(full):
    found = diagnosis.section(full.material)
    (plot,), (recipe,) = parts(found, Plot), parts(found, Code)
    alone, won = plot.figure["data"]
    assert list(alone["y"]) == ["1.mlp.down_proj", "1.self_attn.q_proj"]
    assert list(alone["x"]) == [0.07, 0.005] and list(won["x"]) == pytest.approx([0.08, 0.01])
    assert plot.table.rows[0][2:] == ("0.07 (0.035 to 0.14)", "0.08", "2", "none", "5")
    assert plot.table.rows[1][4:] == ("none", "none", "none")
    whole, cure, remedy = (text.text for text in parts(found, Text))
    assert "on 4,096 tokens: KL divergence 0.1 (0.05 to 0.2) nats a token, perplexity +10" in whole
    assert "Of its weights alone, with inputs exact: 0.09" in whole and "rounded" not in whole
    assert cure == (
        "Restoring 1 of 2 parts is enough for `ppl<=1%` (then 0.5 (0.1 to 0.9) %): 1.mlp.down_proj."
    )
    assert remedy == "Give it more bits. It costs most."
    assert recipe.text.startswith("[[rule]]")


@pytest.mark.parametrize(
    ("cure", "expected"),
    [(None, "Restoring every part is not enough for `ppl<=1%`: 0.5"),
     ([], "`ppl<=1%` holds with nothing restored: 0.5")],
)  # fmt: skip
def test_what_restoring_does_is_said(full, tmp_path, cure, expected):
    data = json.loads(full.sources.diagnosis.read_text())
    data["cure"]["parts"] = cure
    (file := tmp_path / "d.json").write_text(json.dumps(data))
    sources = Sources(directories=(full.small,), diagnosis=file)
    texts = parts(diagnosis.section(gather(sources)), Text)
    assert any(text.text.startswith(expected) for text in texts)


def test_outliers_leave_out_what_is_not_known(full):
    kurtosis, channels, noise = parts(outliers.section(full.material), Plot)
    attention, down = kurtosis.figure["data"]
    assert attention["y"] == [4.0, 5.0] and down["y"] == [None]
    assert attention["name"] == "q_proj, k_proj"
    assert [x for trace in channels.figure["data"] for x in trace["y"]] == [2.0, 2.0, 2.5]
    assert len(noise.figure["layout"]["shapes"]) == 2
    assert kurtosis.table.rows[2][-2:] == ("not known", "1")


def test_texts_part_where_they_differ(full):
    found = generations.section(full.material)
    first, second = parts(found, generations.Pair)
    assert first.reference[: first.shared] == " f(" == first.model[: first.shared]
    assert second.shared == len("same")
    assert any(text.text.startswith("1 of 2 texts") for text in parts(found, Text))
    (table,) = parts(found, Table)
    assert table.rows == (("large", "59.2 (24 to 94.5)"),)


@given(st.text(max_size=8), st.text(max_size=8))
def test_the_shared_beginning_is_the_longest(a, b):
    length = generations.shared(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


def test_provenance_has_plan_seed_versions_and_commands(full):
    found = provenance.section(full.material)
    facts = dict(parts(found, provenance.Facts)[1].rows)
    assert full.material.models[1].plan.digest.startswith(facts["plan"].partition(",")[0])
    assert facts["plan"].endswith("seed 0") and "torch" in facts["versions"]
    assert facts["prove"].startswith("`pennyweight prove '") and "bit for bit" in facts["proof"]
    (table,) = parts(found, Table)
    # Four metrics of each of two models: eight records of two measurements, 2 s each.
    assert table.rows[0][:6] == ("eval", "8", "0", "2026-01-02", "4 s", "1 GB")


def test_models_on_one_text_are_compared_and_others_are_not(models, tmp_path):
    small, large = models
    records = eval_records(small, kl=0.1, change=(1.0, 2.0, 3.0)) + [
        dataclasses.replace(r, data="d2")
        for r in eval_records(large, kl=0.1, change=(1.0, 2.0, 3.0))
    ]
    sources = Sources(directories=models, records=(store(tmp_path / "r.sqlite", *records),))
    material = gather(sources)
    assert len(quality.scores(material)) == 2
    assert len(quality.comparable(quality.scores(material))) == 1
    assert isinstance(pareto.section(material), Absent)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "0"), (0.00123, "0.00123"), (6.93e-5, "6.93·10⁻⁵"), (1234.0, "1,234"), (12.345, "12.3"),
     (-1.5e9, "-1.5·10⁹"), (None, "not known"), (math.nan, "not known")],
)  # fmt: skip
def test_numbers_are_written_for_readers(value, expected):
    assert words.number(value) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [("../a/b/stories260K", "stories260K"), ("/x/y/", "y"), ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
     ("pylm", "pylm"), ("/", "/"), ("", "")],
)  # fmt: skip
def test_a_model_is_called_by_its_last_name(model, expected):
    assert words.short(model) == expected


def test_a_logarithmic_axis_has_ticks_to_read():
    made = figure.log_axis("x", [0.03, 0.2, None])
    assert made["type"] == "log" and made["ticktext"][:3] == ["0.01", "0.02", "0.05"]
    assert "type" not in figure.log_axis("x", [0.0, 1.0])


def commands(material) -> list[str]:
    """Everything that a page tells its reader to type."""
    said = []
    for found in sections(material):
        if isinstance(found, Absent):
            said.append(found.need)
        else:
            said += [part.text for part in parts(found, Text)]
            said += [v for facts in parts(found, provenance.Facts) for _, v in facts.rows]
    return [c for text in said for c in re.findall(r"`pennyweight ([^`]+)`", text)]


def test_the_commands_on_the_page_are_ones_that_exist(copy, full):
    found = commands(gather(Sources(directories=(copy,)))) + commands(full.material)
    assert {c.split()[0] for c in found} >= {
        "eval", "plan", "profile", "study", "quantize", "prove", "diagnose"
    }  # fmt: skip
    for command in found:
        words = shlex.split(command.partition(" > ")[0])
        verb: Any = get_command(app)
        while hasattr(verb, "commands"):
            verb = verb.commands[words.pop(0)]
        verb.make_context("pennyweight", words)  # raises for an option that is not there


def test_one_model_over_the_budget_is_told_with_its_size(full, tmp_path):
    records = eval_records(full.small, kl=0.05, change=(2.0, 3.0, 4.0))
    sources = Sources(directories=(full.small,), records=(store(tmp_path / "r", *records),))
    (said,) = parts(summary.section(gather(sources)), Text)
    assert "is not shown to stay within 1 %" in said.text
    assert "+3.00 %, 95 % interval +2.00 to +4.00, at " in said.text

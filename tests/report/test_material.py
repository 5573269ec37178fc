import json

import pytest

from pennyweight.core import CheckpointError, DataError, PennyweightError, RecipeError
from pennyweight.report.material import Sources, frontier_file, gather, read_samples
from pennyweight.report.report import write_report
from tests.report.examples import frontier_json, profile_file, samples_file


def test_everything_is_read(full):
    found = full.material
    assert [m.path for m in found.models] == [full.small, full.large]
    assert found.models[1].name == "large"
    assert found.frontier is not None and found.frontier.chosen == 1
    assert found.profile is not None and len(found.profile.places) == 3
    assert [s.model for s in found.samples] == [" f(y):\n  pass", "same"]


def test_a_record_that_two_stores_hold_counts_once(full):
    import dataclasses

    twice = dataclasses.replace(full.sources, records=full.sources.records * 2)
    assert len(gather(twice).records) == len(full.material.records)


def test_names_are_the_shortest_that_differ(copy, tmp_path):
    (tmp_path / "b").mkdir()
    other = copy.rename(tmp_path / "b" / "large")
    import shutil

    (tmp_path / "a").mkdir()
    first = shutil.copytree(other, tmp_path / "a" / "large")
    found = gather(Sources(directories=(first, other)))
    assert [m.name for m in found.models] == ["a/large", "b/large"]


def test_files_in_the_directory_are_found(copy):
    samples_file(copy / "samples.jsonl")
    found = gather(Sources(directories=(copy,)))
    assert len(found.samples) == 2 and found.samples_from == "copy"


def test_the_file_beside_a_plan(tmp_path):
    path = frontier_json(tmp_path / "plan.frontier.json")
    assert frontier_file(tmp_path / "plan.toml") == path == frontier_file(path)


@pytest.mark.parametrize(
    ("break_", "error", "said"),
    [
        (lambda d: (d / "proof.json").unlink(), CheckpointError, "holds no proof.json"),
        (lambda d: (d / "plan.json").unlink(), CheckpointError, "holds no plan.json"),
        (lambda d: (d / "proof.json").write_text("{"), CheckpointError, "not valid JSON"),
        (lambda d: (d / "proof.json").write_text("{}"), CheckpointError, "proof: "),
        (lambda d: (d / "plan.json").write_text("{}"), RecipeError, "not a plan"),
        (lambda d: (d / "evaluation.json").write_text("[]"), CheckpointError, "JSON object"),
        (
            lambda d: (d / "evaluation.json").write_text('{"tokens": 1}'),
            CheckpointError,
            "evaluation.json: not what `pennyweight eval",
        ),
        (lambda d: (d / "samples.jsonl").write_text("{}\n{"), DataError, "samples.jsonl:1: "),
        (lambda d: (d / "model.safetensors").write_bytes(b"no"), CheckpointError, "safetensors"),
    ],
)
def test_a_broken_directory_says_what_is_wrong(copy, break_, error, said):
    break_(copy)
    with pytest.raises(error, match="copy") as caught:
        gather(Sources(directories=(copy,)))
    assert said in str(caught.value)


def test_other_files_that_are_not_what_they_should_be(copy, tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps({"model": "toy"}))
    for sources, said in (
        (Sources(directories=()), "at least one directory"),
        (Sources(directories=(tmp_path / "gone",)), "gone: holds no proof.json"),
        (Sources(directories=(copy, copy.parent / "." / "copy")), "named twice"),
        (Sources(directories=(copy,), profile=bad), "pennyweight profile"),
        (Sources(directories=(copy,), profile=tmp_path / "none"), "no such file"),
        (Sources(directories=(copy,), plan=bad), "pennyweight plan"),
        (Sources(directories=(copy,), diagnosis=bad), "pennyweight diagnose"),
        (Sources(directories=(copy,), plan=tmp_path / "plan.toml"), "plan.frontier.json: no such"),
        (Sources(directories=(copy,), records=(bad,)), "not a store"),
        (Sources(directories=(copy,), samples=tmp_path / "none"), "cannot be read"),
    ):
        with pytest.raises(PennyweightError, match=said):
            gather(sources)
    with pytest.raises(DataError, match="expected a number from 0"):
        gather(Sources(directories=(copy,)), budget_percent=-1.0)


def test_a_line_that_is_no_sample(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"prompt": "a", "model": "b", "reference": "c"}\n\n{"prompt": 3}\n')
    with pytest.raises(DataError, match=r"s\.jsonl:3: "):
        read_samples(path)


def test_no_place_to_write(full, tmp_path):
    with pytest.raises(DataError, match="no folder"):
        write_report(full.material, tmp_path / "none" / "r.html")
    with pytest.raises(DataError, match="is a folder"):
        write_report(full.material, tmp_path)


def test_a_profile_of_another_version_is_refused(tmp_path, copy):
    path = profile_file(tmp_path / "p.json")
    data = json.loads(path.read_text())
    del data["places"][0]["portraits"]["stdlib"]["kurtosis"]
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"places\.0\.portraits\.stdlib\.kurtosis"):
        gather(Sources(directories=(copy,), profile=path))

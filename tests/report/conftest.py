import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from pennyweight.report.material import Material, Sources, gather
from tests.conftest import save_tiny_model
from tests.report.examples import (
    EVIL,
    cell_records,
    diagnosis_file,
    eval_records,
    frontier_json,
    profile_file,
    quantized,
    samples_file,
    similarity_record,
    store,
    task_record,
)

CELLS = {
    ("gptq", "stdlib", 0): 0.02, ("gptq", "stdlib", 1): 0.04,
    ("gptq", EVIL, 0): 0.05, ("gptq", EVIL, 1): 0.05,
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    sources: Sources
    small: Path  # 4 bits, but down_proj in 8 and v_proj as it was
    large: Path  # 8 bits

    @cached_property
    def material(self) -> Material:
        return gather(self.sources)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """Two quantized directories, one with a name that is HTML."""
    folder = tmp_path_factory.mktemp("report models")
    source = save_tiny_model(folder / "source")
    small = quantized(
        folder / EVIL.replace("/", ""), source,
        ("*.v_proj.weight", "W16A16"), ("*.down_proj.weight", "W8A16_g32"), ("*", "W4A16_g32"),
    )  # fmt: skip
    return small, quantized(folder / "large", source, ("*", "W8A16_g32"))


@pytest.fixture(scope="session")
def full(models, tmp_path_factory) -> Example:
    """All that a report can show."""
    small, large = models
    folder = tmp_path_factory.mktemp("report files")
    records = [
        *eval_records(small, kl=0.05, change=(2.0, 3.0, 4.0)),
        *eval_records(large, kl=0.001, change=(-0.1, 0.05, 0.2)),
        task_record(large, EVIL), task_record(large, EVIL, is_average=True),
        similarity_record(large), *cell_records(CELLS),
    ]  # fmt: skip
    sources = Sources(
        directories=(small, large),
        records=(store(folder / "r.sqlite", *records),),
        profile=profile_file(folder / "profile.json", EVIL),
        plan=frontier_json(folder / "plan.frontier.json"),
        samples=samples_file(folder / "samples.jsonl", EVIL),
        diagnosis=diagnosis_file(folder / "diagnosis.json", EVIL),
    )
    return Example(sources=sources, small=small, large=large)


@pytest.fixture
def copy(models, tmp_path) -> Path:
    """A quantized directory of the test's own."""
    return Path(shutil.copytree(models[1], tmp_path / "copy"))

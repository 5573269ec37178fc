"""Units: every site once, and together what an engine runs together."""

import pytest

from pennyweight.core import UnknownNameError
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.skeleton import Skeleton
from pennyweight.pipeline.survey import survey
from pennyweight.study.units import GRANULARITIES, units
from tests.end_to_end.models import build, save

FAMILIES = ("llama", "gpt2", "opt", "mixtral", "deepseek_v3")


@pytest.fixture(scope="module")
def surveyed(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("families"), {}

    def of(family: str):
        if family not in found:
            source = save(build(family), folder / family)
            found[family] = survey(Skeleton.build(Checkpoint.open(source)))
        return found[family]

    return of


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_site_is_in_one_unit_and_names_differ(surveyed, family, granularity):
    seen = surveyed(family)
    found = units(seen, granularity)
    tensors = [tensor for unit in found for tensor in unit.tensors]
    assert sorted(tensors) == sorted(site.tensor for site in seen.sites)
    assert len({unit.name for unit in found}) == len(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_fused_is_in_one_unit(surveyed, family):
    seen = surveyed(family)
    home = {tensor: unit for unit in units(seen, "fused") for tensor in unit.tensors}
    assert seen.fused() or family == "gpt2"  # which joins q, k and v in its checkpoint
    for sites in seen.fused():
        assert len({home[site.tensor].name for site in sites}) == 1


def test_names_and_kinds_of_a_llama(surveyed):
    found = units(surveyed("llama"), "fused")
    assert [unit.kind for unit in found] == 2 * [
        "self_attn.q_proj+k_proj+v_proj", "self_attn.o_proj", "mlp.gate_proj+up_proj",
        "mlp.down_proj",
    ]  # fmt: skip
    assert found[4].name == "model.layers.1.self_attn.q_proj+k_proj+v_proj"
    assert found[4].tensors[1] == "model.layers.1.self_attn.k_proj.weight"
    assert [(u.name, u.kind, len(u.tensors)) for u in units(surveyed("llama"), "layer")] == [
        ("model.layers.0", "layer", 7), ("model.layers.1", "layer", 7),
    ]  # fmt: skip
    assert all(len(unit.tensors) == 1 for unit in units(surveyed("llama"), "matmul"))


def test_experts_of_a_block_are_together(surveyed):
    found = [unit for unit in units(surveyed("mixtral"), "fused") if "experts" in unit.name]
    assert [unit.name for unit in found if ".0.block" in unit.name] == [
        "model.layers.0.block_sparse_moe.experts.*.w1+w3",
        "model.layers.0.block_sparse_moe.experts.*.w2",
    ]
    assert [len(unit.tensors) for unit in found[:2]] == [8, 4]  # four experts


def test_an_unknown_granularity(surveyed):
    with pytest.raises(
        UnknownNameError, match="unknown granularity 'tensor'; known: matmul, fused"
    ):
        units(surveyed("llama"), "tensor")

"""One cut-off for a block or for the model keeps what sorting all its weights would keep."""

import json

import pytest
import torch
from safetensors import safe_open

from pennyweight.core import NumericalError, RecipeError, Serial, Stats, UnsupportedError
from pennyweight.formats.schemes import parse_scheme
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.skeleton import Skeleton
from pennyweight.pipeline import run as module
from pennyweight.pipeline.cutoffs import FILE
from pennyweight.pipeline.quantize import quantize
from pennyweight.quantize.gwq import GWQ
from tests.end_to_end.models import build, contents, make_recipe, save, save_tokens
from tests.reference.gradients import weight_gradients

SHARE = 0.03


def gwq(scope, saliency="abs_gradient", **options):
    given = {"name": "gwq", "scope": scope, "saliency": saliency, "share": SHARE} | options
    return {"scheme": "W3A16_g32", "quantizer": given}


def quantized(tmp_path, *rules, model=None, threads=2, **top):
    source = save(model or build("llama"), tmp_path / "source")
    recipe = make_recipe(source, save_tokens(tmp_path), *rules, **top)
    quantize(recipe, tmp_path / "out", threads=threads, keep_work=True)
    return source, tmp_path / "out.work"


def kept(work):
    """Tensor -> how many of its weights are kept."""
    found = {}
    for file in sorted(work.glob("block_*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in list(opened.keys()):
                if name.endswith(".weight.sparse.values"):
                    found[name.removesuffix(".sparse.values")] = len(opened.get_tensor(name))
    return found


def scores(source, tmp_path, saliency):
    """By the definitions, from the gradients of the whole model by autograd."""
    skeleton = Skeleton.build(Checkpoint.open(source))
    rows = torch.tensor(json.loads((tmp_path / "tokens.json").read_text()))
    gradients = weight_gradients(skeleton, rows)
    found = {}
    for name, gradient in gradients.items():
        weight = skeleton.checkpoint.read(name).double()
        found[name] = {
            "abs_gradient": lambda g, w: g["abs_gradient"],
            "gradient_weight": lambda g, w: g["abs_gradient"] * w.abs(),
            "fisher": lambda g, w: g["squared_gradient"],
            "magnitude": lambda g, w: w.abs(),
        }[saliency](gradient, weight)
    return found


@pytest.mark.parametrize(
    ("scope", "saliency"),
    [
        ("layer", "abs_gradient"), ("model", "gradient_weight"), ("model", "fisher"),
        ("layer", "magnitude"),
    ],
)  # fmt: skip
def test_keeps_what_sorting_all_the_weights_keeps(scope, saliency, tmp_path):
    source, work = quantized(tmp_path, gwq(scope, saliency))
    found, expected = kept(work), scores(source, tmp_path, saliency)
    linears = [name for name in expected if ".layers." in name and "norm" not in name]
    scopes = [linears]
    if scope == "layer":
        scopes = [[name for name in linears if f"layers.{i}." in name] for i in (0, 1)]
    for names in scopes:
        everything = torch.cat([expected[name].flatten() for name in names])
        count = round(SHARE * len(everything))
        assert sum(found.get(name, 0) for name in names) == count
        value = everything.sort(descending=True).values[count - 1]
        for name in names:
            # the oracle sums in float64: what lies within its difference may fall on either side
            near = (expected[name] / value - 1).abs() < 1e-5
            above = int(((expected[name] > value) & ~near).sum())
            assert above <= found.get(name, 0) <= above + int(near.sum()), name
    assert len({found.get(n, 0) / expected[n].numel() for n in linears}) > 2  # not tensor by tensor


def test_of_equal_scores_the_first_are_kept(tmp_path):
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in layer.modules():
                if isinstance(linear, torch.nn.Linear):
                    linear.weight.copy_(0.5 * linear.weight.sign())
    _, work = quantized(tmp_path, gwq("model", "magnitude", residual="rtn"), model=model)
    sizes = {"q": 64 * 64, "k": 32 * 64, "v": 32 * 64, "o": 64 * 64}
    total = 2 * (sum(sizes.values()) + 3 * 64 * 96)
    name = "model.layers.0.self_attn.q_proj.weight"
    found = {tensor: count for tensor, count in kept(work).items() if count}
    assert found == {name: round(SHARE * total)}  # all of them fit into the first tensor


def test_tensors_of_other_options_have_a_cutoff_of_their_own(tmp_path):
    own = gwq("model", share=0.5) | {"match": "*.down_proj.weight"}
    _, work = quantized(tmp_path, own, gwq("model"))
    found = kept(work)
    down = [count for name, count in found.items() if "down_proj" in name]
    others = [count for name, count in found.items() if "down_proj" not in name]
    assert sum(down) == round(0.5 * 2 * 64 * 96)
    assert sum(others) == round(SHARE * 2 * (2 * 64 * 64 + 2 * 32 * 64 + 2 * 64 * 96))


@pytest.mark.slow  # test_gradient_methods.py has the same without cutoffs
def test_threads_and_interruptions_change_no_byte(tmp_path, monkeypatch):
    source, data = save(build("mixtral"), tmp_path / "source"), save_tokens(tmp_path)
    recipe = make_recipe(source, data, gwq("model", residual="gptq"))
    once = quantize(recipe, tmp_path / "once", threads=1)
    original, seen = module.Run._quantize, []

    def interrupted(self, block, *args):
        seen.append(block.index)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, block, *args)

    monkeypatch.setattr(module.Run, "_quantize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(recipe, tmp_path / "twice", threads=3)
    before = (tmp_path / "twice.work" / FILE).read_bytes()
    twice = quantize(recipe, tmp_path / "twice", threads=3, keep_work=True)
    assert (tmp_path / "twice.work" / FILE).read_bytes() == before
    assert seen == [0, 1, 1] and contents(once.path) == contents(twice.path)


def test_an_expert_without_tokens_keeps_its_own_share_by_magnitude(tmp_path):
    model = build("mixtral", num_experts_per_tok=1)
    with torch.no_grad():
        for layer in model.model.layers:
            rows = layer.mlp.gate.weight
            rows[1], rows[2:] = -rows[0], 0
    _, work = quantized(tmp_path, gwq("model"), model=model, min_expert_tokens=0)
    found, cutoffs = kept(work), json.loads((work / FILE).read_text())
    unseen = {name for name in found if ".experts.2." in name or ".experts.3." in name}
    assert len(unseen) == 12 and not unseen & cutoffs.keys()
    assert {found[name] for name in unseen} == {round(SHARE * 64 * 96)}


@pytest.mark.parametrize("saliency", ["spqr", "hessian_diagonal"])
def test_a_saliency_of_inputs_is_refused_when_the_recipe_is_read(saliency, tmp_path):
    with pytest.raises(RecipeError, match=f"scope 'layer'.*'{saliency}' reads gram; use scope"):
        make_recipe(tmp_path, tmp_path, gwq("layer", saliency))


def test_a_weight_that_a_transform_changed_is_refused(tmp_path):
    rules = gwq("model", "magnitude")
    with pytest.raises(UnsupportedError, match=r"layers\.\d.*chosen from it.*a transform changed"):
        quantized(tmp_path, rules, transform=[{"name": "smoothquant"}])


def test_one_tensor_alone_cannot_choose_for_a_model():
    weight = torch.randn(4, 32)
    stats = Stats(samples=1, abs_gradient=weight.abs())
    with pytest.raises(RecipeError, match="cannot be chosen from one tensor"):
        GWQ(scope="model").select(weight, parse_scheme("W4A16_g32").weight, stats, Serial())


def test_a_score_that_is_no_number_is_an_error_with_its_tensor(tmp_path, monkeypatch):
    broken = lambda self, weight, format, stats: weight / 0 * 0
    monkeypatch.setattr(GWQ, "score", broken)
    with pytest.raises(NumericalError, match=r"layers\.0\.self_attn\.q_proj\.weight: the saliency"):
        quantized(tmp_path, gwq("model"))

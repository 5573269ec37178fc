"""Models that see images: their language blocks are quantized, the rest is carried over."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from pennyweight.core import (
    CheckpointError,
    DataError,
    Progress,
    RecipeError,
    Stats,
    UnsupportedError,
)  # fmt: skip
from pennyweight.evaluate import Settings
from pennyweight.model import processor
from pennyweight.model.capture import capture
from pennyweight.model.checkpoint import Checkpoint
from pennyweight.model.compressed import CompressedCheckpoint
from pennyweight.model.load import load_model
from pennyweight.model.prompt import Prompt
from pennyweight.model.skeleton import Skeleton
from pennyweight.model.stream import Block
from pennyweight.model.workers import start_workers
from pennyweight.observe.gradient import GRADIENT_FIELDS
from pennyweight.pipeline.evaluate import evaluate
from pennyweight.pipeline.gradients import Gradients
from pennyweight.pipeline.job import prepare
from pennyweight.pipeline.plan import Plan, Task
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import parse_recipe
from pennyweight.pipeline.survey import OUTSIDE, survey
from tests.byte_tokenizer import byte_tokenizer
from tests.end_to_end.models import contents, make_recipe, save_tokens
from tests.end_to_end.vision_models import (
    IMAGE,
    StandIn,
    build,
    original,
    prompt,
    save_pictures,
)  # fmt: skip

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "llava")
W4 = {"scheme": "W4A16_g32", "quantizer": "gptq"}
W8 = {"match": "*down_proj*", "scheme": "W8A16", "quantizer": "rtn"}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> its directory, made when it is first asked for."""
    made = {}

    def of(family: str):
        if family not in made:
            made[family] = build(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of


@pytest.fixture
def seeing(models, tmp_path, monkeypatch):
    """LLaVA with a tokenizer and a processor that needs no Pillow, and a file with images."""
    path = models("llava")
    byte_tokenizer().save_pretrained(path)
    (path / "processor_config.json").write_text("{}")
    (path / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.setattr(processor, "load_processor", lambda path, trust: StandIn())
    monkeypatch.setattr(processor, "open_image", lambda file, name: torch.load(file))
    return path, save_pictures(tmp_path)


def recipe(model, *data, rules=(W4,), **calibrate):
    sources = {"data": [str(each) for each in data], "samples": 8, "tokens": 24} | calibrate
    return parse_recipe({"model": str(model), "calibrate": sources, "rule": list(rules)})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_gives_the_hidden_states_of_transformers(family, models):
    skeleton = Skeleton.build(Checkpoint.open(models(family)))
    topologies = survey(skeleton).topologies
    rows = [prompt(family), prompt(family, 1, side=8), prompt(family, 2).without_images()]
    model, outputs = original(models(family)), []
    for block in model.get_submodule(skeleton.blocks_path):
        block.register_forward_hook(lambda module, args, out: outputs.append(out))
    samples = capture(skeleton, rows, torch.float32)
    with start_workers(2) as workers, torch.no_grad():
        for row in rows:
            model(**row.arguments(torch.float32), use_cache=False)
        for index, topology in enumerate(topologies):
            block = Block(skeleton, index, topology, torch.float32)
            with block.loaded():
                block.advance(samples, workers)
            for sample, hidden in zip(samples, outputs[index :: len(topologies)], strict=True):
                assert torch.equal(sample.hidden, hidden), f"block {index}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_stands_where_its_placeholders_are(family, models):
    skeleton, row = Skeleton.build(Checkpoint.open(models(family))), prompt(family)
    seen, blind = capture(skeleton, [row, Prompt(ids=row.ids)], torch.float32)
    same = (seen.hidden == blind.hidden).all(-1)[0]
    assert torch.equal(same, row.is_text)


def test_the_blocks_are_those_of_the_language_model_however_large_the_encoder(tmp_path):
    path = build("llava", tmp_path, hidden_size=128, intermediate_size=512, num_hidden_layers=4)
    skeleton = Skeleton.build(Checkpoint.open(path))
    size = lambda name: sum(p.numel() for p in skeleton.model.get_submodule(name).parameters())
    assert size("model.vision_tower.encoder.layers") > size("model.language_model.layers")
    assert skeleton.blocks_path == "model.language_model.layers"


@pytest.mark.parametrize(
    ("family", "rules"),
    [
        ("qwen2_vl", (W4,)),
        ("llava", (W8, W4)),
        pytest.param("qwen2_5_vl", (W4,), marks=pytest.mark.slow),
        pytest.param("qwen2_vl", (W8, W4), marks=pytest.mark.slow),
        pytest.param("llava", (W4,), marks=pytest.mark.slow),
    ],
)
def test_the_result_proves_with_and_without_an_image(family, rules, models, tmp_path):
    source = models(family)
    result = quantize(make_recipe(source, save_tokens(tmp_path), *rules), tmp_path / "out")
    logits = result.proof["logits"]
    for found in (logits, logits["with_image"]):
        assert found["largest_difference"] <= found["allowed"]
    before, after = Checkpoint.open(source), CompressedCheckpoint.open(result.path)
    seen = survey(Skeleton.build(before))
    assert {f"{name}.weight" for name in after.schemes} == {site.tensor for site in seen.sites}
    carried = [name for name, why in seen.kept.items() if why == OUTSIDE]
    assert len(carried) > 20
    for name in carried:
        assert torch.equal(after.read(name), before.read(name))
    config = json.loads((result.path / "config.json").read_text())
    ignored = config["quantization_config"]["ignore"]
    model = Skeleton.build(before).model
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "language_model" not in name:
            assert name in ignored
    assert "text_config" in config and "quantization_config" not in config["text_config"]
    assert "AutoModelForImageTextToText" in (result.path / "README.md").read_text()


def test_the_proof_finds_an_encoder_that_was_changed(models, tmp_path, monkeypatch):
    """The comparison with an image cannot pass by not looking at it."""
    from pennyweight.pipeline import reload

    load = reload._reload

    def damaged(*args):
        model = load(*args)
        model.model.multi_modal_projector.linear_2.weight.data.mul_(1.5)
        return model

    monkeypatch.setattr(reload, "_reload", damaged)
    with pytest.raises(CheckpointError, match="other logits for a text with an image"):
        quantize(make_recipe(models("llava"), save_tokens(tmp_path), W4), tmp_path / "out")


def test_calibrated_on_images_and_text(seeing, tmp_path):
    path, pictures = seeing
    result = quantize(recipe(path, pictures), tmp_path / "out", threads=1)
    said = json.loads((result.path / "proof.json").read_text())["calibration"]
    assert (said["whole_samples"], said["with_images"], said["samples"]) == (7, 6, 0)
    assert "7 whole samples" in (result.path / "README.md").read_text()
    for file in ("processor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (result.path / file).read_bytes() == (path / file).read_bytes()
    again = quantize(recipe(path, pictures), tmp_path / "again", threads=3)
    assert contents(result.path) == contents(again.path)
    blind = quantize(recipe(path, f"blind:{pictures}"), tmp_path / "blind")
    weights = [(r.path / "model.safetensors").read_bytes() for r in (result, blind)]
    assert weights[0] != weights[1]  # what the blocks saw of the images decided something


def test_beside_text_images_are_half_of_the_samples(seeing, tmp_path):
    path, pictures = seeing
    (tmp_path / "a.txt").write_text("a text of many words\n" * 40)
    mixed = prepare(recipe(path, pictures, tmp_path / "a.txt")).calibration
    assert (len(mixed.pictured), len(mixed.ids), len(mixed.rows)) == (4, 4, 8)
    other = prepare(replace(recipe(path, pictures, tmp_path / "a.txt"), seed=1)).calibration
    assert mixed.digest != other.digest


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_gradients_are_those_of_the_text_given_the_image(family, models, tmp_path, monkeypatch):
    monkeypatch.setattr(Plan, "needs", lambda self, task: GRADIENT_FIELDS)
    seen = survey(Skeleton.build(Checkpoint.open(models(family))))
    tasks = tuple(Task(tensor=s.tensor, scheme="W4A16", quantizer="rtn") for s in seen.sites)
    plan = Plan(
        model="", fingerprint="", dtype="float32", compute="float32", seed=0, calibrate=None,
        tasks=tasks,
    )  # fmt: skip
    rows = [prompt(family), prompt(family, 1), prompt(family, 2).without_images()]
    with start_workers(2) as workers:
        made = Gradients(
            plan=plan, survey=seen, folder=tmp_path / "gradients", rows=rows, workers=workers,
            progress=Progress(),
        )  # fmt: skip
        made.compute([0, 1])
    model = original(models(family))
    parameters = dict(model.named_parameters())
    names = {source.key: name for name, source in seen.skeleton.sources.items()}
    totals = {site.tensor: torch.zeros(site.shape) for site in seen.sites}
    for row in rows:
        model.zero_grad()
        logits = model(**row.arguments(torch.float32), use_cache=False).logits[0]
        labels = row.ids.clone() if row.is_text is None else row.ids.where(row.is_text, -100)
        cross_entropy(logits[:-1], labels[1:]).backward()
        for tensor, total in totals.items():
            total += parameters[names[tensor]].grad.abs()
    for site in seen.sites:
        error = (made.of(site, Stats()).abs_gradient - totals[site.tensor]).norm()
        assert error <= 1e-5 * totals[site.tensor].norm(), site.tensor


def test_gwq_on_images(seeing, tmp_path):
    path, pictures = seeing
    rule = {"scheme": "W4A16_g32", "quantizer": {"name": "gwq", "share": 0.05}}
    result = quantize(recipe(path, pictures, rules=(rule,)), tmp_path / "out")
    row = prompt("llava").arguments(torch.float32)
    with torch.no_grad():
        error = load_model(result.path)(**row).logits - load_model(path)(**row).logits
        assert 0 < error.std() < 0.5 * load_model(path)(**row).logits.std()


def test_evaluated_with_and_without_images(seeing, tmp_path):
    path, pictures = seeing
    found = {
        source: evaluate(path, against=path, data=[source], settings=Settings(resamples=100))
        for source in (str(pictures), f"blind:{pictures}")
    }
    model = original(path)
    texts = [json.loads(line)["text"] for line in pictures.read_text().splitlines()]
    for source, evaluation in found.items():
        total, count = 0.0, 0
        for number, text in enumerate(texts):
            ids = torch.tensor(byte_tokenizer()(text.replace("<image>", ""))["input_ids"])
            arguments, at = {}, torch.arange(1, len(ids))
            if number < 6 and not source.startswith("blind:"):  # all placeholders follow BOS
                ids = torch.cat([ids[:1], torch.full((16,), IMAGE), ids[1:]])
                arguments["pixel_values"] = torch.load(pictures.parent / f"{number}.pt")[None]
                at = torch.arange(17, len(ids))
            with torch.no_grad():
                logits = model(input_ids=ids[None], **arguments).logits[0].double()
            total += cross_entropy(logits[at - 1], ids[at], reduction="sum").item()
            count += len(at)
        assert evaluation.tokens == count
        assert evaluation.perplexity.value == pytest.approx(
            torch.tensor(total / count).exp().item()
        )
        assert evaluation.comparison.kl_nats.value == 0
    seen, blind = found.values()
    assert seen.perplexity.value != blind.perplexity.value and seen.tokens == blind.tokens
    assert seen.bytes == blind.bytes > 0


def test_what_happens_between_blocks_is_refused(models):
    skeleton = Skeleton.build(Checkpoint.open(models("qwen3_vl")))
    row = prompt("qwen3_vl")
    with pytest.raises(UnsupportedError, match=r"layers\.1: .*between its blocks.*text alone"):
        capture(skeleton, [row], torch.float32)
    assert len(capture(skeleton, [row.without_images()], torch.float32)) == 1


def test_a_real_processor_reads_a_real_image(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: vision)")
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    path, size = build("llava", tmp_path / "model"), {"height": 16, "width": 16}
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    LlavaProcessor(
        LlavaImageProcessorPil(size=size, crop_size=size), tokenizer, patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(path)  # fmt: skip
    image.new("RGB", (20, 30), (200, 30, 90)).save(tmp_path / "a.png")
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"text": "<image> is red", "image": "a.png"}))
    result = quantize(recipe(path, file), tmp_path / "out")
    assert result.check.calibration["with_images"] == 1
    (tmp_path / "a.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DataError, match=r"one\.jsonl#1: .*a\.png: not an image"):
        quantize(recipe(path, file), tmp_path / "broken")


def test_the_processor_of_qwen2_vl(models, tmp_path, monkeypatch):
    """Its class wants a reader of videos too, which needs torchvision; images do not."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (extra: vision)")
    from transformers import ProcessorMixin, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    path, tokenizer = models("qwen2_vl"), byte_tokenizer()
    marks = ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    assert tokenizer.convert_tokens_to_ids(marks[0]) == IMAGE
    tokenizer.save_pretrained(path)
    reader = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=400
    )
    with monkeypatch.context() as patched:
        patched.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
        made = Qwen2VLProcessor(image_processor=reader, tokenizer=tokenizer, video_processor=None)
    monkeypatch.setattr(processor, "load_processor", lambda path, trust: made)
    lines = []
    for number, size in enumerate([(16, 16), (20, 30), (16, 24)]):
        image.new("RGB", size, (80 * number, 30, 90)).save(tmp_path / f"{number}.png")
        text = f"<|vision_start|><|image_pad|><|vision_end|>{number} is red"
        lines.append(json.dumps({"text": text, "image": f"{number}.png"}))
    file = tmp_path / "pictures.jsonl"
    file.write_text("\n".join(lines))
    result = quantize(recipe(path, file), tmp_path / "out")
    assert result.check.calibration["with_images"] == 3
    seen = evaluate(result.path, against=str(path), data=[str(file)], settings=Settings(context=64))
    assert 0 < seen.comparison.kl_nats.value < 1


BAD_LINES = [
    (
        {"text": "a", "image": "none.png"},
        r"bad\.jsonl:1: no such image: .*none\.png; paths are rel",
    ),
    ({"text": "a", "image": 7}, r"bad\.jsonl:1: 'image': expected a path or a list of paths"),
    ({"image": "0.pt"}, r"bad\.jsonl:1: expected an object with 'text'"),
    ({"text": "<image><image>", "image": "0.pt"}, "found 2 placeholders '<image>' for 1 images"),
    ({"text": "", "image": "0.pt"}, "no text beside its image"),
    ({"text": 300 * "a", "image": "0.pt"}, r"317 tokens with its images, .* positions for 256"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named(line, message, seeing, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(line))
    with pytest.raises(DataError, match=message):
        quantize(recipe(seeing[0], bad), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_text_without_a_place_for_its_image(seeing, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "load_processor", lambda path, trust: StandIn(template=None))
    with pytest.raises(DataError, match="no placeholder '<image>', and the processor no chat"):
        quantize(recipe(*seeing), tmp_path / "out")


def test_images_in_a_mix_are_refused(seeing, tmp_path):
    path, pictures = seeing
    with pytest.raises(DataError, match="names an image, and only text is read here"):
        quantize(recipe(path, f"{pictures}*0.5+stdlib*0.5"), tmp_path / "out")


def test_without_a_processor(models, tmp_path):
    path, pictures = models("qwen2_5_vl"), save_pictures(tmp_path)
    byte_tokenizer().save_pretrained(path)
    with pytest.raises(CheckpointError, match=r"holds no processor .*text alone"):
        quantize(recipe(path, pictures), tmp_path / "out")


def test_without_pillow(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(processor.importlib, "import_module", absent)
    with pytest.raises(DataError, match=r"x#1: .*pip install 'pennyweight\[vision\]'"):
        processor.open_image(tmp_path / "a.png", "x#1")


def test_a_text_model_given_images(tmp_path):
    pictures = save_pictures(tmp_path)
    with pytest.raises(DataError, match="LlamaForCausalLM reads text alone"):
        quantize(recipe("src/pennyweight/pylm", pictures), tmp_path / "out")
    with pytest.raises(DataError, match="LlamaForCausalLM reads text alone"):
        evaluate("src/pennyweight/pylm", data=[str(pictures)])


def test_a_rule_for_the_encoder_is_told_what_rules_reach(models, tmp_path):
    rule = W4 | {"match": "visual.*"}
    with pytest.raises(RecipeError, match=r"visual\..*beside the language model.*like 'model\.lay"):
        quantize(make_recipe(models("qwen2_vl"), save_tokens(tmp_path), rule), tmp_path / "out")


def test_a_quantized_source_is_refused_wherever_its_config_says_so(models, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(models("llava"), path)
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["quantization_config"] = {"quant_method": "gptq"}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"already quantized \(gptq\)"):
        Skeleton.build(Checkpoint.open(path))

"""What the user asked for. Read from TOML, a dictionary or the command line; nothing is resolved
yet."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pennyweight.core import RecipeError, UnknownNameError
from pennyweight.core.fields import typed
from pennyweight.export import TARGETS
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.quantize import QUANTIZERS
from pennyweight.quantize.base import Quantizer
from pennyweight.train import TRAINERS
from pennyweight.train.base import Trainer
from pennyweight.transform import TRANSFORMS
from pennyweight.transform.base import Transform

COMPUTE = ("float32", "bfloat16")
LARGEST = 10**9  # of the numbers that count something: beyond it they overflow further down


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """The text a model is observed on."""

    data: tuple[str, ...] = ("stdlib",)  # names, files, or one mix: a.txt*0.7+stdlib*0.3
    samples: int = 128
    tokens: int = 512  # per sample
    gradient_samples: int | None = None  # so many of the samples give gradients; all if not said
    split_at: str | None = None  # a regular expression that cuts text files into documents
    chat_template: bool = False  # put every text through the tokenizer's, for instruct models


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which scheme and quantizer the tensors that match get. The first rule that matches wins."""

    match: str = "*"  # a glob over tensor names as in the checkpoint
    scheme: str | tuple[str, ...] = "W4A16_g128"  # of several each tensor gets one, by `choose`
    choose: Literal["weight_error"] = "weight_error"  # the least squared error of plain rounding
    quantizer: str = "gptq"
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the quantizer

    @property
    def schemes(self) -> tuple[str, ...]:
        return (self.scheme,) if isinstance(self.scheme, str) else self.scheme


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A transform, and the inputs it is for: those of the tensors that match. All of them run, in
    order, on what the earlier ones left."""

    name: str
    match: str = "*"  # a glob over tensor names as in the checkpoint
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the transform

    def make(self, where: str = "transform") -> Transform:
        return make_transform(self.name, self.options, where)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A method that learns over a whole block, and the tensors it is for. All of them run, in
    order, once the rules of the block were carried out."""

    name: str
    match: str = "*"  # a glob over tensor names as in the checkpoint
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the trainer

    def make(self, where: str = "train") -> Trainer:
        return make_trainer(self.name, self.options, where)


@dataclass(frozen=True, kw_only=True)
class Planning:
    """How the schemes are found if a recipe names a budget and no rules; `pennyweight plan` has the
    same options."""

    quantizer: str = "gptq"
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the quantizer
    schemes: tuple[str, ...] = ()  # to choose from; the usual ones if none
    pin: tuple[str, ...] = ()  # PATTERN=SCHEME
    minimize: str = "size"
    costs: str | None = None  # a file of measured costs
    price_per_hour: float | None = None  # makes the seconds of that file money
    sense: str | None = None  # a table of `pennyweight sense`
    sense_train: bool = False  # units are measured as the trainers leave them
    estimator: str = "direct"
    estimator_options: Mapping[str, Any] = field(default_factory=dict)
    granularity: str = "fused"
    also: tuple[str, ...] = ()  # units beside the linears of blocks
    allocator: str = "exact"
    allocator_options: Mapping[str, Any] = field(default_factory=dict)
    sense_data: tuple[str, ...] = ("stdlib",)
    data: tuple[str, ...] = ("stdlib-heldout",)  # other text, on which candidates are measured
    split_at: str | None = None
    max_tokens: int = 16384
    document_tokens: int = 512
    limit: int | None = None  # items of each task of the budget
    shots: int | None = None  # examples before a question of theirs; as the task says if not given
    chat_template: bool = False  # of tasks
    run_code: bool = False  # of tasks: what the model wrote, in a sandbox
    rounds: int = 6


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what comes out. Times, threads and paths of outputs do not."""

    model: str = ""
    seed: int = 0
    budget: str = ""  # what may be lost, as kl<=0.02; a plan for it takes the place of the rules
    plan: Planning = Planning()
    calibrate: Calibrate = Calibrate()
    transform: tuple[Rewrite, ...] = ()
    train: tuple[Training, ...] = ()
    rule: tuple[Rule, ...] = (Rule(),)
    compute: str = (
        "auto"  # dtype of the forward passes: bfloat16 where the checkpoint is, else float32
    )
    # Experts that saw fewer are rounded to nearest, and take a static input scale from the largest
    # input of the block's experts; both are named in the card.
    min_expert_tokens: int = 32
    trust_remote_code: bool = False
    engine: Literal["any", "vllm"] = "any"  # vllm: what it cannot serve is an error
    target: str = "auto"  # compressed-tensors where it can hold the result, else packed; or dense


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, with `key=value` overrides (`rule.0.options.damp=0.05`) applied.

    Raises RecipeError with the path of the offending key and the nearest known one.
    """
    return parse_recipe(override(read_recipe(path), overrides), str(path))


def read_recipe(path: Path) -> dict[str, Any]:
    """The TOML of a recipe file, not yet checked."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (ValueError, RecursionError) as error:  # TOML, UTF-8, integers of 5000 digits
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """The recipe a dictionary describes. Raises RecipeError on unknown keys and wrong types."""
    try:
        data = json.loads(json.dumps(data, default=str))  # a copy in plain types, dates included
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: not what a recipe can hold: {error}") from None
    for rule in data.get("rule", []) if isinstance(data.get("rule"), list) else []:
        if isinstance(rule, dict):
            _unfold_quantizer(rule, where)
    unknown_keys(Recipe, data, where)
    recipe = typed(Recipe, data, f"{where}: ")
    _validate(recipe, where)
    return recipe


def _validate(recipe: Recipe, where: str) -> None:
    if not recipe.rule:
        raise RecipeError(f"{where}: rule: at least one rule is needed")
    if recipe.budget and recipe.rule != (Rule(),):
        raise RecipeError(
            f"{where}: budget: a plan decides the schemes; expected no rule beside it (plan.pin "
            "fixes the scheme of some tensors)"
        )
    if recipe.plan != Planning() and not recipe.budget:
        raise RecipeError(f"{where}: plan: says how to keep a budget, and there is none; add one")
    check_calibration(recipe.calibrate, recipe.seed, where)
    check_target(recipe.target, where)
    if recipe.compute not in ("auto", *COMPUTE):
        raise RecipeError(
            f"{where}: compute: expected auto, {' or '.join(COMPUTE)}, found {recipe.compute!r:.80}"
        )
    for index, rewrite in enumerate(recipe.transform):
        rewrite.make(f"{where}: transform.{index}")
    for index, training in enumerate(recipe.train):
        training.make(f"{where}: train.{index}")
    for index, rule in enumerate(recipe.rule):
        make_quantizer(rule.quantizer, rule.options, f"{where}: rule.{index}")
        if rule.schemes != (UNTOUCHED,):
            _check_schemes(rule.schemes, f"{where}: rule.{index}.scheme")


def _check_schemes(names: Sequence[str], where: str) -> None:
    if not names or (len(names) > 1 and UNTOUCHED in names):
        raise RecipeError(
            f"{where}: expected the name of a scheme, or several to choose from without "
            f"{UNTOUCHED}, which loses nothing; found {list(names)!r:.80}"
        )
    for name in names:
        with _at(where):
            parse_scheme(name)


def check_calibration(calibrate: Calibrate, seed: int, where: str) -> None:
    """Raises RecipeError for numbers that mean nothing, or overflow where they are used."""
    for name in ("samples", "tokens"):
        if not 1 <= (value := getattr(calibrate, name)) <= LARGEST:
            raise RecipeError(
                f"{where}: calibrate.{name}: expected 1 to {LARGEST}, found {value!s:.40}"
            )
    some = calibrate.gradient_samples
    if some is not None and not 1 <= some <= calibrate.samples:
        raise RecipeError(
            f"{where}: calibrate.gradient_samples: expected 1 to samples = {calibrate.samples}, "
            f"found {some!s:.40}"
        )
    if not 0 <= seed < 2**63:
        raise RecipeError(f"{where}: seed: expected 0 to 2^63 - 1, found {seed!s:.40}")


def check_target(name: str, where: str) -> None:
    """Raises UnknownNameError, with the nearest name."""
    if name != "auto":
        with _at(f"{where}: target"):
            TARGETS[name]


def make_quantizer(name: str, options: Mapping[str, Any], where: str) -> Quantizer:
    """The quantizer with these options; they are checked against its fields."""
    made = make_from(QUANTIZERS, name, options, where)
    with _at(f"{where}: {name}"):
        _ = made.needs  # where a quantizer or saliency inside it is looked up
    return made


def make_transform(name: str, options: Mapping[str, Any], where: str) -> Transform:
    """As `make_quantizer`."""
    return make_from(TRANSFORMS, name, options, where)


def make_trainer(name: str, options: Mapping[str, Any], where: str) -> Trainer:
    """As `make_quantizer`."""
    made: Trainer = make_from(TRAINERS, name, options, where)
    if made.batch < 1:
        raise RecipeError(f"{where}: {name}.batch: expected 1 or more, found {made.batch}")
    return made


def make_from(table: Mapping[str, type], name: str, options: Mapping[str, Any], where: str) -> Any:
    """What a table has under a name, with these options; they are checked against its fields."""
    with _at(where):
        cls = table[name]
    unknown_keys(cls, options, f"{where}: {name}")
    made = typed(cls, options, f"{where}: {name}.")
    for key in options:
        value = getattr(made, key)
        if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
            raise RecipeError(
                f"{where}: {name}.{key}: expected a number of 0 or more, found {value!s:.40}"
            )
    return made


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Say where the name is that nobody knows, or the option that is wrong."""
    try:
        yield
    except (UnknownNameError, RecipeError) as error:
        raise type(error)(f"{where}: {error}") from None


def override(data: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """`data` with `path=value` assignments; values are TOML, and bare words are strings."""
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment}: expected key=value")
        _assign(data, path.strip().split("."), _value(text.strip()), assignment)
    return data


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _assign(data: Any, keys: list[str], value: Any, assignment: str) -> None:
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(data, list):
            if not key.isdecimal() or int(key) >= len(data):
                raise RecipeError(f"--set {assignment}: {key!r} is not one of {len(data)} entries")
            place: Any = int(key)
        elif not isinstance(data, dict):
            raise RecipeError(f"--set {assignment}: {'.'.join(keys[:position])} holds no keys")
        else:
            place = key
        if last:
            data[place] = value
        else:
            listed = key in ("rule", "transform", "train")
            fresh = [{}] if listed else {}  # rule.0 is there without a file
            data = data[place] if isinstance(data, list) else data.setdefault(key, fresh)


def _unfold_quantizer(rule: dict[str, Any], where: str) -> None:
    """`quantizer = { name = "gptq", damp = 0.01 }` is a name and options."""
    quantizer = rule.get("quantizer")
    if isinstance(quantizer, dict):
        if "name" not in quantizer:
            raise RecipeError(f"{where}: rule.quantizer: expected a name beside its options")
        options = rule.get("options", {})
        if not isinstance(options, dict):
            raise RecipeError(f"{where}: rule.options: expected a table, found {options!r:.80}")
        rule["options"] = {**quantizer, **options}
        rule["quantizer"] = rule["options"].pop("name")


_NESTED = {
    "calibrate": Calibrate, "rule": Rule, "transform": Rewrite, "train": Training, "plan": Planning
}  # fmt: skip


def unknown_keys(cls: type, data: Mapping[str, Any], where: str) -> None:
    """Names of a dataclass, then of the dataclasses in its fields; pydantic alone would ignore
    them."""
    known = {f.name: f for f in dataclasses.fields(cls)}
    for key, value in data.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
            raise RecipeError(f"{where}: unknown key {key!r}; {hint}")
        nested = _NESTED.get(key) if cls is Recipe else None
        if nested:
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, dict):
                    number = f".{index}" if isinstance(value, list) else ""
                    unknown_keys(nested, item, f"{where}: {key}{number}")

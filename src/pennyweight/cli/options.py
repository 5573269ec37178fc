"""From options of the command line to a recipe; what `check` and `quantize` share."""

from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="Model directory or Hub id; `pylm` is the bundled one.", show_default=False
    ),
]
ModelOrRecipes = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Model directory or Hub id; `pylm` is the bundled one. The recipe's if not given.",
        show_default=False,
    ),
]
SchemeName = Annotated[
    str | None,
    typer.Option("--scheme", help="Such as W4A16_g128 (the default), W3A16_g64_asym, W8A8."),
]
QuantizerName = Annotated[
    str | None, typer.Option("--quantizer", help="gptq (the default), rtn, mse_clip or hqq.")
]
CalibrateOn = Annotated[
    list[str] | None,
    typer.Option(
        "--calibrate",
        help="stdlib (the default), another source of `list calibrations`, a .txt, .jsonl or .json "
        "file, or a mix: a.txt*0.7+stdlib*0.3. Repeatable.",
    ),
]
ChatTemplate = Annotated[
    bool | None,
    typer.Option(
        "--chat-template/--no-chat-template",
        help="Put calibration text through the tokenizer's chat template.", show_default=False,
    ),
]  # fmt: skip
Samples = Annotated[int | None, typer.Option(help="Calibration samples [128].")]
Tokens = Annotated[int | None, typer.Option(help="Tokens of each sample [512].")]
SplitAt = Annotated[
    str | None, typer.Option(help="Regular expression that cuts calibration files into documents.")
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A TOML recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value in the recipe, as rule.0.options.damp=0.05. Repeatable."),
]
SenseOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="quantizer.KEY=VALUE or estimator.KEY=VALUE, as quantizer.damp=0.05; likewise "
        "of what --train names, as signround.steps=400.",
    ),
]
PlanOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="quantizer.KEY=VALUE; likewise of estimator, allocator (as "
        "allocator.storage=tpe.journal: several processes may share the search of tpe) and what "
        "--train and --transform name, as signround.steps=400.",
    ),
]  # fmt: skip
Seed = Annotated[int | None, typer.Option(help="Seed of all randomness [0].")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; time only, never the result.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that the model brings along.")
]


def recipe_from(
    model: str | None,
    file: Path | None,
    overrides: list[str] | None,
    *,
    rule: dict[str, Any],
    calibrate: dict[str, Any],
    top: dict[str, Any],
):
    """The recipe of a file, or of the options; options that were given win over the file."""
    from pennyweight.core import RecipeError
    from pennyweight.pipeline.recipe import override, parse_recipe, read_recipe

    if model and model.endswith(".toml"):
        raise RecipeError(f"MODEL: {model!r:.80} is a recipe; say --recipe {model}")
    data: dict[str, Any] = read_recipe(file) if file else {}
    if file:
        parse_recipe(data, str(file))  # so that what is laid over it is laid over a recipe
    data.update({key: value for key, value in top.items() if value is not None})
    given = {key: value for key, value in rule.items() if value is not None}
    if data.get("budget") and "quantizer" in given:  # the plan makes the rules
        data.setdefault("plan", {})["quantizer"] = given.pop("quantizer")
    if given:
        rules = data.setdefault("rule", [{}])
        for entry in rules[-1:]:  # the last rule is the one that takes what no other rule took
            entry.update(given)
    data.setdefault("calibrate", {}).update(
        {key: value for key, value in calibrate.items() if value is not None}
    )
    if model:
        data["model"] = model
    return parse_recipe(override(data, overrides or []), str(file or "options"))


def sense_options(
    overrides: list[str] | None, of: tuple[str, ...] = ("quantizer", "estimator")
) -> dict[str, dict[str, Any]]:
    """The options of quantizer, estimator and whatever else has some, by these words."""
    from pennyweight.core import RecipeError
    from pennyweight.pipeline.recipe import override

    found = override({word: {} for word in of}, overrides or [])
    if len(found) > len(of):
        expected = " or ".join(f"{word}.KEY" for word in of)
        raise RecipeError(f"--set: expected {expected}, found {list(found)[len(of)]}")
    return found


def names(text: str | None) -> tuple[str, ...]:
    """Of a list with commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())

"""The verbs of the command line as functions.

    from pennyweight.api import Recipe, Rule, check, evaluate, quantize

    recipe = Recipe(model="pylm", rule=(Rule(scheme="W4A16_g128"),))
    print(check(recipe).estimated_peak_bytes)
    result = quantize(recipe, "out")
    print(evaluate(result.path, against="pylm").comparison.kl_nats)

    quantize(Recipe(model="pylm", budget="kl<=0.01", engine="vllm"), "planned")

They raise PennyweightError for whatever a caller can mend. Apart from the package itself, because
`pennyweight.export` and `pennyweight.evaluate` are packages of it, and importing torch takes long.
"""

from pennyweight.core import PennyweightError, Progress
from pennyweight.evaluate import Evaluation, Settings
from pennyweight.model.attention import AttentionFormats
from pennyweight.model.load import load_model
from pennyweight.pipeline.check import CheckReport, check
from pennyweight.pipeline.evaluate import evaluate
from pennyweight.pipeline.finish import export
from pennyweight.pipeline.inject import Injection, inject_outliers
from pennyweight.pipeline.profile import Profile, Sampling, profile
from pennyweight.pipeline.prove import prove
from pennyweight.pipeline.quantize import Result
from pennyweight.pipeline.recipe import Calibrate, Planning, Recipe, Rewrite, Rule, load_recipe
from pennyweight.study.planning.budgeted import quantize
from pennyweight.study.planning.planner import Planned, plan
from pennyweight.study.planning.wish import Wish

__all__ = [
    "AttentionFormats",
    "Calibrate",
    "CheckReport",
    "Evaluation",
    "Injection",
    "PennyweightError",
    "Planned",
    "Planning",
    "Profile",
    "Progress",
    "Recipe",
    "Result",
    "Rewrite",
    "Rule",
    "Sampling",
    "Settings",
    "Wish",
    "check",
    "evaluate",
    "export",
    "inject_outliers",
    "load_model",
    "load_recipe",
    "plan",
    "profile",
    "prove",
    "quantize",
]

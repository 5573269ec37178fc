"""What a model is worth: scores over documents, and how sure the numbers are."""

from pennyweight.evaluate.evaluation import (
    DEFAULT_CONTEXT,
    Comparison,
    Evaluation,
    Settings,
    evaluate_tokens,
    plain,
)
from pennyweight.evaluate.intervals import Interval, bootstrap_ratios
from pennyweight.evaluate.scores import Scores, score_documents

__all__ = [
    "DEFAULT_CONTEXT",
    "Comparison",
    "Evaluation",
    "Interval",
    "Scores",
    "Settings",
    "bootstrap_ratios",
    "evaluate_tokens",
    "plain",
    "score_documents",
]

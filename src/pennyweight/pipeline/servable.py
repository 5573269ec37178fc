"""What keeps vLLM from serving a result: found from the plan, before anything is made.

The rules are those that the tests of serving found (tests/vllm), each in words that name it.
"""

from __future__ import annotations

from collections.abc import Iterator

from pennyweight.core import FormatError, RecipeError
from pennyweight.formats.compressed_tensors import layout, parts
from pennyweight.formats.schemes import UNTOUCHED, parse_scheme
from pennyweight.pipeline.plan import Plan
from pennyweight.pipeline.survey import Survey

KERNEL_BITS = (4, 8)


def mixed_products(plan: Plan, survey: Survey) -> Iterator[str]:
    """Linears that vLLM runs as one product and that have several schemes."""
    tasks = plan.by_tensor
    for sites in survey.fused():
        schemes = {
            site.tensor: tasks[site.tensor].scheme if site.tensor in tasks else UNTOUCHED
            for site in sites
        }
        if len(set(schemes.values())) > 1:
            listed = ", ".join(f"{name} {scheme}" for name, scheme in schemes.items())
            yield f"vLLM runs these as one matrix product and wants one scheme for all: {listed}"


def rare_bits(plan: Plan) -> Iterator[str]:
    """Schemes of other widths than vLLM has kernels for."""
    rare = {t.scheme for t in plan.tasks if plan.scheme(t).weight.grid.bits not in KERNEL_BITS}
    if rare:
        names = ", ".join(sorted(rare))
        yield f"{names}: transformers loads it; vLLM has kernels for 4- and 8-bit weights alone"


def unknown_layouts(plan: Plan, survey: Survey) -> Iterator[str]:
    """Schemes that compressed-tensors, which vLLM reads, has no place for."""
    for scheme in sorted({task.scheme for task in plan.tasks}):
        tensor = next(task.tensor for task in plan.tasks if task.scheme == scheme)
        try:
            parts(plan.scheme(plan.by_tensor[tensor]), survey.quantizable[tensor].shape)
        except FormatError as error:
            yield f"{scheme}: vLLM reads compressed-tensors, and that cannot hold it: {error}"


def unservable_scheme(name: str) -> str | None:
    """Why vLLM serves no weight of this scheme, as far as its name tells."""
    if name == UNTOUCHED:
        return None
    scheme = parse_scheme(name)
    if scheme.weight.grid.bits not in KERNEL_BITS:
        return f"{name}: vLLM has kernels for 4- and 8-bit weights alone"
    try:
        layout(scheme)
    except FormatError as error:
        return f"{name}: vLLM reads compressed-tensors, and that cannot hold it: {error}"
    return None


def require_engine(engine: str, plan: Plan, survey: Survey) -> None:
    """Raises RecipeError with the first rule that a plan breaks if it is to be served by vLLM."""
    if engine == "any":
        return
    for faults in (mixed_products(plan, survey), rare_bits(plan), unknown_layouts(plan, survey)):
        for fault in faults:
            raise RecipeError(f'{fault}. Mend the rules, or say engine = "any" in the recipe')

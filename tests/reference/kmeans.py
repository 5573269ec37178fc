"""Weighted k-means on a line, by trying every way to cut the sorted values into runs."""

from itertools import accumulate, combinations


def least_loss(values: list[float], importance: list[float], count: int) -> float:
    """Of the best `count` means; the optimum's clusters are runs of the sorted values."""
    pairs = sorted(zip(values, importance, strict=True))
    inner = range(1, len(pairs))
    return min(
        sum(_loss(pairs[a:b]) for a, b in zip((0, *cuts), (*cuts, len(pairs)), strict=True))
        for used in range(1, min(count, len(pairs)) + 1)
        for cuts in combinations(inner, used - 1)
    )


def _loss(pairs: list[tuple[float, float]]) -> float:
    mass = sum(weight for _, weight in pairs)
    if mass == 0:
        return 0.0
    mean = sum(value * weight for value, weight in pairs) / mass
    return sum(weight * (value - mean) ** 2 for value, weight in pairs)


def least_loss_of_many(values: list[float], importance: list[float], count: int) -> float:
    """The same by dynamic programming over every prefix, for rows too long to try everything."""
    pairs = sorted(zip(values, importance, strict=True))
    mass, first, second = (
        [0.0, *accumulate(weight * value**power for value, weight in pairs)] for power in range(3)
    )

    def run(i: int, j: int) -> float:
        inside = mass[j] - mass[i]
        return second[j] - second[i] - (first[j] - first[i]) ** 2 / inside if inside else 0.0

    best = [0.0, *([float("inf")] * len(pairs))]
    for _ in range(count):
        ends = range(1, len(pairs) + 1)
        best = [0.0, *(min(best[i] + run(i, j) for i in range(j)) for j in ends)]
    return best[-1]

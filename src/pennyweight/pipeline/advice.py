"""What a profile means, in plain sentences: does this model need care for outliers, and does it
matter what it is calibrated on?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median

from pennyweight.observe.portrait import Likeness, Portrait
from pennyweight.pipeline.profile import Place, Profile

# Below this, rounding inputs to int8 costs percents of perplexity. Measured with bench/outliers.py
# on stories260K, least SQNR of all inputs -> rise of the perplexity: 34 dB 0.2 %, 24 dB 1.6 %,
# 23 dB 2.1 %, 14 dB 16 %, 8 dB sevenfold, 2 dB six hundredfold.
LITTLE_SQNR_DB = 20.0
LOUD_RATIO = 10.0  # largest over median channel: above it a few channels rule the scale
FIRST_RATIO = 4.0  # what first tokens reach, against all others
ALIKE = 0.8  # rank correlation from which two sets see the same channels
RANGE = 1.5  # and the factor by which their ranges may differ


def advise(profile: Profile) -> tuple[str, ...]:
    """One sentence for each finding; the first set speaks for the outliers."""
    name = next(iter(profile.calibration))
    seen = [(place, place.portraits[name]) for place in profile.inputs if name in place.portraits]
    sentences = [*_outliers(seen), *_first(seen), _features(profile, name)]
    return (*sentences, *_calibration(profile))


def _outliers(seen: list[tuple[Place, Portrait]]) -> Iterator[str]:
    place, worst = min(seen, key=lambda pair: _number(pair[1].whole_tensor_sqnr_db))
    low = [p for _, p in seen if p.whole_tensor_sqnr_db < LITTLE_SQNR_DB]
    of = f"{len(low)} of {len(seen)} inputs"
    said = f"(worst: {_where(place)}, {worst.whole_tensor_sqnr_db:.1f} dB)"
    if not low:
        yield (
            f"Outliers: no handling needed. With one int8 scale for a whole sequence every input "
            f"keeps {LITTLE_SQNR_DB:g} dB or more {said}; W8A8 and W8A8_static will both do."
        )
        return
    yield (
        f"Outliers: with one int8 scale for a whole sequence {of} keep less than "
        f"{LITTLE_SQNR_DB:g} dB {said}: W8A8_static as it is will lose."
    )
    still = [p for p in low if p.token_sqnr_db < LITTLE_SQNR_DB]
    if not still:
        yield "One scale for each token is enough for all of them: use W8A8."
    else:
        least = min(p.token_sqnr_db for p in still)
        yield (
            f"One scale for each token does not mend {len(still)} of them (least: {least:.1f} dB): "
            "put smoothquant or clip_smooth before it, or keep inputs at 16 bits (W8A16, W4A16)."
        )
    channels = sum(p.max_to_median > LOUD_RATIO for p in low)
    if channels:
        yield (
            f"In {channels} of them a few channels are more than {LOUD_RATIO:g} times the median "
            "one: smoothing moves these into the weights."
        )


def _first(seen: list[tuple[Place, Portrait]]) -> Iterator[str]:
    loud = [(p, x) for p, x in seen if x.first_absmax > FIRST_RATIO * x.absmax]
    if loud:
        place, portrait = max(loud, key=lambda pair: pair[1].first_absmax / pair[1].absmax)
        yield (
            f"First tokens: in {len(loud)} of {len(seen)} inputs they reach more than "
            f"{FIRST_RATIO:g} times what other tokens do (most: {_where(place)}, "
            f"{portrait.first_absmax:.3g} against {portrait.absmax:.3g}); static scales are made "
            "for them, and without them these inputs would keep up to "
            f"{max(x.tensor_sqnr_db - x.whole_tensor_sqnr_db for _, x in loud):.1f} dB more."
        )


def _features(profile: Profile, name: str) -> str:
    features = profile.outlier_features[name]
    listed = ", ".join(map(str, features[:8])) + (", ..." if len(features) > 8 else "")
    return (
        f"LLM.int8()'s rule (above 6 at 6 % of the tokens in a quarter of the inputs): "
        f"{f'{len(features)} channels ({listed})' if features else 'no channel'}."
    )


def _calibration(profile: Profile) -> Iterator[str]:
    names = list(profile.calibration)
    if len(names) == 1:
        yield "Calibration: one set was looked at; give two or more to see whether it matters."
        return
    for other in names[1:]:
        pairs = [(p, p.likeness[other]) for p in profile.inputs if other in p.likeness]
        if pairs:
            yield _likeness(names[0], other, pairs)


def _likeness(first: str, other: str, pairs: list[tuple[Place, Likeness]]) -> str:
    ranks = [like.spearman for _, like in pairs if not math.isnan(like.spearman)]
    rank = median(ranks) if ranks else math.nan
    overlap = median(like.top_overlap for _, like in pairs)
    chance = median(like.top_by_chance for _, like in pairs)
    factor, place = max(
        ((_factor(like.range_ratio), place) for place, like in pairs), key=lambda pair: pair[0]
    )
    differs = not rank >= ALIKE or factor > RANGE
    return (
        f"Calibration, {other} against {first}: rank correlation of the channels' absmax "
        f"{rank:.2f} (median over inputs), {overlap:.0%} of the top channels in common "
        f"({chance:.0%} by chance), ranges apart by a factor of {factor:.2f} at most "
        f"({_where(place)}). "
        + (
            "These are other channels or other ranges: methods that follow channels or fix scales "
            "may depend on the choice, and `pennyweight study calibration` measures whether they "
            "do."
            if differs
            else "Much the same channels and ranges: nothing here says that the choice matters."
        )
    )


def _factor(ratio: float) -> float:
    """How far apart two ranges are, whichever is larger; infinite if one is nothing."""
    return max(ratio, 1 / ratio) if ratio > 0 else math.inf


def _where(place: Place) -> str:
    return place.name.partition(", ")[0]


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value

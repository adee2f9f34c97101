"""How sure a figure is, and which differences between runs are real.

What an interval here covers: that other test images of the same kind (other groups, where the data has groups) would
have been drawn. The trained models are held fixed. So it covers neither the choice of training images nor the training
seed; what the choice of images does is shown by the spread over the repeats, `sd`. That spread is no standard error:
the repeats' training parts overlap, so that sd / sqrt(repeats) would be too small (Nadeau and Bengio, Machine Learning
52, 2003).

Figures: bootstrap. All images of a group are drawn together, in every repeat that tests them, so that an image that is
tested twice counts as one image. A drawn figure is the mean over the repeats, each weighted by the share of its images
that was drawn. The limits are quantiles, moved outward as Student's t asks when units are few ("expanded percentile
interval": Hesterberg, The American Statistician 69, 2015; without it 10 groups are covered 90 % of the time). The
calibration error comes out too large from a sample, and still larger from draws of the sample: its limits are reflected
at the figure, which takes the first out by means of the second.

Differences: the same draws for both runs, so that what is hard for both cancels. The test is Student's t with the
bootstrap's standard error, and so is the interval: both then say the same, and p values are fine enough for Holm's
correction over many runs, which counts of 2,000 draws are not. As in McNemar's test, a difference in accuracy counts
one image less than was seen (Edwards, Psychometrika 13, 1948), and p is never below 2^(1 - d), where d units tell the
runs apart: with few images that differ, no test of them can say more.

Many images: above the limits below, 256 random buckets of whole units are left out one after the other instead, and
the standard error is the jackknife's. That is as good when units are many, ranks images once, and a file of 256 rows is
enough to test differences with.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from stages.cli import UserError
from stages.scoring.metrics import Floats, Integers, Outcomes

RESAMPLES = 2000
SEED = 0
CONFIDENCE = 0.95
FEWEST_UNITS = 5
"""With fewer, the wanted quantile lies beyond the most extreme draw there is: no interval is given."""
BUCKETS = 256
MOST_SCORES = 250_000
"""Rows times ranked classes up to which the bootstrap is used; 2,000 draws of so many take some seconds."""
BLOCK = 60_000
"""Weights worked on at a time: they stay in the processor's cache."""


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval over test images, and its standard deviation over repeats; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """A run's figure minus the reference's, on the repeats that both have; None where undefined.

    p : that a difference as large, to either side, comes about by the choice of test images alone
    p_adjusted : the same after Holm's correction over all runs that were compared with the reference
    sd, by_repeat : spread over the repeats, and each repeat's difference
    units : independent test images, or groups
    """

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    sd: float | None
    by_repeat: list[float | None]
    repeats: list[int]
    units: int


@dataclass(frozen=True)
class Replicates:
    """Figures for m reweightings of the test images: drawn by the bootstrap, or leaving out one bucket of units each.

    whole : figure -> (repeats,) or (repeats, classes), all images with weight one
    values : figure -> (repeats, m) or (repeats, m, classes)
    share : (repeats, m) weight of a repeat's images in each reweighting, over their number
    """

    repeats: list[int]
    images: list[int]  # in each repeat
    whole: dict[str, Floats]
    values: dict[str, Floats]
    share: Floats
    units: int
    bootstrap: bool

    def of_repeats(self, repeats: Sequence[int]) -> Replicates:
        """Return the figures of some repeats; only for left out buckets, since draws are made over all repeats."""
        if list(repeats) == self.repeats:
            return self
        assert not self.bootstrap
        index = [self.repeats.index(r) for r in repeats]
        share = self.share[index]
        return replace(
            self,
            repeats=list(repeats),
            images=[self.images[i] for i in index],
            whole={k: v[index] for k, v in self.whole.items()},
            values={k: v[index] for k, v in self.values.items()},
            share=share,
            units=int((share < 1).any(axis=0).sum()),
        )

    def combined(self, figure: str) -> tuple[Floats, Floats]:
        """Return the mean over repeats of a figure, () or (classes,), and of its reweightings, (m,) or (m, classes)."""
        values = self.values[figure]
        share = self.share if values.ndim == 2 else self.share[:, :, None]
        return nan_mean(self.whole[figure]), nan_mean(values, share)

    def estimate(self, figure: str) -> Floats:
        """Return value, low, high and sd of a figure: (4,) or (4, classes), NaN where undefined."""
        value, values = self.combined(figure)
        low = high = np.full_like(value, np.nan)
        if self.units >= FEWEST_UNITS and self.bootstrap:
            level = expanded_level(self.units)
            enough = np.isnan(values).mean(axis=0) <= 0.5
            quantile = np.nanquantile if np.isnan(values).any() else np.quantile  # the first takes ten times as long
            limits = quantile(np.where(enough, values, 0.0), [level, 1 - level], axis=0)
            low, high = np.where(enough & ~np.isnan(value), limits, np.nan)
            if figure == "ece":
                low, high = np.clip(2 * value - high, 0.0, value), np.maximum(2 * value - low, value)
        elif self.units >= FEWEST_UNITS:
            reach = student_quantile(self.units - 1) * self.standard_error(value, values)
            low, high = np.maximum(value - reach, 0.0), value + reach
            high = high if figure == "log_loss" else np.minimum(high, 1.0)
        return np.stack([value, low, high, nan_sd(self.whole[figure])])

    def standard_error(self, value: Floats, values: Floats) -> Floats:
        """Return the standard error of a figure, from its reweightings."""
        if self.bootstrap:  # a sample of m units varies (m - 1) / m as much as it should
            return nan_sd(values) * float(np.sqrt(self.units / (self.units - 1)))
        squares: Floats = np.nansum((values - value) ** 2, axis=0)
        return squares**0.5 * float(np.sqrt((self.units - 1) / self.units))


def replicates(outcomes: Outcomes, ranks: bool = True) -> Replicates:
    """Reweight the test images of a run: by the bootstrap, or leaving out buckets where they are many."""
    if len(outcomes) * (len(outcomes.ranked) if ranks else 1) > MOST_SCORES:
        return left_out(outcomes, ranks)
    names, codes = outcomes.units
    draws = _draws(len(names), len(outcomes) if ranks else len(names))
    return _reweighted(outcomes, codes, draws, ranks, len(names))


def left_out(outcomes: Outcomes, ranks: bool = True) -> Replicates:
    """Work out the figures with one bucket of units left out after the other.

    A unit's bucket depends on its name alone: two runs over the same test images have the same buckets.
    """
    names, codes = outcomes.units
    buckets = np.array([zlib.crc32(name.encode()) % BUCKETS for name in names], dtype=np.int64)[codes]
    parts = [np.flatnonzero(outcomes.repeats == repeat) for repeat in outcomes.repeat_numbers]
    found = [outcomes.scores(rows, buckets[rows]).left_out(BUCKETS, ranks) for rows in parts]
    return Replicates(
        repeats=outcomes.repeat_numbers,
        images=[len(rows) for rows in parts],
        whole={k: np.stack([f[k][0] for f in found]) for k in found[0]},
        values={k: np.stack([f[k][1:] for f in found]) for k in found[0]},
        share=np.stack([(len(rows) - np.bincount(buckets[rows], minlength=BUCKETS)) / len(rows) for rows in parts]),
        units=len(np.unique(buckets)),
        bootstrap=False,
    )


def _draws(units: int, width: int) -> Iterator[Floats]:
    """Yield how often each unit is drawn in each of RESAMPLES draws with replacement: blocks of (m, units).

    width : how many numbers are worked on for each draw
    """
    random = np.random.default_rng(SEED)
    size = max(1, BLOCK // max(width, 1))
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        drawn = random.integers(0, units, size=(count, units)) + units * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)


def _reweighted(outcomes: Outcomes, codes: Integers, blocks: Iterator[Floats], ranks: bool, units: int) -> Replicates:
    parts = [_Part(outcomes, codes, repeat) for repeat in outcomes.repeat_numbers]
    whole = [part.scores.figures(np.ones((1, len(part.units))), ranks) for part in parts]
    collected: list[list[dict[str, Floats]]] = [[] for _ in parts]
    shares: list[list[Floats]] = [[] for _ in parts]
    for block in blocks:
        for i, part in enumerate(parts):
            weights = block[:, part.units]
            collected[i].append(part.scores.figures(weights, ranks))
            shares[i].append(weights @ part.images / part.images.sum())
    return Replicates(
        repeats=outcomes.repeat_numbers,
        images=[int(part.images.sum()) for part in parts],
        whole={k: np.stack([w[k][0] for w in whole]) for k in whole[0]},
        values={k: np.stack([np.concatenate([f[k] for f in of]) for of in collected]) for k in whole[0]},
        share=np.stack([np.concatenate(s) for s in shares]),
        units=units,
        bootstrap=True,
    )


class _Part:
    """The test images of one repeat: the units they belong to, how many are in each, and their scores."""

    def __init__(self, outcomes: Outcomes, codes: Integers, repeat: int) -> None:
        rows = np.flatnonzero(outcomes.repeats == repeat)
        self.units, own, images = np.unique(codes[rows], return_inverse=True, return_counts=True)
        self.images = images.astype(np.float64)
        self.scores = outcomes.scores(rows, own)


def estimates(
    outcomes: Outcomes, found: Replicates | None = None
) -> tuple[dict[str, Estimate], dict[str, dict[str, Estimate]]]:
    """Return a run's figures by name, and of each class its figures by name; found : their replicates, where known."""
    found = replicates(outcomes) if found is None else found
    figures = {name: _as_estimate(found.estimate(name)) for name in outcomes.figures}
    of_classes: dict[str, dict[str, Estimate]] = {name: {} for name in outcomes.classes}
    for key in (k for k in found.whole if k.startswith("class_")):
        values = found.estimate(key)
        for i, name in enumerate(outcomes.classes):
            of_classes[name][key.removeprefix("class_")] = _as_estimate(values[:, i])
    return figures, of_classes


def _as_estimate(values: Floats) -> Estimate:
    return Estimate(*(as_number(v) for v in values))


def differences(
    reference: Outcomes | Replicates,
    others: Mapping[str, Outcomes | Replicates],
    figures: Sequence[str] = ("accuracy", "auc"),
) -> dict[str, dict[str, Difference]]:
    """Compare runs with a reference run over the same test images; returns for each run its differences by figure.

    Raises UserError when a run was scored on other test images than the reference.
    """
    ranks = not {"auc", "average_precision"}.isdisjoint(figures)
    of_reference: dict[tuple[tuple[int, ...], bool], Replicates] = {}
    found: dict[str, dict[str, Difference]] = {}
    for name, other in others.items():
        repeats = tuple(r for r in _repeats(reference) if r in _repeats(other))
        a, b = _on_repeats(reference, repeats), _on_repeats(other, repeats)
        _check_paired(name, a, b)
        buckets = isinstance(a, Replicates) or isinstance(b, Replicates)
        key = (repeats, buckets)
        if key not in of_reference:
            of_reference[key] = _replicates_of(a, buckets, ranks)
        pair = of_reference[key], _replicates_of(b, buckets, ranks)
        found[name] = {f: _difference(*pair, f, _telling(a, b, f, pair[0].units)) for f in figures}
    for figure in figures:
        adjusted = holm([found[name][figure].p for name in found])
        for name, p in zip(found, adjusted, strict=True):
            found[name][figure] = replace(found[name][figure], p_adjusted=p)
    return found


def _repeats(run: Outcomes | Replicates) -> list[int]:
    return run.repeats if isinstance(run, Replicates) else run.repeat_numbers


def _on_repeats(run: Outcomes | Replicates, repeats: Sequence[int]) -> Outcomes | Replicates:
    return run.of_repeats(repeats)


def _replicates_of(run: Outcomes | Replicates, buckets: bool, ranks: bool) -> Replicates:
    if isinstance(run, Replicates):
        return run
    return left_out(run, ranks) if buckets else replicates(run, ranks)


def _check_paired(name: str, a: Outcomes | Replicates, b: Outcomes | Replicates) -> None:
    if isinstance(a, Outcomes) and isinstance(b, Outcomes):
        same = a.samples == b.samples and a.unit_names == b.unit_names and np.array_equal(a.truth, b.truth)
    else:
        buckets = [x if isinstance(x, Replicates) else left_out(x, ranks=False) for x in (a, b)]
        same = np.array_equal(buckets[0].share, buckets[1].share)
    if not _repeats(a) or not same:
        raise UserError(f"run {name} was scored on other test images than its reference: run `dvc repro evaluate`")


def _telling(a: Outcomes | Replicates, b: Outcomes | Replicates, figure: str, units: int) -> int:
    """Count the units that the two runs tell apart."""
    if isinstance(a, Replicates) or isinstance(b, Replicates):
        return units
    if figure == "accuracy":
        differs = a.right != b.right
        differs = differs.any(axis=1) if a.multi_label else differs
    else:
        differs = (a.probabilities != b.probabilities).any(axis=1)
    return len(np.unique(a.units[1][differs]))


def _difference(a: Replicates, b: Replicates, figure: str, telling: int) -> Difference:
    """Return b minus a."""
    from scipy.special import stdtr

    whole = b.whole[figure] - a.whole[figure]
    # Only repeats that are defined for both runs count, in the value as in the draws.
    value, values = nan_mean(whole), nan_mean(b.values[figure] - a.values[figure], a.share)
    low = high = p = np.nan
    if a.units >= FEWEST_UNITS and not np.isnan(value):
        error = float(a.standard_error(value, values))
        one_image = 1 / sum(a.images) if figure == "accuracy" else 0.0
        reach = student_quantile(a.units - 1) * error + one_image
        low, high = float(value) - reach, float(value) + reach
        surplus = abs(float(value)) - one_image
        p = 2 * stdtr(a.units - 1, -surplus / error) if error > 0 and surplus > 0 else float(surplus <= 0)
        p = max(p, min(1.0, 2.0 ** (1 - telling)))
    return Difference(
        value=as_number(value),
        low=as_number(low),
        high=as_number(high),
        p=as_number(p),
        p_adjusted=None,
        sd=as_number(nan_sd(whole)),
        by_repeat=[as_number(v) for v in whole],
        repeats=a.repeats,
        units=a.units,
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number, so that all of them together raise a false alarm in 5 of 100 cases at most.

    Undefined ones (None) stay so and are not counted. Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = largest
    return adjusted


@cache
def expanded_level(units: int) -> float:
    """Return the quantile of the draws at which the lower limit of a 95 % interval lies (2.5 % with many units)."""
    from scipy.special import ndtr

    return float(ndtr(-student_quantile(units - 1) * np.sqrt(units / (units - 1))))


@cache
def student_quantile(freedom: int) -> float:
    """Return how many standard errors a 95 % interval reaches to each side."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


def nan_mean(values: Floats, weights: Floats | None = None) -> Floats:
    """Return the weighted mean over the first axis of what is defined there; NaN where nothing is."""
    weight = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
    total = weight.sum(axis=0)
    some: Floats = (np.where(np.isnan(values), 0.0, values) * weight).sum(axis=0) / np.where(total > 0, total, 1.0)
    return np.where(total > 0, some, np.nan)


def nan_sd(values: Floats) -> Floats:
    """Return the standard deviation (n - 1) over the first axis of what is defined there; NaN with fewer than two."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    square = np.where(defined, values - nan_mean(values), 0.0) ** 2
    return np.where(count > 1, np.sqrt(square.sum(axis=0) / np.maximum(count - 1, 1)), np.nan)


def as_number(value: Any) -> float | None:
    """Return a number for JSON: six decimals, so that the last bit of a sum shows nowhere; None for NaN."""
    return None if np.isnan(value) else round(float(value), 6)

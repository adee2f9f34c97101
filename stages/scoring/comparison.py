"""The runs of each data set side by side: which differences are real, which run is recommended, what a split is worth.

The reference of a data set is the run that params.yaml names, or its first plain linear probe. Differences to it are in
accuracy, or in mean average precision where images have several labels, paired by image on the repeats that both runs
have (see intervals.py). A verdict needs two repeats or more: with one split nobody knows how another split would have
ordered the runs.

Recommended is the cheapest run that is not shown to be worse than the best, by the same test with its own correction,
nor than the reference; the reference itself only if no run is shown to be better. (Else a best run of which little is
known, because it differs from all others widely, would let in the cheapest run of all.) Cheap means few multiply-adds
per image, below the cut and above it; of runs that take the same, the most accurate. It is counted, so that every
machine recommends the same run; seconds would not do that. Two more rules keep the answer honest:
- Only runs with the most labels of each class, and of those the ones on the most repeats, are in the choice: all have
  learned from as much and are scored on the same images.
- A baseline (family none: what a transfer must beat) is recommended only if it scores highest. Where a baseline is not
  shown to be worse than what is recommended, a caution says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from stages.params import Dataset, Params, Run
from stages.scoring.intervals import Difference, differences, holm
from stages.scoring.metrics import Outcomes
from stages.scoring.records import Record
from stages.scoring.wording import FIGURE_NAMES, count, decimals, interval, listed, signed

SIGNIFICANCE = 0.05
BETTER, WORSE, EVEN, ONE_SPLIT, TOO_FEW = (
    "better",
    "worse",
    "not shown to differ",
    "one split",
    "too few groups",
)


@dataclass(frozen=True)
class DatasetComparison:
    """What is known about the runs of one data set.

    runs : in the order of params.yaml
    repeats, images, groups : of the run on the most repeats; groups is None where every image stands for itself
    figure : what runs are ordered and compared by, accuracy or average_precision
    to_reference, to_best : run -> its figure minus the reference's, the best run's
    recommended : None where one split allows no choice
    """

    name: str
    figure: str
    runs: list[str]
    repeats: int
    images: int
    groups: int | None
    reference: str | None
    best: str
    recommended: str | None
    recommendation: str
    cautions: list[str]
    to_reference: dict[str, Difference]
    to_best: dict[str, Difference]

    @property
    def shown(self) -> str:
        """The recommended run; the best one where one split allows no recommendation."""
        return self.recommended or self.best


@dataclass(frozen=True)
class RunPair:
    """Two runs that differ in nothing but how the images are divided; the difference is the second minus the first.

    low, high : 95 % interval, paired by image; None where the images cannot be paired
    """

    runs: tuple[str, str]
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SplitComparison:
    """What the division into training and test is worth: two data sets of the same images, the stricter first."""

    datasets: tuple[str, str]
    pairs: list[RunPair]
    meaning: str


@dataclass(frozen=True)
class Comparison:
    """All data sets that have runs, in the order of params.yaml, and the runs that show what a split is worth."""

    datasets: dict[str, DatasetComparison]
    splits: list[SplitComparison]


def compare_runs(params: Params, records: Mapping[str, Record]) -> Comparison:
    """Compare the runs of each data set with one another; `records` holds one for every run in params.yaml."""
    used = {run.dataset for run in params.runs.values()}
    return Comparison(
        datasets={name: _compare_dataset(name, params, records) for name in params.datasets if name in used},
        splits=[_compare_split(names, pairs, params, records) for names, pairs in split_pairs(params).items()],
    )


def _compare_dataset(name: str, params: Params, records: Mapping[str, Record]) -> DatasetComparison:
    of_dataset = {k: records[k] for k, run in params.runs.items() if run.dataset == name}
    thorough = _in_the_choice(of_dataset, params)
    best = min(thorough, key=lambda k: _order(thorough[k]))
    reference = reference_run(name, params, records)
    to_reference = {} if reference is None else _differences(reference, of_dataset)
    to_best = to_reference if best == reference and len(thorough) == len(of_dataset) else _differences(best, thorough)
    beaten = _beaten(reference, thorough, to_reference)
    recommended = _recommended(best, thorough, to_best, beaten) if of_dataset[best].metrics["repeats"] > 1 else None
    most = max(of_dataset.values(), key=_repeats)
    return DatasetComparison(
        name=name,
        figure=most.headline,
        runs=list(of_dataset),
        repeats=_repeats(most),
        images=most.metrics["images"],
        groups=most.metrics["groups"],
        reference=reference,
        best=best,
        recommended=recommended,
        recommendation=_sentence(best, recommended, thorough, to_best, params),
        cautions=[
            *_cautions(recommended or best, best, thorough, {best: to_best, reference: to_reference}),
            *_not_in_the_choice(of_dataset, thorough, params),
        ],
        to_reference=to_reference,
        to_best=to_best,
    )


def _in_the_choice(records: Mapping[str, Record], params: Params) -> dict[str, Record]:
    """Return the runs with the most labels of each class, and of those the ones on the most repeats."""
    most = max(_budget(run, params) for run in records)
    learned = {run: record for run, record in records.items() if _budget(run, params) == most}
    repeats = max(map(_repeats, learned.values()))
    return {run: record for run, record in learned.items() if _repeats(record) == repeats}


def _budget(run: str, params: Params) -> float:
    """Return how many labels of each class a run's figures are those of; all are more than any number."""
    most = params.runs[run].budgets[-1]
    return float("inf") if most is None else most


def _repeats(record: Record) -> int:
    return int(record.metrics["repeats"])


def reference_run(dataset: str, params: Params, records: Mapping[str, Record]) -> str | None:
    """Return the run that the others of a data set are compared with: the named one, or its first plain linear probe.

    Plain is logistic regression on the pooled features of one size of a pretrained network. None where there is none.
    """
    if dataset in params.compare.references:
        return params.compare.references[dataset]
    for name, run in params.runs.items():
        features = params.features[run.features]
        plain = features.all_layers == ["pooled"] and len(features.image_size) == 1
        if run.dataset == dataset and run.transfer.kind == "logistic" and plain and not _is_baseline(records[name]):
            return name
    return None


def verdict(difference: Difference) -> str:
    """Say what a difference shows, at a corrected p of at most 0.05."""
    if len(difference.repeats) == 1:
        return ONE_SPLIT
    if difference.value is None or difference.p_adjusted is None:
        return TOO_FEW
    if difference.p_adjusted > SIGNIFICANCE:
        return EVEN
    return BETTER if difference.value > 0 else WORSE


def _differences(reference: str, records: Mapping[str, Record]) -> dict[str, Difference]:
    others = {k: record.outcomes for k, record in records.items() if k != reference}
    figure = records[reference].headline
    found = differences(records[reference].outcomes, others, figures=(figure,))
    return {name: by_figure[figure] for name, by_figure in found.items()}


def score(record: Record) -> float:
    """Return the figure that runs are ordered by."""
    return float(record.metrics[record.headline])


def _is_baseline(record: Record) -> bool:
    return bool(record.facts["family"] == "none")


def _operations(record: Record) -> float:
    """Return multiply-adds per image; what was not counted counts as dear."""
    counted = record.cost.get("operations_per_image")
    return float("inf") if counted is None else float(counted)


def _order(record: Record) -> tuple[float, float, float, str]:
    """Return what runs are ordered by, the best first; of equals the cheapest."""
    trained = record.cost.get("trained_parameters")
    return -score(record), _operations(record), float("inf") if trained is None else trained, record.run


def _beaten(
    reference: str | None, records: Mapping[str, Record], to_reference: Mapping[str, Difference]
) -> set[str | None]:
    """Return the runs that are shown to be worse than the reference, and it, where a run is shown to be better."""
    found = {name: verdict(to_reference[name]) for name in records if name in to_reference}
    worse: set[str | None] = {name for name, shown in found.items() if shown == WORSE}
    return worse | {reference} if BETTER in found.values() else worse


def _recommended(
    best: str, records: Mapping[str, Record], to_best: Mapping[str, Difference], beaten: set[str | None]
) -> str:
    in_choice = [
        name
        for name, record in records.items()
        if name == best
        or (verdict(to_best[name]) in (EVEN, BETTER) and name not in beaten and not _is_baseline(record))
    ]
    return min(in_choice, key=lambda name: (_operations(records[name]), _order(records[name])))


def _sentence(
    best: str,
    recommended: str | None,
    records: Mapping[str, Record],
    to_best: Mapping[str, Difference],
    params: Params,
) -> str:
    """Return the sentence that recommends a run and says why."""
    top = records[best]
    if recommended is None:
        return (
            f"{_introduced(top, params)} scored highest on the one split, with {_a(top)} of {_interval(top)}; "
            f"another split may order the runs differently, so nothing is recommended: {_more_splits(best, params)}."
        )
    chosen = records[recommended]
    if recommended == best:
        why = _why_best(best, records, to_best)
        return f"Use {_introduced(chosen, params)}: it has the highest {_figure(top)}, {_interval(chosen)}, and {why}."
    difference = to_best[recommended]
    return (
        f"Use {_introduced(chosen, params)}: its {_figure(top)} of {_interval(chosen)} is not shown to be worse than "
        f"the {decimals(score(top))} of {best}, the best (difference {signed(difference.value)}, 95 % interval "
        f"{interval(difference.low, difference.high, signed)}), and it needs {count(_operations(chosen))} "
        f"multiply-adds per image instead of {count(_operations(top))}."
    )


def _more_splits(run: str, params: Params) -> str:
    """Say what to change in params.yaml for more than one split."""
    dataset = params.runs[run].dataset
    split = params.datasets[dataset].split
    if split.column is not None:
        return f"leave out datasets.{dataset}.split.column to have several splits made"
    if split.repeats > 1:
        return f"leave out runs.{run}.repeats to use the {split.repeats} splits of {dataset}"
    return f"set datasets.{dataset}.split.repeats"


def _introduced(record: Record, params: Params) -> str:
    run = params.runs[record.run]
    return f"{record.run} ({run.transfer.kind} on {run.features})"


def _figure(record: Record) -> str:
    return FIGURE_NAMES[record.headline]


def _a(record: Record) -> str:
    return f"{'an' if _figure(record)[0] in 'aeiou' else 'a'} {_figure(record)}"


def _interval(record: Record) -> str:
    low, high = (record.metrics.get(f"{record.headline}_{end}") for end in ("low", "high"))
    value = decimals(score(record))
    limits = interval(low, high)
    return f"{value} (95 % interval {limits})" if limits else value


def _why_best(best: str, records: Mapping[str, Record], to_best: Mapping[str, Difference]) -> str:
    cheaper = [k for k, r in records.items() if _operations(r) < _operations(records[best]) and not _is_baseline(r)]
    if len(records) == 1:
        return "there is no other run"
    if not cheaper:
        return "no other transfer is cheaper"
    if any(verdict(to_best[k]) == TOO_FEW for k in cheaper):
        return "there are too few groups to say what a cheaper run would lose"
    return (
        "every cheaper run is shown to be worse"
        if len(cheaper) > 1
        else f"the cheaper {cheaper[0]} is shown to be worse"
    )


def _cautions(
    shown: str,
    best: str,
    thorough: Mapping[str, Record],
    known: Mapping[str | None, Mapping[str, Difference]],
) -> list[str]:
    """Return what a reader of the recommendation must know beside it.

    known : the differences that were worked out already, by the run that they are to
    """
    cautions = []
    baselines = {k: r for k, r in thorough.items() if _is_baseline(r) and k != shown}
    if _is_baseline(thorough[shown]):
        cautions.append(f"{shown} is a baseline: nothing is transferred. No transfer has scored higher.")
    elif baselines and _repeats(thorough[shown]) > 1:
        found = known.get(shown) or _differences(shown, {shown: thorough[shown], **baselines})
        unbeaten = _unbeaten(found, list(baselines))
        beaten_by_best = best != shown and best not in baselines and not _unbeaten(known[best], unbeaten)
        more = f"; {best}, the best, is" if beaten_by_best else "; more images would tell"
        if unbeaten:
            cautions.append(f"{shown} is not shown to beat {listed(unbeaten)}, where nothing is transferred{more}.")
    return cautions


def _not_in_the_choice(records: Mapping[str, Record], thorough: Mapping[str, Record], params: Params) -> Iterator[str]:
    chosen = next(iter(thorough.values()))
    left = [run for run in records if run not in thorough]
    few = [run for run in left if _budget(run, params) < _budget(chosen.run, params)]
    if few:
        yield f"Not in the choice, because trained on fewer labels: {listed(few)}."
    if fewer := [run for run in left if run not in few]:
        yield f"Not in the choice, because scored on fewer than {_repeats(chosen)} splits: {listed(fewer)}."


def _unbeaten(found: Mapping[str, Difference], baselines: Sequence[str]) -> list[str]:
    """Return the baselines that are not shown to be worse, by a correction for these comparisons alone."""
    adjusted = holm([found[name].p for name in baselines])
    return [
        name
        for name, p in zip(baselines, adjusted, strict=True)
        if verdict(replace(found[name], p_adjusted=p)) != WORSE
    ]


def split_pairs(params: Params) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Return for two data sets the pairs of runs that differ in nothing but how the images are divided.

    The stricter division comes first: the one that keeps groups whole; else the one that stands first in params.yaml.
    """
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for a, b in combinations(params.runs, 2):
        first, second = params.runs[a], params.runs[b]
        names = [name for name in params.datasets if name in (first.dataset, second.dataset)]
        same_run = _recipe(first) == _recipe(second)
        if len(names) < 2 or not same_run or not _differ_in_division(*(params.datasets[n] for n in names)):
            continue
        names.sort(key=lambda n: params.datasets[n].group is None)
        ordered = (a, b) if first.dataset == names[0] else (b, a)
        pairs.setdefault((names[0], names[1]), []).append(ordered)
    return pairs


def _recipe(run: Run) -> tuple[Any, ...]:
    return run.features, run.transfer, run.seed, run.budgets[-1]


def _differ_in_division(a: Dataset, b: Dataset) -> bool:
    return (a.images, a.label) == (b.images, b.label) and (a.group, a.split) != (b.group, b.split)


def _compare_split(
    datasets: tuple[str, str], pairs: Sequence[tuple[str, str]], params: Params, records: Mapping[str, Record]
) -> SplitComparison:
    found = [_compare_pair(records[a], records[b]) for a, b in pairs]
    figure = _figure(records[pairs[0][0]])
    return SplitComparison(datasets, found, _meaning(datasets, found, figure, params))


def _compare_pair(a: Record, b: Record) -> RunPair:
    paired = _paired_by_image(a, b)
    if paired is None or paired.value is None:
        return RunPair((a.run, b.run), round(score(b) - score(a), 6), None, None)
    return RunPair((a.run, b.run), paired.value, paired.low, paired.high)


def _paired_by_image(a: Record, b: Record) -> Difference | None:
    """Return the second run's accuracy minus the first's, each image against itself, the first run's groups drawn.

    None where the images cannot be paired, or what counts is a ranking: those of different models are not pooled.
    """
    if not isinstance(a.outcomes, Outcomes) or not isinstance(b.outcomes, Outcomes) or a.headline != "accuracy":
        return None
    rows_a, rows_b = _same_images(a.outcomes.samples, b.outcomes.samples)
    if not rows_a:
        return None
    grouped = a.outcomes if a.outcomes.groups else b.outcomes
    of_sample = dict(zip(grouped.samples, grouped.groups, strict=True)) if grouped.groups else None
    left, right = _as_one(a.outcomes, rows_a, of_sample), _as_one(b.outcomes, rows_b, of_sample)
    return differences(left, {b.run: right}, figures=("accuracy",))[b.run]["accuracy"]


def _same_images(a: Sequence[str], b: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return the rows of images that both have, in the same order, each as often as both test it."""
    keyed = []
    for samples in (a, b):
        seen: Counter[str] = Counter()
        rows = {}
        for i, sample in enumerate(samples):
            rows[sample, seen[sample]] = i
            seen[sample] += 1
        keyed.append(rows)
    both = sorted(keyed[0].keys() & keyed[1].keys())
    return [keyed[0][k] for k in both], [keyed[1][k] for k in both]


def _as_one(outcomes: Outcomes, rows: Sequence[int], groups: Mapping[str, str] | None) -> Outcomes:
    """Return rows as if one repeat had tested them: accuracy may be pooled over models, it ranks nothing."""
    samples = [outcomes.samples[i] for i in rows]
    return Outcomes(
        classes=outcomes.classes,
        samples=samples,
        repeats=np.zeros(len(rows), dtype=np.int64),
        groups=None if groups is None else [groups[s] for s in samples],
        truth=outcomes.truth[rows],
        probabilities=outcomes.probabilities[rows],
    )


def _meaning(datasets: tuple[str, str], pairs: Sequence[RunPair], figure: str, params: Params) -> str:
    """Say in words what the difference between two divisions means."""
    strict, loose = datasets
    group = params.datasets[strict].group
    measured = (
        f"{loose} scores {_range_of(pairs)} in {figure} against {strict}, with the same images, features and method"
    )
    if group is None or params.datasets[loose].group == group:
        return f"{measured}: what the way of dividing the images changes, by itself."
    if any(pair.low is not None and pair.low > 0 for pair in pairs):
        return (
            f"{measured}. Where images of one {group} fall on both sides of the split, part of the score is knowing "
            f"the {group} again. Compare {loose} with figures that were published on such a split; on a {group} "
            f"that was never seen, expect what {strict} says."
        )
    return (
        f"{measured}. It is not shown that images of one {group} on both sides of the split make the task easier; "
        f"on a {group} that was never seen, expect what {strict} says."
    )


def _range_of(pairs: Sequence[RunPair]) -> str:
    values = sorted(pair.difference for pair in pairs)
    if len(pairs) > 1:
        return f"{signed(values[0])} to {signed(values[-1])} ({len(pairs)} runs)"
    only = pairs[0]
    limits = interval(only.low, only.high, signed)
    return f"{signed(only.difference)} (95 % interval {limits})" if limits else signed(only.difference)


def comparison_content(comparison: Comparison) -> dict[str, Any]:
    """Return all of it for comparisons.json."""
    return {
        "significance": SIGNIFICANCE,
        "datasets": {
            name: {
                **{k: v for k, v in asdict(d).items() if k not in ("name", "to_reference", "to_best")},
                "to_reference": _differences_content(d.to_reference),
                "to_best": _differences_content(d.to_best),
            }
            for name, d in comparison.datasets.items()
        },
        "splits": [asdict(split) for split in comparison.splits],
    }


def _differences_content(found: Mapping[str, Difference]) -> dict[str, Any]:
    return {
        name: {
            "difference": d.value,
            "difference_low": d.low,
            "difference_high": d.high,
            "p": d.p,
            "p_adjusted": d.p_adjusted,
            "sd": d.sd,
            "by_repeat": d.by_repeat,
            "repeats": len(d.repeats),
            "units": d.units,
            "verdict": verdict(d),
        }
        for name, d in found.items()
    }

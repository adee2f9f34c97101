"""Images whose label is likely wrong: confident learning, on what models say of images that they have not seen.

With t_j the mean probability of class j over the images that are labelled j, an image labelled i counts as one of class
j when p_j >= t_j; where several classes reach their threshold, the most probable. Images that count as another class
than they are labelled are suspects, ranked by p_j - p_i. Northcutt et al., JAIR 2021, arXiv:1911.00068, section 3.1
and equations 1 and 2 (the confident joint's off-diagonal; ranking by normalised margin, section 3.2, method 4).

Each image is judged by the models that it has tested: by all repeats together that is every image, where the test
parts rotate. Several runs are averaged, which errs less than any of them. A suspect may be labelled rightly, and only
hard; a person decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stages.scoring.comparison import BETTER, EVEN, DatasetComparison, verdict
from stages.scoring.metrics import Outcomes
from stages.scoring.records import Record

COLUMNS = ("dataset", "sample", "label", "suggested", "p_label", "p_suggested")


@dataclass(frozen=True)
class Suspect:
    """An image with its label, the class that it likely is, and the probabilities of both."""

    sample: str
    label: str
    suggested: str
    p_label: float
    p_suggested: float

    @property
    def caption(self) -> str:
        """Two lines for a contact sheet."""
        return f"{self.p_suggested:.2f} {self.suggested}\nis {self.label}"


def find_suspects(runs: Sequence[Outcomes]) -> list[Suspect]:
    """Return the suspects among the test images of some runs of one data set, the likeliest first.

    Where images have several labels, each label is judged by itself.
    """
    if runs[0].multi_label:
        found = [s for c in range(len(runs[0].classes)) for s in find_suspects([_one_label(run, c) for run in runs])]
        return sorted(found, key=lambda s: (s.p_label - s.p_suggested, s.sample, s.suggested))
    return _find(runs)


def _one_label(run: Outcomes, number: int) -> Outcomes:
    name, p = run.classes[number], run.probabilities[:, number]
    truth, both = run.truth[:, number], np.stack([1 - p, p], axis=1)
    return replace(run, classes=[f"not {name}", name], truth=truth, probabilities=both)


def _find(runs: Sequence[Outcomes]) -> list[Suspect]:
    classes = runs[0].classes
    numbers: dict[str, int] = {}
    rows = [np.array([numbers.setdefault(name, len(numbers)) for name in run.samples], np.int64) for run in runs]
    total, times = np.zeros((len(numbers), len(classes))), np.zeros(len(numbers))
    labels = np.zeros(len(numbers), np.int64)
    for run, mine in zip(runs, rows, strict=True):
        np.add.at(total, mine, run.probabilities)
        np.add.at(times, mine, 1.0)
        labels[mine] = run.truth
    p = total / times[:, None]
    found = np.unique(labels)
    thresholds = np.full(len(classes), np.inf)  # of a class without images none can be taken for it
    thresholds[found] = [p[labels == c, c].mean() for c in found]
    reached = np.where(p >= thresholds, p, -1.0)
    counted, at = reached.argmax(axis=1), np.arange(len(p))
    margin = p[at, counted] - p[at, labels]
    suspected = np.flatnonzero((reached.max(axis=1) >= 0) & (counted != labels) & (margin > 0))
    names = list(numbers)
    suspected = np.array(sorted(suspected, key=lambda row: (-margin[row], names[row])), np.int64)
    return [
        Suspect(names[i], classes[labels[i]], classes[counted[i]], float(p[i, labels[i]]), float(p[i, counted[i]]))
        for i in suspected
    ]


def judges(d: DatasetComparison, records: Mapping[str, Record]) -> list[str]:
    """Return the runs that are asked: the best, and the transfers in the choice that are not shown to be worse."""
    equal = [
        name
        for name, difference in d.to_best.items()
        if verdict(difference) in (EVEN, BETTER) and records[name].facts["family"] != "none"
    ]
    return [name for name in d.runs if name == d.best or name in equal]


def suspects_of(d: DatasetComparison, records: Mapping[str, Record]) -> list[Suspect] | None:
    """Return the suspects of a data set; None where the runs' records have no rows, because there are too many."""
    outcomes = [records[name].outcomes for name in judges(d, records)]
    rows = [found for found in outcomes if isinstance(found, Outcomes)]
    return find_suspects(rows) if rows else None


def suspect_rows(suspects: Mapping[str, Sequence[Suspect] | None]) -> Iterator[dict[str, Any]]:
    """Yield a row of suspects.csv for each suspect of each data set."""
    for dataset, found in suspects.items():
        for suspect in found or ():
            yield {"dataset": dataset, **asdict(suspect)}

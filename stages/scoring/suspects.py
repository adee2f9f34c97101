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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stages.scoring.metrics import Floats, Integers, Outcomes

MOST_KEPT = 1000
"""Suspects of a run that its record names where it has no rows: of many test images the likeliest."""
ROWS = 4096
"""Images looked at at a time."""


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


@dataclass(frozen=True)
class Suspects:
    """How many images are suspects, of how many labels, and these in order, the likeliest first, or the first of them.

    Where images have several labels, one image may be a suspect for more of them.
    """

    images: int
    labels: int
    likeliest: list[Suspect]


def find_suspects(runs: Sequence[Outcomes], most: int | None = None) -> Suspects:
    """Return the suspects among the test images of some runs of one data set.

    most : how many are wanted at most, the likeliest; all if not given.

    Where images have several labels, each label is judged by itself.
    """
    classes, (names, labels, p) = runs[0].classes, _averaged(runs)
    if runs[0].multi_label:
        by_label = np.ascontiguousarray(p.T)
        questions = [
            ([f"not {name}", name], _judge(labels[:, c], np.stack([1 - by_label[c], by_label[c]], axis=1)))
            for c, name in enumerate(classes)
        ]
    else:
        questions = [(classes, _judge(labels, p))]
    found = [
        (float(low - high), names[row], answers[other], answers[own], float(low), float(high))
        for answers, judged in questions
        for row, own, other, low, high in zip(*_likeliest(judged, most), strict=True)
    ]
    return Suspects(
        images=len(np.unique(np.concatenate([judged[0] for _, judged in questions]))),
        labels=sum(len(judged[0]) for _, judged in questions),
        likeliest=[Suspect(name, own, other, low, high) for _, name, other, own, low, high in sorted(found)[:most]],
    )


Judged = tuple[Integers, Integers, Integers, Floats, Floats]
"""Of each suspect the row, the label, the class that it likely is, and the probabilities of both."""


def _averaged(runs: Sequence[Outcomes]) -> tuple[list[str], Integers, Floats]:
    """Return the images that runs have tested, their labels, and the mean of what was predicted for each."""
    numbers: dict[str, int] = {}
    rows = [np.array([numbers.setdefault(name, len(numbers)) for name in run.samples], np.int64) for run in runs]
    p, times = np.zeros((len(numbers), len(runs[0].classes))), np.zeros(len(numbers))
    labels = np.zeros((len(numbers), *runs[0].truth.shape[1:]), np.int64)
    for run, mine in zip(runs, rows, strict=True):
        np.add.at(p, mine, run.probabilities)
        np.add.at(times, mine, 1.0)
        labels[mine] = run.truth
    p /= times[:, None]
    return list(numbers), labels, p


def _judge(labels: Integers, p: Floats) -> Judged:
    thresholds = np.full(p.shape[1], np.inf)  # of a class without images none can be taken for it
    found = np.unique(labels)
    thresholds[found] = [p[labels == c, c].mean() for c in found]
    parts = list(_suspected(labels, p, thresholds))
    row, own, other, low, high = (np.concatenate(of) for of in zip(*parts, strict=True))
    return row, own, other, low, high


def _suspected(labels: Integers, p: Floats, thresholds: Floats) -> Iterator[Judged]:
    for start in range(0, len(p), ROWS):
        mine, own = p[start : start + ROWS], labels[start : start + ROWS]
        reached = np.where(mine >= thresholds, mine, -1.0)
        other, at = reached.argmax(axis=1), np.arange(len(mine))
        low, high = mine[at, own], mine[at, other]
        suspected = np.flatnonzero((reached.max(axis=1) >= 0) & (other != own) & (high > low))
        yield start + suspected, own[suspected], other[suspected], low[suspected], high[suspected]


def _likeliest(judged: Judged, most: int | None) -> Judged:
    """Return those that may be among the `most` likeliest; of equal ones all, names decide then."""
    margin = judged[3] - judged[4]
    if most is None or len(margin) <= most:
        return judged
    kept = margin <= np.partition(margin, most - 1)[most - 1]
    row, own, other, low, high = (of[kept] for of in judged)
    return row, own, other, low, high

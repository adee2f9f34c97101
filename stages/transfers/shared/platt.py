"""Platt scaling: scores without a scale of their own (margins) become probabilities.

The scale is learned from scores that each sample got from a model that had not seen it, nor any sample of its group:
scores of fitted samples lie further out than those of new ones.

For two classes it is Platt's sigmoid, P(y = 1 | s) = 1 / (1 + exp(-(a s + b))); for more its softmax,
P(y = c | s) ~ exp(a s_c + b_c), with one slope a and a shift b_c per class. Both are fitted by Newton's method with
backtracking on Platt's targets, which are a little off 0 and 1: (N_c + 1) / (N_c + classes) for the class of a sample,
1 / (N_c + classes) for the others.

Platt, Advances in Large Margin Classifiers, 1999; Lin, Lin and Weng, Machine Learning 68, 2007.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from stages.cli import UserError
from stages.transfers.shared.shallow import softmax

if TYPE_CHECKING:
    from stages.transfers.shared.shallow import Floats, Indices, Rows

    Score: TypeAlias = Callable[[Indices, Indices], Floats]

FOLDS = 5
NUMBERS_AT_ONCE = 2**22
"""So many scores are looked at a time, to keep memory flat with many rows and classes."""
_MOST_STEPS, _NEAR = 100, 1e-14


def calibrate(rows: Rows, seed: int, score: Score) -> list[tuple[float, Floats]]:
    """Return for each setting the slope and the shift (classes,) that make probabilities of its scores.

    score : (inside, outside) -> scores (settings, outside, classes) of the rows `outside`, by models fitted on `inside`
    """
    scores = out_of_fold(rows, seed, score)
    return [platt(each, rows.labels, rows.weights) for each in scores]


def out_of_fold(rows: Rows, seed: int, score: Score) -> Floats:
    """Return scores (settings, n, classes) of all rows, each by a model that saw nothing of its group."""
    scores: Floats | None = None
    for inside, outside in folds(rows, seed):
        found = score(inside, outside)
        if scores is None:
            scores = np.empty((found.shape[0], len(rows.labels), found.shape[2]))
        scores[:, outside] = found
    assert scores is not None
    return scores


def folds(rows: Rows, seed: int) -> list[tuple[Indices, Indices]]:
    """Return the rows inside and outside of each fold, as `deal` deals them."""
    return deal(rows, seed)[1]


def deal(rows: Rows, seed: int) -> tuple[str, list[tuple[Indices, Indices]]]:
    """Deal rows into folds: groups whole, classes spread evenly, every class inside of each.

    Returns what is kept whole, and the rows inside and outside of each fold. A class that lies in a single group cannot
    be both inside and outside; then images are kept whole in place of groups. Raises UserError for a class with a
    single image.
    """
    for whole, units in (("group", rows.groups), ("image", rows.images)):
        if units is None:
            continue
        spread = [len(np.unique(units[rows.labels == c])) for c in range(len(rows.classes))]
        for count in range(min(FOLDS, *spread), 1, -1):
            parts = _parts(rows.labels, units, count, seed)
            if all(len(np.unique(rows.labels[inside])) == len(rows.classes) for inside, _ in parts):
                return whole, parts
    rare = rows.classes[int(np.argmin(spread))]
    raise UserError(f"the class {rare} has one image to train on, and scores need two to become probabilities")


def _parts(labels: Indices, units: Indices, count: int, seed: int) -> list[tuple[Indices, Indices]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if len(np.unique(units)) == len(units):  # the same task, a hundred times as fast
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels, units))


def platt(scores: Floats, labels: Indices, weights: Floats) -> tuple[float, Floats]:
    """Fit slope and shift to scores (n, classes) of samples that count `weights` (n,) times.

    Returns a and b (classes,), the first of b being 0: a s + b are the logits.
    """
    classes = scores.shape[1]
    size = np.bincount(labels, weights, classes)
    targets = np.repeat(1 / (size + classes)[:, None], classes, axis=1)  # (classes, classes): by the class of a sample
    np.fill_diagonal(targets, (size + 1) / (size + classes))
    length = max(1, NUMBERS_AT_ONCE // classes)
    some = [slice(first, first + length) for first in range(0, len(labels), length)]

    def loss(at: Floats) -> float:
        def of(rows: slice) -> float:
            logits = at[0] * scores[rows] + np.append(0, at[1:])
            top = logits.max(axis=1)
            own = (targets[labels[rows]] * logits).sum(axis=1)
            return float(weights[rows] @ (top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - own))

        return sum(map(of, some))

    def derivatives(at: Floats) -> tuple[Floats, Floats]:
        gradient, curvature = np.zeros(classes), np.zeros((classes, classes))
        for rows in some:
            slope, bend = _derivatives(at, scores[rows], targets[labels[rows]], weights[rows])
            gradient += slope
            curvature += bend
        curvature[np.diag_indices(len(at))] += 1e-12 * (1 + np.trace(curvature))  # where scores do not differ at all
        return gradient, curvature

    at = np.append(0, np.log(size[1:] + 1) - np.log(size[0] + 1))
    now = loss(at)
    for _ in range(_MOST_STEPS):
        gradient, curvature = derivatives(at)
        step = np.linalg.solve(curvature, gradient)
        if gradient @ step <= _NEAR * weights.sum():  # twice what the loss can still fall by
            break
        length = 1.0
        while (new := loss(at - length * step)) > now - 1e-4 * length * float(gradient @ step):
            length /= 2
            if length < 1e-10:
                return float(at[0]), np.append(0, at[1:])
        at, now = at - length * step, new
    return float(at[0]), np.append(0, at[1:])


def _derivatives(at: Floats, scores: Floats, targets: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return gradient (classes,) and second derivatives of the loss by the slope and the shifts but the first."""
    p = softmax(at[0] * scores + np.append(0, at[1:]))
    wrong = (p - targets) * weights[:, None]
    gradient = np.append((wrong * scores).sum(), wrong[:, 1:].sum(axis=0))
    mean = (p * scores).sum(axis=1, keepdims=True)
    weighted = p * weights[:, None]
    curvature = np.empty((len(at), len(at)))
    curvature[0, 0] = (weighted * np.square(scores - mean)).sum()
    curvature[0, 1:] = curvature[1:, 0] = (weighted * (scores - mean)).sum(axis=0)[1:]
    curvature[1:, 1:] = np.diag(weighted[:, 1:].sum(axis=0)) - weighted[:, 1:].T @ p[:, 1:]
    return gradient, curvature

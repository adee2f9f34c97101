"""Classes from a column of the source: words or numbers as they are, or a number cut into ranges by thresholds.

Or several labels of an image: a column of each, or several values in a cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from stages.params import Label


SUM_TOLERANCE = 0.01
"""How far from 1 the sum of an image's probabilities may be, as where a table rounds them."""


@dataclass(frozen=True)
class Labels:
    """The classes in order, and each image's.

    classes : sorted names; for numbers ascending; of two the last is the positive one.
    index : (images,) int64, a class of each image; -1 where the source gives none. Where an image may have several
        labels, a number for each set of labels.
    soft : (images, classes) the probability of each class, NaN where the source gives none; None without any
    several : (images, classes) bool, the labels of each image; None where each has one class
    wrong : of each image whose cells are no label, by its row, why
    """

    classes: list[str]
    index: NDArray[np.int64]
    soft: NDArray[np.float32] | None = None
    several: NDArray[np.bool_] | None = None
    wrong: Mapping[int, str] = field(default_factory=dict)

    def take(self, rows: NDArray[np.int64]) -> Labels:
        """Return the labels of some images, which have one."""
        return Labels(
            self.classes,
            self.index[rows],
            None if self.soft is None else self.soft[rows],
            None if self.several is None else self.several[rows],
        )

    def having(self, number: int) -> NDArray[np.bool_]:
        """Return (images,) which have a class, or a label, by its number."""
        return self.index == number if self.several is None else self.several[:, number]

    @property
    def array(self) -> NDArray[np.int64] | NDArray[np.int8]:
        """(images,) the class of each; of several labels (images, classes), 1 for those that it has."""
        return self.index if self.several is None else self.several.view(np.int8)

    @property
    def counts(self) -> list[int]:
        """How many images have each class."""
        return [int(self.having(number).sum()) for number in range(len(self.classes))]

    def targets(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return the labels as (images, classes): 1 for what the image has, else 0; or its probability of each.

        rows : of which images; of a million of a thousand classes all are 4 GB
        """
        if self.several is not None:
            return self.several[rows].astype(np.float32)
        hard = np.zeros((len(self.index[rows]), len(self.classes)), np.float32)
        hard[np.arange(len(hard)), self.index[rows]] = 1
        if self.soft is None:
            return hard
        return np.where(np.isnan(self.soft[rows]).any(axis=1, keepdims=True), hard, self.soft[rows])


def make_labels(source: pa.Table, label: Label, where: str) -> Labels:
    """Make classes of a column's values, and their probabilities of others where the entry names them.

    where : the entry in params.yaml, for messages ("datasets.cells").
    Raises UserError when a threshold meets only words, when fewer than two classes come out, for probabilities that are
    all none or of other classes, and for a label that no image has, or every one.
    """
    if label.multi_label:
        return _make_several(source, label, f"params.yaml: {where}.label")
    labels = _make_labels(source[label.columns[0]], label, where)
    if label.soft is None:
        return labels
    place = f"params.yaml: {where}.label.soft"
    if isinstance(label.soft, dict):
        if sorted(label.soft) != sorted(labels.classes):
            raise UserError(f"{place} names {', '.join(label.soft)}; the classes are {', '.join(labels.classes)}")
        wrong = dict(labels.wrong)
        columns = []
        for name in map(label.soft.__getitem__, labels.classes):
            numbers, none = _probabilities(source[name], place, name)
            columns.append(numbers)
            wrong |= none
        soft = np.stack(columns, axis=1)
        totals = soft.sum(axis=1)
        off = np.flatnonzero(np.abs(totals - 1) > SUM_TOLERANCE).tolist()
        if off and len(off) == np.isfinite(totals).sum():
            sample = source["sample"][off[0]]
            raise UserError(f"{place}: the probabilities of {sample} have the sum {totals[off[0]]:g}, and not 1")
        wrong |= {row: f"unknown label: its probabilities have the sum {totals[row]:g}, and not 1" for row in off}
        soft[off] = math.nan
        return replace(labels, soft=soft / soft.sum(axis=1, keepdims=True), wrong=wrong)
    if len(labels.classes) != 2:
        raise UserError(f"{place} needs two classes, here are {len(labels.classes)}; name a column for each class")
    second, none = _probabilities(source[label.soft], place, label.soft)
    return replace(labels, soft=np.stack([1 - second, second], axis=1), wrong={**labels.wrong, **none})


def read_weights(source: pa.Table, column: str, where: str) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Return how much each image counts, 1 where the column is empty; and of rows that hold no weight, why.

    Raises UserError when all hold none.
    """
    place = f"params.yaml: {where}.weight"
    numbers, wrong = _numbers(source[column], place, column, "no weight", lambda number: 0 < number < math.inf)
    return np.where(np.isnan(numbers), 1.0, numbers), wrong


def _probabilities(column: pa.ChunkedArray, place: str, name: str) -> tuple[NDArray[np.float32], dict[int, str]]:
    numbers, wrong = _numbers(column, place, name, "no probability", lambda number: 0 <= number <= 1)
    return numbers.astype(np.float32), {row: f"unknown label: {why}" for row, why in wrong.items()}


def _numbers(
    column: pa.ChunkedArray, place: str, name: str, what: str, fits: Callable[[float], bool], hint: str = ""
) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Return the numbers in a column, NaN for an empty cell and one that does not fit; and of the latter rows why.

    place, what, hint : for the reason, and for the UserError that is raised when no cell fits
    """
    cells = column.to_pylist()
    read = [_number(cell) for cell in cells]
    numbers = np.array([number if fits(number) else math.nan for number in read], np.float64)
    wrong = {
        row: f"the column {name} holds {cells[row]!r}, which is {what}"
        for row in np.flatnonzero(np.isnan(numbers)).tolist()
        if not _is_absent(cells[row])
    }
    if wrong and np.isnan(numbers).all():
        raise UserError(f"{place}: {next(iter(wrong.values()))}{hint}")
    return numbers, wrong


def _number(cell: Any) -> float:
    """Return the number in a cell, NaN where it is none; beside a word, numbers of a CSV file are words, too."""
    try:
        return float(cell) if isinstance(cell, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return math.nan


def _make_labels(column: pa.ChunkedArray, label: Label, where: str) -> Labels:
    name = label.columns[0]
    if label.thresholds:
        labels = _cut(column, name, label.thresholds, f"params.yaml: {where}.label.threshold")
    else:
        values = [None if _is_absent(value) else value for value in column.to_pylist()]
        present = sorted({value for value in values if value is not None})
        place = {value: index for index, value in enumerate(present)}
        labels = Labels(names(present), np.array([place.get(value, -1) for value in values], np.int64))
    if len(labels.classes) < 2:
        found = f"only the class {labels.classes[0]}" if labels.classes else "no class"
        found += f", and {next(iter(labels.wrong.values()))}" if labels.wrong else ""
        raise UserError(f"params.yaml: {where}.label: the column {name} makes {found}; it takes two")
    return labels


def _make_several(source: pa.Table, label: Label, place: str) -> Labels:
    """Make labels of which an image may have several; an image of which the source tells nothing has the index -1."""
    wrong = {}
    if label.separator is not None:
        texts, cell = _distinct(source[label.columns[0]])
        held = [{part.strip() for part in (text or "").split(label.separator)} - {""} for text in texts]
        classes = sorted({name for own in held for name in own})
        of_texts = np.array([[name in own for name in classes] for own in held], np.bool_)
        several = of_texts.reshape(len(held), -1)[cell]
        known = several.any(axis=1)
    else:
        classes = sorted(label.columns)
        read = [_yes_or_no(source[name], name, label.thresholds, place) for name in classes]
        answers = np.stack([own for own, _ in read], axis=1)
        wrong = {row: f"unknown label: {why}" for _, none in reversed(read) for row, why in none.items()}
        several, known = answers == 1, np.asarray((answers >= 0).any(axis=1))
        known[list(wrong)] = False
    if len(classes) < 2:
        raise UserError(f"{place}: the column {label.columns[0]} makes {len(classes)} labels; it takes two")
    for name, count in zip(classes, several[known].sum(axis=0), strict=True):
        if count in (0, known.sum()):
            which = "no image" if count == 0 else "every image"
            raise UserError(f"{place}: {which} has the label {name}: there is nothing to learn of it; leave it out")
    sets = np.unique(several, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return Labels(classes, np.where(known, sets, -1), several=several, wrong=wrong)


def _distinct(column: pa.ChunkedArray) -> tuple[list[str | None], NDArray[np.int64]]:
    """Return the different texts of cells, None where they are empty, and the number of each cell's."""
    numbers: dict[str | None, int] = {}
    cell = np.empty(len(column), np.int64)
    row = 0
    for chunk in column.chunks:  # an object for each of a million cells is much memory
        for value in chunk.to_pylist():
            cell[row] = numbers.setdefault(None if _is_absent(value) else str(value), len(numbers))
            row += 1
    return list(numbers), cell


ANSWERS = {1: True, 0: False, "1": True, "0": False, "true": True, "false": False, "yes": True, "no": False}
"""What a column of one label may hold; a truth value is a number here, as in Python."""
NO_THRESHOLD = "; leave the threshold out, or name a column of numbers"


def _yes_or_no(
    column: pa.ChunkedArray, name: str, thresholds: Sequence[float], place: str
) -> tuple[NDArray[np.int8], dict[int, str]]:
    """Return of each image whether it has a label, 1 or 0, -1 where nothing tells; and of rows that say else, why.

    Raises UserError when all that say something say something else.
    """
    if thresholds:
        numbers, wrong = _numbers(column, f"{place}.threshold", name, "no number", lambda _: True, NO_THRESHOLD)
        return np.where(np.isnan(numbers), -1, numbers >= thresholds[0]).astype(np.int8), wrong
    cells = [None if _is_absent(cell) else cell for cell in column.to_pylist()]
    found = [ANSWERS.get(cell.strip().lower() if isinstance(cell, str) else cell) for cell in cells]
    wrong = {
        row: f"the column {name} holds {cell!r}, which is neither 0 nor 1"
        for row, (cell, answer) in enumerate(zip(cells, found, strict=True))
        if cell is not None and answer is None
    }
    if wrong and all(answer is None for answer in found):
        hint = "; name a threshold from which on an image has it" if isinstance(cells[min(wrong)], int | float) else ""
        raise UserError(f"{place}: {wrong[min(wrong)]}{hint}")
    return np.array([-1 if answer is None else answer for answer in found], np.int8), wrong


def _is_absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _cut(column: pa.ChunkedArray, name: str, thresholds: Sequence[float], place: str) -> Labels:
    """Make a class of each range between thresholds, the lower one included; a range without an image is no class."""
    numbers, none = _numbers(column, place, name, "no number", lambda _: True, NO_THRESHOLD)
    ranges = np.where(np.isnan(numbers), -1, np.searchsorted(thresholds, numbers, side="right"))
    present = np.unique(ranges[ranges >= 0])
    index = np.where(ranges < 0, -1, np.searchsorted(present, ranges))
    wrong = {row: f"unknown label: {why}" for row, why in none.items()}
    return Labels([f"{name} {_range(thresholds, at)}" for at in present.tolist()], index, wrong=wrong)


def _range(thresholds: Sequence[float], at: int) -> str:
    if at == 0:
        return f"below {thresholds[0]:g}"
    if at == len(thresholds):
        return f"at least {thresholds[-1]:g}"
    return f"{thresholds[at - 1]:g} to {thresholds[at]:g}"


def names(values: Sequence[Any]) -> list[str]:
    """Return a name for each of some different values; numbers are shortened as long as they stay different.

    >>> names([0.0, 1 / 3, 1.0])
    ['0', '0.333333', '1']
    """
    short = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(short) else [str(value) for value in values]

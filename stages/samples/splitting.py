"""Training, validation and test parts: whole groups on one side, the rest as even as that allows.

What must stay together is a *unit*: a group of the source (a module, a patient), images with the same pixels, or
groups that such images join. A single image is a unit, too.

Over the repeats the test parts rotate. The units are dealt to as many folds as the rotation has steps, and each repeat
tests the next folds, so that every image is tested equally often: four repeats of a quarter test every image once,
eight test it twice, in a second, different partition.

Units of several images are dealt by a search that brings the count of every stratum in every test part as near as
possible to its share; single images then fill up what is missing, exact to one image. The validation part is drawn
from what the test part leaves, in the same way. All of it depends on the order of the samples and the seed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stages.cli import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stages.params import Split

    Ints = NDArray[np.int64]
    Part = NDArray[np.int8]
    Numbers = Ints | Part
    Floats = NDArray[np.float64]

SPLITTING_VERSION = 1
"""Counts up whenever a change here changes a split."""

TRAIN, VALIDATION, TEST = 0, 1, 2
PARTS = ("train", "validation", "test")

_NEIGHBOURS = 512  # units that one step of the search compares, each with each
_STEPS = 400  # steps of one search at most; with a few dozen groups it ends after some twenty
_ATTEMPTS = 5  # times that a class which some part lacks is given more weight
ROWS_AT_ONCE = 2**16
MOST_SPREAD = 16
"""How far numbers of rows may lie apart, in rows, to be numbered by a table; others are sorted."""
_CROSSED = 512  # strata up to which the columns are kept even in combination; above, each column by itself


@dataclass(frozen=True)
class Strata:
    """What is to be spread evenly.

    cell : (samples,) the finest strata, numbered 0 ... : samples that are alike in all that counts.
    features : sparse (cells, features): the sums to be kept even, weighted. Each cell, each value of each column, each
        class, and last the number of samples.
    """

    cell: Ints
    features: sparse.csr_array


def join(*keys: Ints) -> Ints:
    """Return the unit (0, 1, ... in order of appearance) of each sample: joined where any key is the same.

    Each of `keys` holds a number for each sample; one below 0 joins nothing.
    """
    from scipy.sparse import csgraph  # others read this module who do not join

    samples = np.arange(len(keys[0]))
    unit, *more = (np.where(key < 0, samples, first_alike(key)) for key in keys)
    edges = [np.empty((0, 2), np.int64)]
    for first in more:
        at = np.flatnonzero(first != samples)
        edges.append(np.column_stack([unit[at], unit[first[at]]]))
    ends = np.concatenate(edges)
    if len(ends):
        graph = sparse.coo_array((np.ones(len(ends), np.bool_), (ends[:, 0], ends[:, 1])), shape=(len(samples),) * 2)
        unit = first_alike(csgraph.connected_components(graph, directed=False)[1][unit])
    return _numbered(unit)


def first_alike(numbers: Ints) -> Ints:
    """Return for each row (n,) the first row of the same number."""
    numbers = _numbered(numbers)
    return _firsts(numbers)[numbers]


def _firsts(numbered: Ints) -> Ints:
    """Return the first row of each number, of rows (n,) that hold 0, 1, ... each."""
    firsts = np.full(int(numbered.max(initial=-1)) + 1, len(numbered))
    for start in range(0, len(numbered), ROWS_AT_ONCE):
        some = numbered[start : start + ROWS_AT_ONCE]
        np.minimum.at(firsts, some, np.arange(start, start + len(some)))
    return firsts


def make_strata(columns: Sequence[Ints], labels: Numbers) -> Strata:
    """Combine numbered columns to strata; the labels are always among them.

    columns : each (samples,) of 0, 1, ...; labels : (samples,) the class of each, or (samples, classes), 1
        for what it has
    """
    keys = [*(labels[:, np.newaxis] if labels.ndim == 1 else labels).T, *columns]
    cell = np.zeros(len(labels), np.int64)
    for key in keys:
        cell = _numbered(cell * (int(key.max(initial=0)) + 1) + key)  # in the order of the first key, then the second
    firsts = _firsts(cell)
    cells = np.column_stack([key[firsts] for key in keys])
    kept = [*(_one_hot(_numbered(column)) for column in cells.T), np.ones((len(cells), 1))]
    if len(cells) <= _CROSSED:
        kept.insert(0, sparse.eye_array(len(cells)))
    features = sparse.hstack(kept, format="csr")
    # A deviation counts by what chance would make of it: its square over the stratum's size. The number of samples
    # counts as much as all strata together: the parts should have the sizes that were asked for.
    importance = np.ones(features.shape[1])
    importance[-1] = len(importance)
    sizes = np.bincount(cell) @ features
    return Strata(cell, sparse.csr_array(features @ sparse.diags_array(np.sqrt(importance / sizes))))


@dataclass(frozen=True)
class _Classes:
    """The classes that samples have.

    labels : (samples,) the class of each, or (samples, classes), 1 for what it has; count : of the classes
    """

    labels: Numbers
    count: int

    def take(self, rows: Ints) -> _Classes:
        """Return those of some samples."""
        return _Classes(self.labels[rows], self.count)

    def of(self, number: int) -> NDArray[np.bool_]:
        """Return (samples,) which have a class."""
        return self.labels == number if self.labels.ndim == 1 else self.labels[:, number] > 0

    def held(self, fold: Ints | Part, windows: Floats) -> Floats:
        """Return how many samples of each class each window holds: (windows, classes)."""
        folds = windows.shape[1]
        table = np.zeros((folds, self.count))
        for start in range(0, len(fold), ROWS_AT_ONCE):
            some, labels = (array[start : start + ROWS_AT_ONCE] for array in (fold, self.labels))
            if labels.ndim == 1:
                pairs = some.astype(np.int64) * self.count + labels
                table += np.bincount(pairs, minlength=table.size).reshape(table.shape)
            else:
                table += _one_hot(some, folds).T @ labels
        held: Floats = windows @ table
        return held

    def of_cells(self, cell: Ints, cells: int) -> sparse.csr_array:
        """Return how many samples of each cell have each class: sparse (cells, classes)."""
        having = _one_hot(self.labels, self.count) if self.labels.ndim == 1 else sparse.csr_array(self.labels)
        return sparse.csr_array(_one_hot(cell, cells).T @ having)


def _one_hot(numbers: Ints | Part, width: int | None = None) -> sparse.csr_array:
    rows = np.ones(len(numbers)), numbers, np.arange(len(numbers) + 1)
    return sparse.csr_array(rows, shape=(len(numbers), width or int(numbers.max()) + 1))


def _numbered(values: Ints) -> Ints:
    """Return 0, 1, ... for integers (n,), the same for the same, in ascending order."""
    least = int(values.min(initial=0))
    span = int(values.max(initial=0)) - least + 1
    if span > MOST_SPREAD * len(values):
        return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)
    values = values - least if least else values
    present = np.zeros(span, np.bool_)
    present[values] = True
    number: Ints = np.cumsum(present)
    number -= 1
    return number[values]


def split(
    units: Ints, strata: Strata, labels: Numbers, classes: Sequence[str], params: Split, where: str
) -> list[Part]:
    """Return for each repeat the part (0 train, 1 validation, 2 test) of each sample.

    units : (samples,) 0, 1, ...: what must stay together, from `join`.
    labels : (samples,) the class of each, or (samples, classes), 1 for what it has
    where : the entry in params.yaml, for messages ("datasets.cells").
    Raises UserError when a class cannot be in every part, naming it and its count.
    """
    check_units(units, labels, classes, params, where)
    having = _Classes(labels, len(classes))
    parts: list[Part] = []
    for repeat, tested in enumerate(_test_parts(units, strata, having, params)):
        rng = np.random.default_rng([params.seed, 1, repeat])
        part = np.where(tested, TEST, TRAIN).astype(np.int8)
        part[_validation(units, strata, having, part == TRAIN, params.validation * len(labels), rng)] = VALIDATION
        parts.append(part)
    _check_parts(parts, units, having, classes, where)
    return parts


def split_as_brought(
    brought: Ints, units: Ints, strata: Strata, labels: Numbers, classes: Sequence[str], params: Split, where: str
) -> list[Part]:
    """Return the parts that the source brings; a validation part that it lacks is drawn from its training part."""
    part, having = brought.astype(np.int8), _Classes(labels, len(classes))
    if not (part == VALIDATION).any():
        wanted, available = params.validation * len(labels), int((part == TRAIN).sum())
        if wanted >= available:
            raise UserError(
                f"params.yaml: {where}.split.validation is {params.validation:g} of {len(labels)} samples: that leaves "
                f"nothing of the {available} in the training part that the source brings; lower it"
            )
        rng = np.random.default_rng([params.seed, 1, 0])
        part[_validation(units, strata, having, part == TRAIN, wanted, rng)] = VALIDATION
    _check_parts([part], units, having, classes, where)
    return [part]


def _test_parts(units: Ints, strata: Strata, having: _Classes, params: Split) -> list[NDArray[np.bool_]]:
    """Return for each repeat which samples it tests."""
    if params.repeats == 1:
        rng = np.random.default_rng([params.seed, 0, 0])
        return [_deal(units, strata, having, np.array([params.test, 1 - params.test]), np.eye(2), rng) == 0]
    tested = round(params.test * params.repeats)
    cycles = math.gcd(tested, params.repeats)
    folds, tested = params.repeats // cycles, tested // cycles
    window = np.array([[(fold - step * tested) % folds < tested for fold in range(folds)] for step in range(folds)])
    parts = []
    for cycle in range(cycles):
        rng = np.random.default_rng([params.seed, 0, cycle])
        fold = _deal(units, strata, having, np.full(folds, 1 / folds), window.astype(np.float64), rng)
        parts += [window[step][fold] for step in range(folds)]
    return parts


def _validation(
    units: Ints,
    strata: Strata,
    having: _Classes,
    rest: NDArray[np.bool_],
    wanted: float,
    rng: np.random.Generator,
) -> Ints:
    """Return the samples (their positions) of the rest that are for validation."""
    places = np.flatnonzero(rest)
    share = wanted / len(places)
    inner = Strata(strata.cell[places], strata.features)
    fold = _deal(_numbered(units[places]), inner, having.take(places), np.array([share, 1 - share]), np.eye(2), rng)
    chosen: Ints = places[fold == 0]
    return chosen


def _deal(
    units: Ints, strata: Strata, having: _Classes, shares: Floats, windows: Floats, rng: np.random.Generator
) -> Ints:
    """Deal units to folds and return each sample's fold.

    shares : (folds,) how large each fold should be; they add up to 1.
    windows : (windows, folds) of 0 and 1: the sets of folds that should be like the whole.
    """
    sizes = np.bincount(units)
    large, single = np.flatnonzero(sizes > 1), sizes[units] == 1
    counts = _counted(units, strata.cell, sizes, strata.features.shape[0])
    fold_of_unit = np.zeros(len(sizes), np.int64)
    rare = sparse.csr_array((strata.features.shape[0], 0))
    for _ in range(_ATTEMPTS):
        fold_of_unit[large] = _search(counts, strata.features, rare, shares, windows, rng)
        fold = fold_of_unit[units]
        dealt = sparse.csr_array(_one_hot(fold_of_unit[large], len(shares)).T @ counts)
        fold[single] = _fill(strata.cell[single], dealt, shares, windows, rng)
        _repair(fold, having, single, windows)
        lacking = _lacking(fold, having, windows)
        if not lacking.any():
            break
        of_class = having.of_cells(strata.cell, counts.shape[1])[:, lacking]
        rare = sparse.hstack([rare, (of_class > 0) * (10 / np.sqrt(of_class.sum(axis=0)))], format="csr")
    return fold


def _counted(units: Ints, cell: Ints, sizes: Ints, cells: int) -> sparse.csr_array:
    """Return how many samples of each cell each unit of several samples holds: sparse (units of several, cells)."""
    number = np.cumsum(sizes > 1) - 1
    at = np.flatnonzero(sizes[units] > 1)
    pairs = number[units[at]] * cells + cell[at]
    pairs.sort()
    begins = np.flatnonzero(np.diff(pairs, prepend=-1))
    rows, columns = np.divmod(pairs[begins], cells)
    held = np.diff(begins, append=len(pairs)).astype(np.float64)
    return sparse.csr_array((held, (rows, columns)), shape=(int((sizes > 1).sum()), cells))


def _search(
    counts: sparse.csr_array,
    features: sparse.csr_array,
    rare: sparse.csr_array,
    shares: Floats,
    windows: Floats,
    rng: np.random.Generator,
) -> Ints:
    """Deal large units to folds so that each window's sums come near its share of the whole.

    counts : sparse (units, cells), how many samples of each stratum a unit holds. Returns (units,) folds.
    rare : further features, sparse (cells, classes), of classes that every window should hold at least one unit of.
    Steepest descent over moving one unit and swapping two, from several beginnings, of which the best is kept.
    """
    units = counts.shape[0]
    best, lowest = np.zeros(units, np.int64), np.inf
    if not units:
        return best
    values = sparse.csr_array(counts @ sparse.hstack([features, rare], format="csr"))
    wanted = np.outer(windows @ shares, values.sum(axis=0))
    for column in range(features.shape[1], values.shape[1]):  # a share of less than one unit would come to none
        held = values[:, [column]].data
        wanted[:, column] = np.maximum(wanted[:, column], np.median(held) if len(held) else 0)
    for _ in range(max(1, min(8, 800 // units))):
        fold = _begin(counts, shares, rng)
        loss = _descend(fold, values, windows, wanted, rng)
        if loss < lowest - 1e-9:
            best, lowest = fold, loss
    return best


def _begin(counts: sparse.csr_array, shares: Floats, rng: np.random.Generator) -> Ints:
    """Deal units, like after like and the large first, by a sequence that keeps all shares at any length."""
    units = counts.shape[0]
    order = np.lexsort((rng.random(units), -counts.sum(axis=1), np.asarray(counts.argmax(axis=1)).reshape(-1)))
    golden = (math.sqrt(5) - 1) / 2
    points = (rng.random() + golden * np.arange(units)) % 1
    fold = np.empty(units, np.int64)
    fold[order] = np.minimum(np.searchsorted(np.cumsum(shares), points, side="right"), len(shares) - 1)
    return fold


def _descend(fold: Ints, values: sparse.csr_array, windows: Floats, wanted: Floats, rng: np.random.Generator) -> float:
    """Improve the folds in place, the best move or swap at a time, and return the sum of squared deviations.

    With W the windows, x the units' values and D = (what the windows hold) - wanted, taking unit u from fold p to q
    changes the loss |D|^2 by 2 (G[q] - G[p]) . x[u] + d[p, q] |x[u]|^2, where G = W^T D and d[p, q] is the number of
    windows that hold just one of p and q. A swap of u and v is the same with x[u] - x[v].
    """
    distance = np.abs(windows[:, :, np.newaxis] - windows[:, np.newaxis, :]).sum(axis=0)
    sums = (_one_hot(fold, windows.shape[1]).T @ values).toarray()
    everyone = len(fold) <= _NEIGHBOURS
    chosen, x = np.arange(len(fold)), values
    products = (x @ x.T).toarray() if everyone else np.zeros((0, 0))
    for _ in range(_STEPS):
        if not everyone:
            chosen = rng.choice(len(fold), _NEIGHBOURS, replace=False)
            x = values[chosen].toarray()  # so few are multiplied faster as they are than as sparse ones
            products = x @ x.T
        at, squares = fold[chosen], products.diagonal()
        pull = x @ (windows.T @ (windows @ sums - wanted)).T  # (units, folds)
        stay = pull[np.arange(len(at)), at][:, np.newaxis]
        moves = 2 * (pull - stay) + distance[at] * squares[:, np.newaxis]
        across = pull[:, at] - stay
        swaps = 2 * (across + across.T)
        swaps += distance[np.ix_(at, at)] * (squares[:, np.newaxis] + squares - 2 * products)
        (u, q), (v, w) = _least(moves), _least(swaps)
        if min(moves[u, q], swaps[v, w]) > -1e-9:
            if everyone:
                break
            continue
        for i, target in [(u, q)] if moves[u, q] <= swaps[v, w] else [(v, int(at[w])), (w, int(at[v]))]:
            change = values[[chosen[i]]].toarray()[0]
            sums[at[i]] -= change
            sums[target] += change
            fold[chosen[i]] = target
    return float(((windows @ sums - wanted) ** 2).sum())


def _least(table: Floats) -> tuple[int, int]:
    """Return where the least value is; what differs by rounding alone is equal, or machines would disagree."""
    row, column = np.unravel_index(int(np.round(table, 9).argmin()), table.shape)
    return int(row), int(column)


def _fill(cell: Ints, dealt: sparse.csr_array, shares: Floats, windows: Floats, rng: np.random.Generator) -> Ints:
    """Deal single samples so that each fold gets its share of each stratum, counting what it has already been dealt.

    cell : (samples,); dealt : sparse (folds, cells). Returns (samples,) folds.
    What rounding gives a window of folds too little of one stratum it gets back in the next, so that the sizes come out
    even, too; the strata of one class follow each other.
    """
    fold = np.zeros(len(cell), np.int64)
    if not len(cell):
        return fold
    order = np.lexsort((rng.random(len(cell)), cell))
    ordered = cell[order]
    begins = np.flatnonzero(np.diff(ordered, prepend=-1))
    present = ordered[begins]
    already = dealt[:, present].toarray()
    owed, ties = np.zeros(len(shares)), rng.permutation(len(shares))
    for held, begin, end in zip(already.T, begins, [*begins[1:], len(cell)], strict=True):
        need = np.maximum(shares * (end - begin + held.sum()) - held, 0)
        need *= (end - begin) / need.sum()
        given = np.floor(need + 1e-9)
        owed += need - given
        open_to_more = np.ones(len(shares), np.bool_)
        for _ in range(end - begin - int(given.sum())):
            pull = np.where(open_to_more, windows.T @ (windows @ owed), -np.inf)
            more = np.lexsort((ties, -np.round(pull, 9)))[0]
            given[more] += 1
            owed[more] -= 1
            open_to_more[more] = False
        fold[order[begin:end]] = np.repeat(np.arange(len(shares)), given.astype(np.int64))
    return fold


def _repair(fold: Ints, having: _Classes, single: NDArray[np.bool_], windows: Floats) -> None:
    """Give a window that lacks a class a single sample of it, in place, from the fold that holds most of it."""
    for window, label in np.argwhere(having.held(fold, windows) == 0):
        held = having.held(fold, np.eye(windows.shape[1]))[:, label]
        available = np.bincount(fold[single & having.of(label)], minlength=len(held)) > 0
        donors = np.flatnonzero(available & (held > 1) & (windows[window] == 0))
        if len(donors):
            donor = donors[held[donors].argmax()]
            sample = np.flatnonzero(single & having.of(label) & (fold == donor))[0]
            fold[sample] = int(windows[window].argmax())


def _lacking(fold: Ints, having: _Classes, windows: Floats) -> NDArray[np.bool_]:
    """Return for each class whether a window holds no sample of it."""
    lacking: NDArray[np.bool_] = (having.held(fold, windows) == 0).any(axis=0)
    return lacking


def check_units(units: Ints, labels: Numbers, classes: Sequence[str], params: Split, where: str) -> None:
    """Raise UserError for a class that has fewer units than would do for some in every part; see `split`."""
    having = _Classes(labels, len(classes))
    share = params.test
    least = (
        3
        if params.repeats == 1
        else next(n for n in range(3, 10**6) if n * share >= 1 - 1e-9 and n - math.ceil(n * share - 1e-9) >= 2)
    )
    for index, name in enumerate(classes):
        if len(np.unique(units[having.of(index)])) < least:
            raise UserError(
                f"params.yaml: {where}: the class {name} has {_count(units, having, index)}; to have some in every "
                f"part it takes {least}: bring more of it, leave it out, or change the split"
            )


def _check_parts(parts: Sequence[Part], units: Ints, having: _Classes, classes: Sequence[str], where: str) -> None:
    """Refuse a split in which a part lacks a class: neither trained nor scored would it mean anything."""
    for repeat, part in enumerate(parts):
        held = having.held(part, np.eye(len(PARTS)))
        for number, index in np.argwhere(held == 0):
            raise UserError(
                f"params.yaml: {where}: the {PARTS[number]} part of repeat {repeat} has nothing of the class "
                f"{classes[index]}, which has {_count(units, having, index)}: bring more of it, leave it out, or "
                "change the split"
            )


def _count(units: Ints, having: _Classes, index: int) -> str:
    of_class = having.of(index)
    samples, held = int(of_class.sum()), len(np.unique(units[of_class]))
    text = f"{samples} sample{'s' * (samples != 1)}"
    return text if held == samples else f"{text} in {held} group{'s' * (held != 1)}"

"""Does the order of the images tell which look alike? Then what stands together may belong together, and needs a group.

For each test image the training images are taken that stand within NEAR places of it in the order of names (or of the
table that lists them, where it has an order of its own and there it tells more), and as many training images of the
same classes from elsewhere. Where the order tells nothing, the one that looks most like the test image is as often
among these as among those. Where images of one patient, module or day follow each other and are spread over both parts,
it is mostly among the former.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.samples.duplicates import distances

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from stages.samples.duplicates import Looks

    Ints = NDArray[np.int64]
    Part = NDArray[np.int8]

NEAR = 30  # places
MOST_TESTED = 1000
FEWEST_TESTED = 20
LEAST_SHARE = 0.65
"""Of test images whose likeness stands near them, from which on it is said; one half is chance."""
LEAST_DEVIATIONS = 4.0
"""By how many standard deviations of chance the share must be above one half."""


class Order(NamedTuple):
    """Of how many test images the most similar training image stands near them, and of how many that was looked up."""

    near: float
    tested: int
    by: str = "names"  # or table

    @property
    def share(self) -> float:
        """The share of test images; 0.5 is chance."""
        return self.near / self.tested if self.tested else 0.5

    @property
    def tells(self) -> bool:
        """Whether it is more than chance by far."""
        sure = (self.share - 0.5) * 2 * math.sqrt(self.tested) >= LEAST_DEVIATIONS
        return self.tested >= FEWEST_TESTED and self.share >= LEAST_SHARE and sure

    @property
    def facts(self) -> dict[str, Any]:
        """What is written down of it; the order of names goes without saying."""
        return {"near": self.near, "tested": self.tested, **({} if self.by == "names" else {"by": self.by})}

    def hint(self, most_like: str, group: str | None) -> str:
        """Say what was found; most_like : what the likeness of the training image is told by."""
        kept = f"group: {group} does not keep it together" if group else "name what it shares as group"
        return (
            f"for {self.share:.0%} of {self.tested:,} test images the training image that {most_like} most like "
            f"them stands near them in the order of {'names' if self.by == 'names' else 'the table'}, and 50% is "
            f"chance: what stands together may belong together; {kept}"
        )


def look_up_order(appearances: Looks, labels: Ints, part: Ints | Part, table_row: Ints | None = None) -> Order:
    """Look up how often likeness stands near, by looks; appearances : see duplicates.py, in the order of names."""
    return look_up(lambda row, others: distances(appearances[row], appearances[others]), labels, part, table_row)


def look_up(
    apart: Callable[[int, Ints], NDArray[Any]], labels: Ints, part: Ints | Part, table_row: Ints | None = None
) -> Order:
    """Look up how often likeness stands near, in that order in which it does so more often.

    apart : how far an image is from others, given by their rows, which are in the order of names
    labels : of each image, as an index; part : 0 is training, 2 is test
    table_row : of each image, where it stands in the table that lists them, if that has an order of its own
    """
    of_names = _look_up(apart, labels, part)
    if table_row is None:
        return of_names
    at = np.argsort(table_row, kind="stable")
    of_table = _look_up(lambda row, others: apart(int(at[row]), at[others]), labels[at], part[at])
    tells_more = (of_table.tells, of_table.share) > (of_names.tells, of_names.share)
    return of_table._replace(by="table") if tells_more and of_table.tested >= FEWEST_TESTED else of_names


def _look_up(apart: Callable[[int, Ints], NDArray[Any]], labels: Ints, part: Ints | Part) -> Order:
    lot = np.random.default_rng(0)
    rows = np.flatnonzero(part == 0)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    training = np.split(rows, np.searchsorted(labels[rows], np.arange(1, int(labels.max(initial=-1)) + 1)))
    tested = lot.permutation(np.flatnonzero(part == 2))[:MOST_TESTED]
    near, looked_up = 0.0, 0
    for row in tested.tolist():
        around = np.arange(max(0, row - NEAR), min(len(part), row + NEAR + 1))
        here, elsewhere = _pairs(around[part[around] == 0], row, labels, training, lot)
        if not len(here):
            continue
        found = apart(row, np.concatenate([here, elsewhere]))
        one, other = found[: len(here)].min(), found[len(here) :].min()
        near += 1.0 if one < other else 0.5 if one == other else 0.0
        looked_up += 1
    return Order(near, looked_up)


def _pairs(
    around: Ints, row: int, labels: Ints, training: Sequence[Ints], lot: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return training images around a row, and for each of them one of the same class from elsewhere."""
    here, elsewhere = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for c in np.unique(labels[around]).tolist():
        mine, rows = around[labels[around] == c], training[c]
        low, high = np.searchsorted(rows, (row - NEAR, row + NEAR + 1))
        left = len(rows) - (high - low)
        if left:
            drawn = lot.integers(left, size=len(mine))
            here.append(mine)
            elsewhere.append(rows[drawn + (drawn >= low) * (high - low)])
    return np.concatenate(here), np.concatenate(elsewhere)

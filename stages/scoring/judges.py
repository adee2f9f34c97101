"""Which runs are asked whose labels look wrong, and what they say: reports/suspects.csv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from stages.cli import UserError
from stages.scoring.comparison import BETTER, EVEN, DatasetComparison, verdict
from stages.scoring.metrics import Outcomes
from stages.scoring.records import Record
from stages.scoring.suspects import Suspects, find_suspects

COLUMNS = ("dataset", "sample", "label", "suggested", "p_label", "p_suggested")


def judges(d: DatasetComparison, records: Mapping[str, Record]) -> list[str]:
    """Return the runs that are asked: the best, and the transfers in the choice that are not shown to be worse.

    The best alone where its record has no rows, because there are too many: what it suspects is in its record.
    """
    if not isinstance(records[d.best].outcomes, Outcomes):
        return [d.best]
    equal = [
        name
        for name, difference in d.to_best.items()
        if verdict(difference) in (EVEN, BETTER)
        and records[name].facts["family"] != "none"
        and isinstance(records[name].outcomes, Outcomes)
    ]
    return [name for name in d.runs if name == d.best or name in equal]


def suspects_of(d: DatasetComparison, records: Mapping[str, Record]) -> Suspects:
    """Return the suspects of a data set; raises UserError where the best run's record is from before they were kept."""
    outcomes = [records[name].outcomes for name in judges(d, records)]
    rows = [found for found in outcomes if isinstance(found, Outcomes)]
    if rows:
        return find_suspects(rows)
    kept: Suspects | None = records[d.best].details.get("suspects")
    if kept is None:
        raise UserError(f"reports/runs/{d.best}/details.json names no suspects: run `dvc repro evaluate`")
    return kept


def suspect_rows(suspects: Mapping[str, Suspects]) -> Iterator[dict[str, Any]]:
    """Yield a row of suspects.csv for each suspect of each data set."""
    for dataset, found in suspects.items():
        for suspect in found.likeliest:
            yield {"dataset": dataset, **asdict(suspect)}

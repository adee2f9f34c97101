"""The leaderboard: a row per run, best first within each data set, as CSV, as Markdown and in the terminal.

    python -m stages.scoring.leaderboard                      print it, and say where the report and MLflow are
    python -m stages.scoring.leaderboard --markdown           print it as Markdown, for a pull request
    python -m stages.scoring.leaderboard --against REVISION   print as Markdown what has changed since a git revision

Reads reports/leaderboard.csv and reports/comparisons.json alone, so it prints at once.
"""

from __future__ import annotations

import argparse
import csv
import io
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.cli import UserError, guard
from stages.files import REPORTS, read_json, write_text
from stages.scoring.wording import FAMILIES, FIGURE_NAMES, column_name, count, decimals, interval, signed

if TYPE_CHECKING:
    from stages.params import Params, Run
    from stages.scoring.comparison import Comparison, DatasetComparison
    from stages.scoring.records import Record

FIGURES = ("accuracy", "balanced_accuracy", "auc", "average_precision", "f1", "log_loss", "ece")
COSTS = (
    "extract_seconds",
    "train_seconds",
    "extract_core_seconds",
    "train_core_seconds",
    "images_per_second",
    "extract_peak_memory_bytes",
    "train_peak_memory_bytes",
    "trained_parameters",
    "operations_per_image",
    "extract_operations",
    "train_operations",
    "end_to_end_epochs",
    "feature_bytes",
)
COLUMNS = (
    *("run", "dataset", "features", "family", "kind", "repeats", "labels_per_class", "images", "groups"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_sd", "balanced_accuracy"),
    *("auc", "auc_low", "auc_high", "average_precision", "average_precision_low", "average_precision_high"),
    *("average_precision_sd", "f1", "micro_f1", "log_loss", "ece"),
    *("reference", "difference", "difference_low", "difference_high", "p_adjusted", "verdict", "recommended"),
    *COSTS,
)
Row = Mapping[str, Any]
"""A run's values by column. From a file all are text, and what was never measured is empty."""


def leaderboard_rows(params: Params, records: Mapping[str, Record], comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row per run, data sets in the order of params.yaml, the highest accuracy first.

    Where images have several labels, the highest mean average precision; only there is `micro_f1` given.
    """
    return [
        _row(records[run], params.runs[run], of_dataset)
        for of_dataset in comparison.datasets.values()
        for run in sorted(of_dataset.runs, key=lambda r: (-records[r].metrics[of_dataset.figure], r))
    ]


def headline(row: Row) -> str:
    """Return the figure that a run is ordered and compared by."""
    return "accuracy" if row.get("micro_f1") in (None, "") else "average_precision"


def _row(record: Record, run: Run, of_dataset: DatasetComparison) -> dict[str, Any]:
    from stages.scoring.comparison import verdict

    difference = of_dataset.to_reference.get(record.run)
    measured = {**record.metrics, **record.cost}
    row = {name: measured.get(name) for name in COLUMNS}
    family = record.facts["family"]
    row["labels_per_class"] = run.budgets[-1] or "all"
    row |= {"run": record.run, "dataset": run.dataset, "features": run.features, "kind": run.transfer.kind}
    row |= {"family": FAMILIES.get(family, family), "reference": of_dataset.reference}
    row["recommended"] = "yes" if record.run == of_dataset.recommended else "no"
    if difference is not None:
        row |= {"difference": difference.value, "verdict": verdict(difference), "p_adjusted": difference.p_adjusted}
        row |= {"difference_low": difference.low, "difference_high": difference.high}
    elif record.run == of_dataset.reference:
        row["verdict"] = "reference"
    return row


def csv_text(rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> str:
    """Return the rows as CSV: six decimals, nothing where nothing was measured."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_value(row[name]) for name in columns] for row in rows)
    return buffer.getvalue()


def _csv_value(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def write_leaderboard(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows as CSV."""
    write_text(path, csv_text(rows))


def read_leaderboard(path: Path = REPORTS / "leaderboard.csv") -> list[dict[str, str]]:
    """Read what `write_leaderboard` has written; raises UserError when it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is not there: run `dvc repro`") from None
    return list(csv.DictReader(io.StringIO(text)))


def by_dataset(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Yield each data set's name with its rows, in the order in which they stand."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str(row["dataset"]), []).append(row)
    yield from found.items()


def markdown(rows: Sequence[Row], comparisons: Mapping[str, Any]) -> str:
    """Return the leaderboard as Markdown, narrow enough for a comment on a pull request.

    comparisons : the content of comparisons.json, for the sentences that recommend a run.
    """
    lines = ["# Leaderboard", ""]
    for dataset, of_dataset in by_dataset(rows):
        facts = comparisons["datasets"][dataset]
        lines += [f"## {dataset}", "", " ".join([facts["recommendation"], *facts["cautions"]]), ""]
        figure = column_name(headline(of_dataset[0]))
        lines += [f"| run | {figure} | 95 % interval | AUC | difference | cost |", "|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(_markdown_cells(row))} |" for row in of_dataset]
        lines += ["", *(f"<sub>{line}</sub>" for line in [_legend(of_dataset, facts)]), ""]
    lines += [f"**What the split is worth.** {split['meaning']}\n" for split in comparisons["splits"]]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_cells(row: Row) -> list[str]:
    name = f"**{row['run']}**" if row["recommended"] == "yes" else str(row["run"])
    return [name + _labels(row), *_cells(row)]


def _labels(row: Row) -> str:
    """Return how many labels a run has learned from, where these are not all."""
    most = row.get("labels_per_class") or "all"  # a leaderboard of before has no such column
    return "" if most == "all" else f" ({most} of each class)"


def _legend(rows: Sequence[Row], facts: Mapping[str, Any]) -> str:
    groups = f" in {int(facts['groups']):,} groups" if facts["groups"] else ""
    splits = "one split" if facts["repeats"] == 1 else f"{facts['repeats']} splits"
    text = f"{int(facts['images']):,} test images{groups}, {splits}. Cost: multiply-adds per image."
    if facts["reference"] is None:
        return text
    text += f" Difference in {FIGURE_NAMES[headline(rows[0])]} to {facts['reference']}"
    if any(row["verdict"] in ("better", "worse") for row in rows):
        return text + "; ▲ and ▼ are real (adjusted p ≤ 0.05), ≈ is not shown to differ."
    return text + "; none is shown to be real."


VERDICT_SIGNS = {"better": "▲", "worse": "▼", "not shown to differ": "≈", "reference": "reference"}


def _cells(row: Row) -> list[str]:
    """Return accuracy or mAP, its interval, AUC, difference with verdict, and cost as people read them."""
    figure = headline(row)
    return [
        decimals(row[figure]),
        interval(row[f"{figure}_low"], row[f"{figure}_high"]) or "–",
        decimals(row["auc"]),
        difference_text(row),
        count(row["operations_per_image"]),
    ]


def difference_text(row: Row) -> str:
    """Return the difference to the reference with the sign of its verdict."""
    sign = VERDICT_SIGNS.get(str(row["verdict"] or ""), "")
    return sign if sign == "reference" else f"{signed(row['difference'])} {sign}".strip()


def changes(before: Sequence[Row], after: Sequence[Row], revision: str) -> str:
    """Return as Markdown which runs have come, gone or changed between two leaderboards."""
    old, new = ({str(row["run"]): row for row in rows} for rows in (before, after))
    lines = []
    for name in [*new, *(name for name in old if name not in new)]:
        figures = (headline(new.get(name, old.get(name, {}))), "auc")
        if name not in new:
            cells = [f"{decimals(old[name][figure])} → gone" for figure in figures]
        elif name not in old:
            cells = [f"new: {decimals(new[name][figure])}" for figure in figures]
        elif any(old[name][c] != new[name][c] for c in (*figures, "recommended")):
            cells = [_change(old[name], new[name], figure) for figure in figures]
        else:
            continue
        lines.append(f"| {name} | {' | '.join(cells)} |")
    named = list(dict.fromkeys(column_name(headline(row)) for row in (*after, *before))) or ["accuracy"]
    lines += [
        f"\nRecommended for {dataset}: {chosen[1] or 'none'}, before: {chosen[0] or 'none'}."
        for dataset, _ in by_dataset(after)
        if len(set(chosen := [_recommended(rows, dataset) for rows in (before, after)])) > 1
    ]
    if not lines:
        return f"No figure of the leaderboard differs from {revision}.\n"
    return (
        "\n".join([f"Change since {revision}:", "", f"| run | {' or '.join(named)} | AUC |", "|---|---|---|", *lines])
        + "\n"
    )


def _change(old: Row, new: Row, name: str) -> str:
    if old[name] == new[name]:
        return decimals(new[name])
    step = signed(float(new[name]) - float(old[name])) if old[name] and new[name] else "–"
    return f"{decimals(old[name])} → {decimals(new[name])} ({step})"


def _recommended(rows: Iterable[Row], dataset: str) -> str | None:
    return next((str(r["run"]) for r in rows if r["dataset"] == dataset and r["recommended"] == "yes"), None)


def leaderboard_at(revision: str) -> list[dict[str, str]]:
    """Read the leaderboard of a git revision; an empty one if the revision has none."""
    if revision.startswith("-"):
        raise UserError(f"{revision} is no git revision")
    known = _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if known.returncode:
        raise UserError(f"{revision} is no git revision that this clone holds: fetch it first")
    shown = _git("show", f"{revision}:./{REPORTS / 'leaderboard.csv'}")
    return [] if shown.returncode else list(csv.DictReader(io.StringIO(shown.stdout)))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, encoding="utf-8", check=False)


def show(rows: Sequence[Row], comparisons: Mapping[str, Any]) -> None:
    """Print the leaderboard in the terminal, with what is recommended and where to read on."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    for dataset, of_dataset in by_dataset(rows):
        facts = comparisons["datasets"][dataset]
        console.print(_terminal_table(dataset, of_dataset))
        console.print(_legend(of_dataset, facts), style="dim", markup=False)
        console.print()
        console.print(" ".join([facts["recommendation"], *facts["cautions"]]), markup=False)
        console.print()
    for split in comparisons["splits"]:
        console.print(split["meaning"], markup=False)
        console.print()
    console.print(f"report   {REPORTS / 'report.html'}: open it in a browser", markup=False, soft_wrap=True)
    console.print("MLflow   make ui", markup=False)


def _terminal_table(dataset: str, rows: Sequence[Row]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(dataset, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in (column_name(headline(rows[0])), "95 % interval", "AUC", "difference", "cost", "train s"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        style = "bold" if row["recommended"] == "yes" else ""
        cells = [f"{row['run']}{_labels(row)}", *_cells(row), decimals(row["train_seconds"], 1)]
        table.add_row(*(Text(cell) for cell in cells), style=style)
    return table


def main() -> None:
    """Print the leaderboard, or what has changed in it."""
    about = argparse.ArgumentParser(prog="python -m stages.scoring.leaderboard", description="Print the leaderboard.")
    about.add_argument("--markdown", action="store_true", help="print Markdown, for a pull request or a job's summary")
    about.add_argument("--against", metavar="REVISION", help="print as Markdown what changed since a git revision")
    chosen = about.parse_args()
    rows = read_leaderboard()
    if chosen.against:
        print(changes(leaderboard_at(chosen.against), rows, chosen.against), end="")
        return
    comparisons = read_json(REPORTS / "comparisons.json")
    if chosen.markdown:
        print(markdown(rows, comparisons), end="")
    else:
        show(rows, comparisons)


if __name__ == "__main__":
    guard(main)

"""Put the runs side by side: which serves each data set best, by how much, how sure that is, and what it cost.

    reports/runs/<run>/ of every run in params.yaml
        ->  reports/leaderboard.csv, leaderboard.md, labels.csv, suspects.csv, comparisons.json, report.html

Runs that params.yaml does not name are not looked at, whatever lies in reports/runs/.

    python -m stages.compare
"""

from __future__ import annotations

from stages.cli import UserError, run_stage
from stages.files import REPORTS, write_json, write_text
from stages.params import Params
from stages.scoring.comparison import compare_runs, comparison_content
from stages.scoring.judges import COLUMNS, suspect_rows, suspects_of
from stages.scoring.labels import label_rows, labels_csv
from stages.scoring.leaderboard import csv_text, leaderboard_rows, markdown
from stages.scoring.page import page
from stages.scoring.records import read_record


def compare(params: Params) -> None:
    """Write the leaderboard, what is known of the differences, and the page."""
    if not params.runs:
        raise UserError("params.yaml: runs is empty: there is nothing to compare")
    records = {name: read_record(name) for name in params.runs}
    comparison = compare_runs(params, records)
    rows = leaderboard_rows(params, records, comparison)
    content = comparison_content(comparison)
    suspects = {name: suspects_of(d, records) for name, d in comparison.datasets.items()}
    write_text(REPORTS / "leaderboard.csv", csv_text(rows))
    write_text(REPORTS / "leaderboard.md", markdown(rows, content))
    write_text(REPORTS / "labels.csv", labels_csv(list(label_rows(params, records))))
    write_text(REPORTS / "suspects.csv", csv_text(suspect_rows(suspects), COLUMNS))
    write_json(REPORTS / "comparisons.json", content)
    write_text(REPORTS / "report.html", page(params, records, comparison, rows, suspects))


if __name__ == "__main__":
    run_stage(compare)

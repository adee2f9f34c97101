"""The leaderboard as CSV, as Markdown, in the terminal, and what has changed in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.cli import UserError
from stages.files import write_json
from stages.scoring.comparison import compare_runs, comparison_content
from stages.scoring.leaderboard import (
    COLUMNS,
    changes,
    csv_text,
    leaderboard_at,
    leaderboard_rows,
    markdown,
    read_leaderboard,
    show,
)
from tests.scoring.made_up import make_outcomes, make_params, make_record

ROOT = Path(__file__).parents[2]
PROMISED = [
    *("run", "dataset", "features", "family", "kind", "repeats", "accuracy", "accuracy_low", "accuracy_high"),
    *("accuracy_sd", "auc", "f1", "ece", "extract_seconds", "train_seconds"),
]


@pytest.fixture(scope="module")
def board() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and comparisons of three runs on one data set and one on another."""
    params = make_params(
        {
            "late": ("zebras", "lite0", "logistic"),
            "probe": ("cells", "lite0", "logistic"),
            "svm-on-several-layers": ("cells", "lite0-layers", "rbf_svm"),
            "majority": ("cells", "lite0", "majority"),
        }
    )
    right = {"late": 170, "probe": 150, "svm-on-several-layers": 190, "majority": 100}
    records = {
        name: make_record(
            name,
            make_outcomes(np.arange(200) % 200 < n),
            family="none" if name == "majority" else "feature",
            images_per_second=None if name == "late" else 120.0,
        )
        for name, n in right.items()
    }
    comparison = compare_runs(params, records)
    return leaderboard_rows(params, records, comparison), comparison_content(comparison)


def test_csv_has_the_promised_columns_and_a_row_per_run_best_first(board: Any, tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(csv_text(board[0]))
    rows = read_leaderboard(tmp_path / "leaderboard.csv")
    assert set(PROMISED) <= set(rows[0])
    assert [row["run"] for row in rows] == ["late", "svm-on-several-layers", "probe", "majority"]
    probe = rows[2]
    assert (probe["accuracy"], probe["repeats"], probe["kind"]) == ("0.750000", "4", "logistic")
    assert (probe["family"], rows[3]["family"]) == ("feature representation", "none")
    assert (probe["verdict"], rows[1]["verdict"], rows[3]["verdict"]) == ("reference", "better", "worse")
    assert (rows[0]["images_per_second"], probe["images_per_second"]) == ("", "120.000000")
    assert float(rows[1]["difference"]) == pytest.approx(0.2)
    assert [row["recommended"] for row in rows] == ["yes", "yes", "no", "no"]


def test_csv_has_every_cell_of_a_row_even_where_nothing_was_measured(board: Any) -> None:
    lines = csv_text(board[0]).splitlines()
    assert {line.count(",") for line in lines} == {len(COLUMNS) - 1}


def test_markdown_is_narrow_and_names_the_recommended_run(board: Any) -> None:
    text = markdown(*board)
    assert "**svm-on-several-layers**" in text
    assert board[1]["datasets"]["cells"]["recommendation"] in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert max(map(len, tables)) <= 90
    assert {line.count("|") for line in tables} == {7}


def test_runs_on_fewer_labels_are_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = make_params(dict.fromkeys(("probe", "few"), ("cells", "lite0", "logistic")))
    few = params.runs["few"].model_copy(update={"labels_per_class": [5, 100]})
    params = params.model_copy(update={"runs": {**params.runs, "few": few}})
    records = {name: make_record(name, make_outcomes(np.arange(200) < n)) for name, n in (("probe", 150), ("few", 160))}
    comparison = compare_runs(params, records)
    rows, content = leaderboard_rows(params, records, comparison), comparison_content(comparison)
    assert [row["labels_per_class"] for row in rows] == [100, "all"]
    text = markdown(rows, content)
    assert "| few (100 of each class) | 0.800 |" in text
    assert "| **probe** | 0.750 |" in text
    (tmp_path / "leaderboard.csv").write_text(csv_text(rows))
    show(read_leaderboard(tmp_path / "leaderboard.csv"), content)
    assert "few (100 of each class)" in capsys.readouterr().out
    before = [{k: v for k, v in row.items() if k != "labels_per_class"} for row in rows]
    assert "| few | 0.800 |" in markdown(before, content)  # of a revision that did not have the column


def test_markdown_is_the_same_from_the_file_as_from_the_rows(board: Any, tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(csv_text(board[0]))
    assert markdown(read_leaderboard(tmp_path / "leaderboard.csv"), board[1]) == markdown(*board)


def test_changes_tell_what_is_new_gone_and_different(board: Any, tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(csv_text(board[0]))
    before = read_leaderboard(tmp_path / "leaderboard.csv")
    after = [dict(row) for row in before if row["run"] != "majority"]
    after[1] |= {"accuracy": "0.900000", "recommended": "no"}
    after[2] |= {"recommended": "yes"}
    after.append({**before[2], "run": "fresh", "recommended": "no"})
    text = changes(before, after, "main")
    assert "| svm-on-several-layers | 0.950 → 0.900 (−0.050) |" in text
    assert "| fresh | new: 0.750 |" in text
    assert "| majority | 0.500 → gone |" in text
    assert "Recommended for cells: probe, before: svm-on-several-layers." in text
    assert "| late |" not in text


def test_changes_of_nothing_are_one_sentence(board: Any, tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(csv_text(board[0]))
    rows = read_leaderboard(tmp_path / "leaderboard.csv")
    assert changes(rows, rows, "main") == "No figure of the leaderboard differs from main.\n"


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments], cwd=folder, check=True)


def test_leaderboard_of_a_revision_is_read_from_git(
    board: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "nothing")
    assert leaderboard_at("main") == []
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "leaderboard.csv").write_text(csv_text(board[0]))
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "results")
    assert leaderboard_at("HEAD") == read_leaderboard()
    assert leaderboard_at("HEAD~1") == []


@pytest.mark.parametrize("revision", ["no-such-branch", "--output=stolen", ""])
def test_what_is_no_revision_is_refused(revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    with pytest.raises(UserError, match="no git revision"):
        leaderboard_at(revision)
    assert not (tmp_path / "stolen").exists()


def test_terminal_shows_runs_recommendation_and_where_to_read_on(
    board: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "leaderboard.csv").write_text(csv_text(board[0]))
    show(read_leaderboard(tmp_path / "leaderboard.csv"), board[1])
    shown = capsys.readouterr().out
    words = re.sub(r"\s+", " ", shown)
    assert board[1]["datasets"]["cells"]["recommendation"] in words
    assert "reports/report.html" in words
    assert "make ui" in words
    assert all(row["run"] in words for row in board[0])
    assert max(map(len, shown.splitlines())) <= 100


def test_command_prints_from_the_files_alone_without_heavy_imports(board: Any, tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "leaderboard.csv").write_text(csv_text(board[0]))
    write_json(tmp_path / "reports" / "comparisons.json", board[1])
    code = (
        "import sys; sys.argv = ['leaderboard']\n"
        "from stages.scoring.leaderboard import main\n"
        "main()\n"
        "heavy = {'numpy', 'pandas', 'pyarrow', 'torch', 'pydantic', 'dvc', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert "svm-on-several-layers" in result.stdout


def test_missing_leaderboard_is_one_line_that_says_what_to_run(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "stages.scoring.leaderboard"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
    )
    assert result.returncode == 2
    assert result.stderr == "reports/leaderboard.csv is not there: run `dvc repro`\n"

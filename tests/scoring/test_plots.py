"""Curves against scikit-learn, pictures that repeat byte for byte, mistakes in their order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dvc_render import VegaRenderer
from PIL import Image
from sklearn import metrics as reference

from stages.scoring.metrics import Outcomes
from stages.scoring.plots import (
    MOST_POINTS,
    confusion_counts,
    confusion_rows,
    draw_pictures,
    most_confident_mistakes,
    plot_rows,
    reliability_rows,
)

ROOT = Path(__file__).parents[2]


def make_outcomes(classes: int = 2, images: int = 400, repeats: int = 2) -> Outcomes:
    random = np.random.default_rng(0)
    truth = random.integers(0, classes, images)
    powers = np.exp(random.normal(size=(images, classes)) + 1.2 * np.eye(classes)[truth])
    return Outcomes(
        classes=[f"class {c}" for c in range(classes)],
        samples=[f"{i:05d}" for i in range(images)],
        repeats=np.arange(images) * repeats // images,
        groups=None,
        truth=truth,
        probabilities=np.round(powers / powers.sum(axis=1, keepdims=True), 2),
    )


def curve(rows: list[dict[str, object]], name: str, repeat: int, keys: tuple[str, str]) -> np.ndarray:
    mine = [row for row in rows if (row["class"], row["repeat"]) == (name, repeat)]
    return np.array([[row[key] for key in keys] for row in mine], dtype=float).T


@pytest.mark.parametrize("classes", [2, 3])
def test_points_of_the_roc_curve_lie_on_scikit_learn_s(classes: int) -> None:
    outcomes = make_outcomes(classes)
    rows = plot_rows(outcomes)["roc"]
    assert {row["class"] for row in rows} == set(outcomes.classes[-1:] if classes == 2 else outcomes.classes)
    for repeat in (0, 1):
        mine, last = outcomes.repeats == repeat, classes - 1
        fpr, tpr, _ = reference.roc_curve(
            outcomes.truth[mine] == last, outcomes.probabilities[mine, last], drop_intermediate=False
        )
        x, y = curve(rows, f"class {last}", repeat, ("fpr", "tpr"))
        area = np.trapezoid(y, x)
        assert area == pytest.approx(reference.auc(fpr, tpr), abs=0.005)
        between = ~np.isin(x, np.round(fpr, 4))  # where the curve rises, sklearn has two values
        np.testing.assert_allclose(y[between], np.interp(x[between], fpr, tpr), atol=1e-4)


def test_points_of_the_precision_curve_are_those_that_average_precision_adds_up() -> None:
    outcomes = make_outcomes()
    mine = outcomes.repeats == 1
    x, y = curve(plot_rows(outcomes)["precision_recall"], "class 1", 1, ("recall", "precision"))
    precision, recall, _ = reference.precision_recall_curve(outcomes.truth[mine], outcomes.probabilities[mine, 1])
    for wanted, found in zip(x, y, strict=True):
        reached = np.flatnonzero(recall >= wanted - 1e-9)[-1]  # recall falls; its last one that is high enough
        same = recall == recall[reached]
        at = precision[same][recall[same] > 0]
        assert found == pytest.approx(at[-1] if len(at) else precision[-2], abs=1e-4)
    expected = reference.average_precision_score(outcomes.truth[mine], outcomes.probabilities[mine, 1])
    assert y.mean() == pytest.approx(expected, abs=0.01)


def test_confusion_is_scikit_learn_s_and_every_class_is_on_the_diagonal() -> None:
    outcomes = make_outcomes(3)
    predicted = outcomes.probabilities.argmax(axis=1)
    np.testing.assert_array_equal(confusion_counts(outcomes), reference.confusion_matrix(outcomes.truth, predicted))
    never = Outcomes(["a", "b"], ["x"], np.array([0]), None, np.array([0]), np.array([[0.9, 0.1]]))
    assert confusion_rows(never) == [
        {"truth": "a", "predicted": "a", "images": 1},
        {"truth": "b", "predicted": "b", "images": 0},
    ]


def test_reliability_by_hand() -> None:
    p = np.array([0.62, 0.64, 0.9, 0.3])  # of class b; the last is predicted a with 0.7
    outcomes = Outcomes(
        ["a", "b"], list("wxyz"), np.array([0, 0, 1, 1]), None, np.array([1, 0, 1, 0]), np.stack([1 - p, p], axis=1)
    )
    assert reliability_rows(outcomes) == [
        {"confidence": 0.63, "accuracy": 0.5, "images": 2},
        {"confidence": 0.7, "accuracy": 1.0, "images": 1},
        {"confidence": 0.9, "accuracy": 1.0, "images": 1},
    ]


def test_curves_of_many_classes_stay_small_and_one_of_a_class_that_is_not_tested_is_left_out() -> None:
    outcomes = make_outcomes(classes=60, images=6000, repeats=4)
    rows = plot_rows(outcomes)["roc"]
    assert MOST_POINTS * 0.9 < len(rows) <= MOST_POINTS + 60 * 4
    alone = make_outcomes(repeats=1).select(make_outcomes(repeats=1).truth == 0)
    assert len(plot_rows(alone)["roc"]) == 1  # no curve; a table without a row would have no columns


def test_mistakes_come_most_confident_first_and_each_image_once() -> None:
    p = np.array([0.9, 0.2, 0.95, 0.6, 0.97, 0.05])
    outcomes = Outcomes(
        ["sound", "broken"],
        ["a", "b", "c", "a", "d", "e"],
        np.array([0, 0, 0, 1, 1, 1]),
        None,
        np.array([0, 1, 0, 0, 1, 1]),
        np.stack([1 - p, p], axis=1),
    )
    found = most_confident_mistakes(outcomes)
    assert [m.sample for m in found] == ["c", "e", "a", "b"]
    assert found[0].caption == "0.95 broken\nis sound"
    assert [m.sample for m in most_confident_mistakes(outcomes, 2)] == ["c", "e"]


@pytest.mark.parametrize("classes", [2, 25])
def test_pictures_repeat_byte_for_byte_and_say_nothing_of_when_they_were_made(tmp_path: Path, classes: int) -> None:
    outcomes = make_outcomes(classes)
    rows = plot_rows(outcomes)
    for folder in ("a", "b"):
        draw_pictures(tmp_path / folder, outcomes, rows)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["confusion.png", "precision_recall.png", "reliability.png", "roc.png"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        with Image.open(tmp_path / "a" / name) as picture:
            assert set(picture.info) <= {"dpi"}
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 20  # something is drawn


@pytest.mark.filterwarnings("error")
def test_names_of_classes_are_neither_mathematics_nor_control_characters(tmp_path: Path) -> None:
    outcomes = replace(make_outcomes(3), classes=[r"$\frac$", "a\x1b[2J\nb", r"$x$ \$"])
    draw_pictures(tmp_path, outcomes, plot_rows(outcomes))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("template", "plot", "axes"),
    [("confusion_counts", "confusion", ("predicted", "truth")), ("curves", "roc", ("fpr", "tpr"))],
)
def test_dvc_fills_our_templates(template: str, plot: str, axes: tuple[str, str]) -> None:
    points = [{**row, "rev": rev} for rev in ("workspace", "main") for row in plot_rows(make_outcomes())[plot]]
    renderer = VegaRenderer(
        points,
        plot,
        x=axes[0],
        y=axes[1],
        template=template,
        template_dir=str(ROOT / ".dvc" / "plots"),
        revs=["workspace", "main"],
        anchors_y_definitions=[{"filename": "", "field": axes[1]}],
        revs_with_datapoints=["workspace", "main"],
    )
    filled = renderer.get_filled_template()
    text = json.dumps(filled) if not isinstance(filled, str) else filled
    assert "DVC_METRIC" not in text
    assert all(f'"{axis}"' in text for axis in axes)

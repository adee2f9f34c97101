"""Labels: order and names of classes, thresholds, and what is no label."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.cli import UserError
from stages.params import Label
from stages.samples.labels import Labels, make_labels, read_weights


def labels(values: list[Any], **keys: Any) -> Labels:
    return of_table({keys.get("column", "class"): values}, **keys)


def of_table(columns: dict[str, list[Any]], **keys: Any) -> Labels:
    samples = [f"{row}.png" for row in range(len(next(iter(columns.values()))))]
    return make_labels(pa.table({"sample": samples, **columns}), Label(**keys), "datasets.cells")


def test_words_are_classes_in_sorted_order() -> None:
    found = labels(["dog", "cat", "eel", "cat"])
    assert found.classes == ["cat", "dog", "eel"]
    assert found.index.tolist() == [1, 0, 2, 0]
    assert found.targets().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_numbers_are_classes_in_ascending_order_with_short_names() -> None:
    assert labels([10, 9, 10, 100]).classes == ["9", "10", "100"]  # as words, 10 would come first
    found = labels([1.0, 0.0, 1 / 3, 2 / 3])
    assert found.classes == ["0", "0.333333", "0.666667", "1"]
    assert found.index.tolist() == [3, 0, 1, 2]


def test_numbers_that_look_alike_when_short_keep_all_digits() -> None:
    assert labels([0.1234561, 0.1234562]).classes == ["0.1234561", "0.1234562"]


def test_a_threshold_makes_two_classes_and_at_least_is_positive() -> None:
    found = labels([0.0, 1.0, 0.5, 1 / 3], column="probability", threshold=0.5)
    assert found.classes == ["probability below 0.5", "probability at least 0.5"]
    assert found.index.tolist() == [0, 1, 1, 0]


def test_an_empty_value_is_no_label() -> None:
    assert labels(["a", None, "b", ""]).index.tolist() == [0, -1, 1, -1]
    assert labels([0.2, None, math.nan, 0.8], threshold=0.5).index.tolist() == [0, -1, -1, 1]
    assert labels([3.0, math.nan, 1.0]).classes == ["1", "3"]


def test_targets_have_a_row_per_image_and_sum_to_one() -> None:
    targets = labels(["a", "b", "a"]).targets()
    assert targets.dtype == np.float32
    assert targets.sum(axis=1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("values", "keys", "message"),
    [
        (["a", "a"], {}, "the column class makes only the class a; it takes two"),
        ([None, ""], {}, "the column class makes no class; it takes two"),
        ([0.1, 0.2], {"column": "p", "threshold": 0.5}, "the column p makes only the class p below 0.5; it takes two"),
        ([7, 8], {"column": "p", "threshold": 0.5}, "the column p makes only the class p at least 0.5; it takes two"),
    ],
)
def test_fewer_than_two_classes_are_an_error(values: list[Any], keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        labels(values, **keys)
    assert str(error.value) == f"params.yaml: datasets.cells.label: {message}"


def test_a_threshold_for_words_is_an_error_that_shows_one() -> None:
    with pytest.raises(UserError) as error:
        labels(["a", "b", ""], threshold=0.5)
    assert str(error.value) == (
        "params.yaml: datasets.cells.label.threshold: the column class holds 'a', which is no number; leave the "
        "threshold out, or name a column of numbers"
    )


@pytest.mark.parametrize("keys", [{"threshold": 0.5}, {"threshold": [0.25, 0.5]}])
def test_a_word_among_numbers_is_an_unknown_label(keys: dict[str, Any]) -> None:
    found = labels(["0.1", "0.7", "n/a", "", "nan"], column="p", **keys)  # as a CSV file with a word in it is read
    assert found.index.tolist() == [0, 1, -1, -1, -1]
    assert found.wrong == {
        2: "unknown label: the column p holds 'n/a', which is no number",
        4: "unknown label: the column p holds 'nan', which is no number",
    }
    with pytest.raises(
        UserError, match=r"makes only the class p below 0\.\d+, and unknown label: .* holds 'n/a', which"
    ):
        labels(["0.1", "n/a"], column="p", **keys)


def test_several_thresholds_make_a_class_of_each_range_that_has_an_image() -> None:
    found = labels([0.0, 1.0, 0.5, None, 1 / 3, 7.0], column="p", threshold=[0.25, 0.5, 1])
    assert found.classes == ["p below 0.25", "p 0.25 to 0.5", "p 0.5 to 1", "p at least 1"]
    assert found.index.tolist() == [0, 3, 2, -1, 1, 3]
    found = labels([0.0, 0.6, 1.0], column="p", threshold=[0.25, 0.5, 1])
    assert found.classes == ["p below 0.25", "p 0.5 to 1", "p at least 1"]
    assert found.index.tolist() == [0, 1, 2]


def test_thresholds_that_do_not_rise_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"threshold: 0\.5, 0\.5, 1 do not rise"):
        Label(threshold=[0.5, 0.5, 1])


def test_a_column_of_probabilities_for_each_class_makes_soft_targets() -> None:
    columns = {"class": ["b", "a", "c"], "pa": [0.2, 1.0, None], "pb": [0.5, 0, 0.5], "pc": [0.3, 0, 0.5]}
    found = of_table(columns, soft={"c": "pc", "a": "pa", "b": "pb"})
    np.testing.assert_allclose(found.targets(), [[0.2, 0.5, 0.3], [1, 0, 0], [0, 0, 1]], rtol=1e-6)
    assert found.targets().dtype == np.float32
    rounded = of_table({**columns, "pa": [0.195, 1.0, None]}, soft={"a": "pa", "b": "pb", "c": "pc"})
    np.testing.assert_allclose(rounded.targets().sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("soft", "change", "message"),
    [
        ({"a": "pa", "b": "pb"}, {}, " names a, b; the classes are a, b, c"),
        ("pa", {}, " needs two classes, here are 3; name a column for each class"),
        (
            {"a": "pa", "b": "pb", "c": "pc"},
            {"pb": [0.7, 0.1, 0.2]},
            ": the probabilities of 0.png have the sum 1.2, and not 1",
        ),
        (
            {"a": "pa", "b": "pb", "c": "pc"},
            {"pb": [1.5, math.nan, None]},
            ": the column pb holds 1.5, which is no probability",
        ),
    ],
)
def test_probabilities_that_are_none_are_an_error(soft: Any, change: dict[str, list[Any]], message: str) -> None:
    columns = {"class": ["b", "a", "c"], "pa": [0.2, 1.0, 0.5], "pb": [0.5, 0, 0], "pc": [0.3, 0, 0.5], **change}
    with pytest.raises(UserError) as error:
        of_table(columns, soft=soft)
    assert str(error.value) == f"params.yaml: datasets.cells.label.soft{message}"


def test_a_row_whose_probabilities_are_none_is_an_unknown_label() -> None:
    columns = {"class": list("bacba"), "pa": ["0.2", "1", "x", "", "0.4"], "pb": [0.5, -1, 0.5, 0.5, 0.2]}
    columns |= {"pc": [0.3, 0.0, 0.5, 0.5, 0.2]}
    found = of_table(columns, soft={"c": "pc", "a": "pa", "b": "pb"})
    assert found.wrong == {
        1: "unknown label: the column pb holds -1.0, which is no probability",
        2: "unknown label: the column pa holds 'x', which is no probability",
        4: "unknown label: its probabilities have the sum 0.8, and not 1",
    }
    np.testing.assert_allclose(found.targets()[[0, 3]], [[0.2, 0.5, 0.3], [0, 1, 0]], rtol=1e-6)
    two = of_table({"class": list("abab"), "p": [0.2, 0.9, 1.2, None]}, soft="p")
    assert two.wrong == {2: "unknown label: the column p holds 1.2, which is no probability"}
    np.testing.assert_allclose(two.targets()[[0, 1, 3]], [[0.8, 0.2], [0.1, 0.9], [0, 1]], rtol=1e-6)


def test_several_columns_are_labels_of_which_an_image_may_have_several_or_none() -> None:
    columns = {"crack": [1, 0, 1, 0], "dust": ["yes", "no", "", "no"], "bent": [True, False, False, None]}
    found = of_table(columns, column=["crack", "dust", "bent"])
    assert found.classes == ["bent", "crack", "dust"]
    assert found.targets().tolist() == [[1, 1, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert found.counts == [1, 2, 1]
    assert (found.index >= 0).all()


def test_several_values_in_a_cell_are_labels() -> None:
    found = labels(["dust; crack", "crack", "", "sound ;", "crack;dust"], separator=";")
    assert found.classes == ["crack", "dust", "sound"]
    assert found.several is not None
    assert found.several.tolist() == [
        [True, True, False],
        [True, False, False],
        [False, False, False],
        [False, False, True],
        [True, True, False],
    ]
    assert found.index.tolist() == [found.index[0], found.index[1], -1, found.index[3], found.index[0]]


def test_a_threshold_makes_a_label_of_each_of_several_columns() -> None:
    found = of_table({"a": [0.1, 0.5, None], "b": [0.9, 0.2, None]}, column=["b", "a"], threshold=0.5)
    assert found.classes == ["a", "b"]
    assert found.targets()[:2].tolist() == [[0, 1], [1, 0]]
    assert found.index[2] == -1  # nothing is known of it


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        ({"a": [1, 0], "b": [2, 3]}, {"column": ["a", "b"]}, "the column b holds 2, which is neither 0 nor 1; name a"),
        ({"a": [1, 0], "b": ["x", ""]}, {"column": ["a", "b"]}, "the column b holds 'x', which is neither 0 nor 1"),
        ({"a": [1, 0], "b": ["x", "y"]}, {"column": ["a", "b"], "threshold": 1}, "the column b holds 'x', which is no"),
        ({"a": [1, 0], "b": [0, 0]}, {"column": ["a", "b"]}, "no image has the label b"),
        ({"a": [1, 1], "b": [1, 0]}, {"column": ["a", "b"]}, "every image has the label a"),
        ({"class": ["a", "a"]}, {"separator": ";"}, "the column class makes 1 labels; it takes two"),
    ],
)
def test_what_makes_no_labels_is_told(columns: dict[str, list[Any]], keys: dict[str, Any], message: str) -> None:
    if isinstance(keys.get("threshold"), int):
        keys = {**keys, "threshold": float(keys["threshold"])}
    with pytest.raises(UserError, match=message):
        of_table(columns, **keys)


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_cell_that_neither_says_yes_nor_no_is_an_unknown_label(threshold: float | None) -> None:
    columns = {"b": ["1", "0", "x", "1", "0"], "a": ["0", "1", "?", "", "y"]}
    found = of_table(columns, column=["b", "a"], threshold=threshold)
    assert found.classes == ["a", "b"]
    assert (found.index >= 0).tolist() == [True, True, False, True, False]
    what = "neither 0 nor 1" if threshold is None else "no number"
    assert found.wrong == {
        row: f"unknown label: the column a holds {cell!r}, which is {what}" for row, cell in ((2, "?"), (4, "y"))
    }


def test_weights_are_read_and_an_empty_one_is_one() -> None:
    for cells, expected in (([2.0, None, 0.5], [2, 1, 0.5]), ([3, 1], [3, 1]), ([None, None], [1, 1])):
        weights, wrong = read_weights(pa.table({"w": cells}), "w", "datasets.cells")
        assert (weights.tolist(), wrong) == (expected, {})


@pytest.mark.parametrize("cells", [[1.0, -1.0], [1.0, 0.0], [1.0, math.inf], ["1", "x"]])
def test_what_is_no_weight_is_told(cells: list[Any]) -> None:
    why = f"the column w holds {cells[1]!r}, which is no weight"
    weights, wrong = read_weights(pa.table({"w": cells}), "w", "datasets.cells")
    assert weights[0] == 1
    assert wrong == {1: why}
    with pytest.raises(UserError) as error:
        read_weights(pa.table({"w": [None, cells[1]]}, pa.schema({"w": pa.array(cells).type})), "w", "datasets.cells")
    assert str(error.value) == f"params.yaml: datasets.cells.weight: {why}"

"""Splits that the source brings: what they may say, and where they leak."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stages.cli import UserError
from stages.samples.parts import check_groups, leaks, read_parts


def test_parts_are_read_by_their_names() -> None:
    column = pa.chunked_array([["test", "train", None, "validation"]])
    assert read_parts(column, "split", "datasets.d")[0].tolist() == [2, 0, -1, 1]
    parts, unknown = read_parts(pa.chunked_array([["Testing", "TRAIN", "", "val"]]), "s", "datasets.d")
    assert (parts.tolist(), unknown) == ([2, 0, -1, 1], {})


def test_a_word_that_names_no_part_puts_its_image_in_none() -> None:
    parts, unknown = read_parts(pa.chunked_array([["train", "dev", "test"]]), "fold", "datasets.d")
    assert parts.tolist() == [0, -1, 2]
    assert unknown == {1: "in no part: the column fold holds 'dev'"}


@pytest.mark.parametrize("words", [["dev", "held out", ""], ["train", "dev", "train"], ["test", "dev"]])
def test_words_without_which_there_is_no_split_are_an_error_that_shows_one(words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read_parts(pa.chunked_array([words]), "fold", "datasets.d")
    assert str(error.value) == (
        "params.yaml: datasets.d.split.column: the column fold holds 'dev'; it may hold train, validation and test"
    )


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_missing_training_or_test_part_is_an_error(missing: str) -> None:
    values = [part for part in ("train", "validation", "test") if part != missing]
    with pytest.raises(UserError, match=f"the column split brings no {missing} part: leave split.column out"):
        read_parts(pa.chunked_array([values]), "split", "datasets.d")


def test_of_images_with_the_same_pixels_the_test_part_keeps_its_own() -> None:
    parts = np.array([0, 1, 2, 0, 0, 1, 0])
    found = leaks(parts, np.array([7, 7, 7, 3, 3, 5, 5]), "abcdefg".__getitem__)
    in_test, in_validation = "same pixels as c in the test part", "same pixels as f in the validation part"
    assert found == {0: in_test, 1: in_test, 6: in_validation}


def test_a_group_on_two_sides_is_an_error_that_names_group_parts_and_samples() -> None:
    parts = np.array([0, 0, 2, 2])
    names = ["p1", "p2", "p3", "p1"].__getitem__, "abcd".__getitem__
    check_groups(parts, np.array([0, 0, 2, 2]), *names, "patient", "datasets.d")
    with pytest.raises(UserError) as error:
        check_groups(parts, np.array([0, 1, 2, 0]), *names, "patient", "datasets.d")
    assert str(error.value) == (
        "params.yaml: datasets.d: the patient p1 is on two sides of the split that the source brings (a in train, d in "
        "test): leave out split.column, and groups are kept whole; or leave out group"
    )

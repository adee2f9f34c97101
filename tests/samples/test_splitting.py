"""Splits: nothing on two sides, proportions kept, every image tested equally often, the same seed the same split."""

from __future__ import annotations

import importlib.util
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.cli import UserError
from stages.params import Split
from stages.samples import splitting
from stages.samples.splitting import TEST, TRAIN, VALIDATION, first_alike, join, make_strata, split, split_as_brought
from stages.sources.elpv import infer_modules

Ints = NDArray[np.int64]
SHARES_AND_REPEATS = [(0.25, 1), (0.25, 4), (0.25, 8), (0.2, 5), (0.2, 10), (0.3, 10), (0.4, 5), (0.5, 2), (0.1, 10)]


def divide(units: Ints, labels: Ints, columns: tuple[Ints, ...] = (), **keys: Any) -> list[Ints]:
    classes = [f"class {number}" for number in range(int(labels.max()) + 1)]
    return split(units, make_strata(columns, labels), labels, classes, Split(**keys), "datasets.made_up")


def singles(count: int) -> Ints:
    return np.arange(count, dtype=np.int64)


@st.composite
def problems(draw: st.DrawFn, grouped: bool) -> tuple[Ints, Ints, Ints, dict[str, Any]]:
    """Units, labels, one further column, and the keys of a split."""
    chance = np.random.default_rng(draw(st.integers(0, 10**6)))
    count = draw(st.integers(60, 500))
    labels = np.minimum(chance.geometric(draw(st.sampled_from([0.2, 0.5])), count) - 1, draw(st.integers(1, 4)))
    groups = chance.integers(0, draw(st.integers(12, 60)), count)
    column = chance.integers(0, draw(st.integers(1, 4)), count)
    test, repeats = draw(st.sampled_from(SHARES_AND_REPEATS))
    keys = {"test": test, "repeats": repeats, "validation": draw(st.sampled_from([0.1, 0.15, 0.2]))}
    labels = np.unique(labels, return_inverse=True)[1]
    assume(labels.max() > 0)
    units = join(groups) if grouped else singles(count)
    return units, labels.astype(np.int64), column, {**keys, "seed": draw(st.integers(0, 99))}


@settings(max_examples=25, deadline=None)
@given(problems(grouped=True))
def test_no_unit_is_ever_on_two_sides(problem: tuple[Ints, Ints, Ints, dict[str, Any]]) -> None:
    units, labels, column, keys = problem
    try:
        parts = divide(units, labels, (column,), **keys)
    except UserError:
        assume(False)
    for part in parts:
        assert len(set(zip(units.tolist(), part.tolist(), strict=True))) == len(set(units.tolist()))


@settings(max_examples=25, deadline=None)
@given(st.booleans().flatmap(lambda grouped: problems(grouped=grouped)))
def test_every_sample_is_tested_equally_often(problem: tuple[Ints, Ints, Ints, dict[str, Any]]) -> None:
    units, labels, column, keys = problem
    assume(keys["repeats"] > 1)
    try:
        parts = divide(units, labels, (column,), **keys)
    except UserError:
        assume(False)
    times = sum((part == TEST).astype(int) for part in parts)
    assert set(np.asarray(times).tolist()) == {round(keys["test"] * keys["repeats"])}


@settings(max_examples=25, deadline=None)
@given(problems(grouped=False))
def test_without_groups_every_part_has_its_share_of_every_stratum(
    problem: tuple[Ints, Ints, Ints, dict[str, Any]],
) -> None:
    units, labels, column, keys = problem
    try:
        parts = divide(units, labels, (column,), **keys)
    except UserError:
        assume(False)
    cells = labels * (column.max() + 1) + column
    for part in parts:
        for code, share in ((TEST, keys["test"]), (VALIDATION, keys["validation"])):
            assert abs((part == code).sum() - share * len(part)) <= 2
            for cell in np.unique(cells):
                assert abs(((part == code) & (cells == cell)).sum() - share * (cells == cell).sum()) <= 2


@settings(max_examples=25, deadline=None)
@given(st.booleans().flatmap(lambda grouped: problems(grouped=grouped)))
def test_every_part_holds_every_class(problem: tuple[Ints, Ints, Ints, dict[str, Any]]) -> None:
    units, labels, column, keys = problem
    try:
        parts = divide(units, labels, (column,), **keys)
    except UserError as error:
        assert "bring more of it" in str(error)  # noqa: PT017  (either outcome is right, but no third)
        return
    for part in parts:
        assert len(set(zip(part.tolist(), labels.tolist(), strict=True))) == 3 * (labels.max() + 1)


@settings(max_examples=15, deadline=None)
@given(st.booleans().flatmap(lambda grouped: problems(grouped=grouped)))
def test_same_seed_same_split(problem: tuple[Ints, Ints, Ints, dict[str, Any]]) -> None:
    units, labels, column, keys = problem
    try:
        first, again = (divide(units, labels, (column,), **keys) for _ in range(2))
    except UserError:
        assume(False)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("grouped", [False, True])
def test_another_seed_another_split(grouped: bool) -> None:
    labels = np.tile([0, 1], 150).astype(np.int64)
    units = join(np.arange(300) // 10) if grouped else singles(300)
    tested = {tuple(np.flatnonzero(divide(units, labels, seed=seed)[0] == TEST)) for seed in range(5)}
    assert len(tested) == 5


def test_four_quarters_are_exact_where_the_numbers_allow() -> None:
    labels = np.repeat([0, 1, 2], [400, 200, 40]).astype(np.int64)
    for part in divide(singles(640), labels, test=0.25, validation=0.15, repeats=4):
        assert np.bincount(labels[part == TEST]).tolist() == [100, 50, 10]
        assert np.bincount(labels[part == VALIDATION]).tolist() == [60, 30, 6]
        assert np.bincount(labels[part == TRAIN]).tolist() == [240, 120, 24]


def test_the_second_round_of_repeats_is_another_partition() -> None:
    parts = divide(singles(400), np.tile([0, 1], 200).astype(np.int64), test=0.25, repeats=8)
    first, second = ({tuple(np.flatnonzero(part == TEST)) for part in parts[at : at + 4]} for at in (0, 4))
    assert not first & second
    shared = len(set(min(first)) & set(min(second)))
    assert 10 <= shared <= 40  # of 100; 25 by chance


def test_validation_differs_from_repeat_to_repeat_and_is_not_taken_from_test() -> None:
    parts = divide(singles(400), np.tile([0, 1], 200).astype(np.int64), test=0.25, validation=0.15, repeats=4)
    assert [np.bincount(part).tolist() for part in parts] == [[240, 60, 100]] * 4
    assert len({tuple(np.flatnonzero(part == VALIDATION)) for part in parts}) == 4


def cell_table() -> tuple[Ints, Ints, Ints, list[str]]:
    """Probability and type of the real cells, numbered; defective or not; and their modules."""
    spec = importlib.util.find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    rows = [line.split() for line in (Path(spec.origin).parent / "data/labels.csv").read_text().splitlines()]
    probability = np.array([round(3 * float(row[1])) for row in rows], np.int64)
    cell_type = np.array([row[2] == "poly" for row in rows], np.int64)
    return probability, cell_type, (probability >= 2).astype(np.int64), infer_modules([row[2] for row in rows])


def test_modules_of_solar_cells_stay_whole_and_their_parts_come_out_alike() -> None:
    probability, cell_type, labels, modules = cell_table()
    units = join(np.unique(modules, return_inverse=True)[1])
    parts = divide(units, labels, (probability, cell_type), test=0.25, validation=0.15, repeats=4)
    for part in parts:
        sides = set(zip(modules, part.tolist(), strict=True))
        assert len(sides) == 44
        assert Counter(code for _, code in sides) == {TRAIN: 26, VALIDATION: 7, TEST: 11}
        for code, share in ((TEST, 0.25), (VALIDATION, 0.15), (TRAIN, 0.6)):
            assert (part == code).mean() == pytest.approx(share, abs=0.015)  # a module is 0.023 of all
            assert labels[part == code].mean() == pytest.approx(labels.mean(), abs=0.02)  # modules: from 0 to 0.93
            assert cell_type[part == code].mean() == pytest.approx(cell_type.mean(), abs=0.06)


def test_the_published_split_of_solar_cells_is_stratified_to_the_cell() -> None:
    probability, cell_type, labels, _ = cell_table()
    for part in divide(singles(2624), labels, (probability, cell_type), test=0.25, validation=0.15, repeats=4):
        assert (part == TEST).sum() == 656
        for cell in {(p, t) for p in range(4) for t in range(2)}:
            of_cell = (probability == cell[0]) & (cell_type == cell[1])
            assert abs((of_cell & (part == TEST)).sum() - 0.25 * of_cell.sum()) < 1


def test_groups_that_an_image_joins_are_one_unit() -> None:
    groups = np.array([8, 8, 2, 2, 3, -1, -1, 4])
    pixels = np.array([1, 2, 2, 3, 4, 5, 5, 6])  # two groups have a picture in common
    assert join(groups, pixels).tolist() == [0, 0, 0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize("seed", range(20))
def test_units_are_the_connected_parts_whatever_the_numbers(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "ROWS_AT_ONCE", 7)
    chance = np.random.default_rng(seed)
    count = int(chance.integers(1, 60))
    keys = [chance.integers(-1, int(chance.integers(1, 60)), count) for _ in range(int(chance.integers(1, 4)))]
    keys[-1] = keys[-1] * int(chance.integers(1, 10**12))  # far apart: those below 0 stay so
    unit = list(range(count))
    for key in keys:
        for one, other in combinations(range(count), 2):
            if key[one] == key[other] >= 0 and unit[one] != unit[other]:
                low, high = sorted((unit[one], unit[other]))
                unit = [low if number == high else number for number in unit]
    in_order = {number: at for at, number in enumerate(dict.fromkeys(unit))}
    assert join(*keys).tolist() == [in_order[number] for number in unit]
    assert first_alike(keys[-1]).tolist() == [keys[-1].tolist().index(number) for number in keys[-1]]


def test_a_split_of_many_samples_takes_little_memory_of_each() -> None:
    """A few numbers of eight bytes: tables of samples by units, cells and classes took half as much again to twice."""
    count = 200_000
    chance = np.random.default_rng(0)
    labels, kind, pictures = chance.integers(0, 10, count), chance.integers(0, 5, count), np.arange(count)

    def peak(call: Callable[[], Any], most: int) -> Any:
        tracemalloc.start()
        try:
            result = call()
            assert tracemalloc.get_traced_memory()[1] / count < most
            return result
        finally:
            tracemalloc.stop()

    units = peak(lambda: join(pictures, pictures), 60)
    strata = peak(lambda: make_strata((kind,), labels), 40)
    peak(lambda: split(units, strata, labels, [str(c) for c in range(10)], Split(test=0.25), "datasets.many"), 100)


def test_images_without_group_join_nothing() -> None:
    assert join(np.array([-1, -1, 5, 5])).tolist() == [0, 1, 2, 2]


def test_duplicates_among_single_images_stay_together_and_shares_are_kept() -> None:
    chance = np.random.default_rng(0)
    labels = np.tile([0, 1], 300).astype(np.int64)
    pixels = chance.integers(0, 2000, 600).tolist()  # some dozens twice, a few three times
    units = join(np.array(pixels))
    assert len(set(pixels)) < 560
    for part in divide(units, labels, test=0.25, validation=0.15, repeats=4):
        assert len(set(zip(pixels, part.tolist(), strict=True))) == len(set(pixels))
        assert abs((part == TEST).sum() - 150) <= 2
        assert abs(((part == TEST) & (labels == 1)).sum() - 75) <= 2


def test_one_huge_group_does_not_take_the_other_parts_with_it() -> None:
    units = join(np.concatenate([np.full(300, 99), np.arange(300) // 10]))
    labels = np.tile([0, 1], 300).astype(np.int64)
    part = divide(units, labels, test=0.25, validation=0.15)[0]
    assert np.bincount(part).tolist() == [360, 90, 150]
    assert part[0] == TRAIN


@pytest.mark.parametrize(
    ("units", "keys", "count", "least"),
    [
        (singles(102), {"test": 0.25, "repeats": 4}, "2 samples", 4),
        (join(np.append(np.arange(100) // 2, [99, 99])), {}, "2 samples in 1 group", 3),
        (singles(101), {"test": 0.1, "repeats": 10}, "1 sample", 10),
    ],
)
def test_a_rare_class_is_an_error_that_names_it_and_its_count(
    units: Ints, keys: dict[str, Any], count: str, least: int
) -> None:
    labels = np.array([0, 1] * 50 + [2] * (len(units) - 100), np.int64)
    with pytest.raises(UserError) as error:
        divide(units, labels, **keys)
    assert str(error.value) == (
        f"params.yaml: datasets.made_up: the class class 2 has {count}; to have some in every part it takes {least}: "
        "bring more of it, leave it out, or change the split"
    )


def brought(parts: Ints, labels: Ints, **keys: Any) -> Ints:
    classes = [f"class {number}" for number in range(int(labels.max()) + 1)]
    strata = make_strata((), labels)
    (part,) = split_as_brought(parts, singles(len(parts)), strata, labels, classes, Split(column="split", **keys), "d")
    return part


def test_a_split_that_the_source_brings_is_used_as_it_is() -> None:
    parts = np.random.default_rng(0).permutation(np.repeat([TRAIN, VALIDATION, TEST], [60, 20, 20])).astype(np.int64)
    assert (brought(parts, np.tile([0, 1], 50).astype(np.int64)) == parts).all()


def test_a_missing_validation_part_is_drawn_from_training() -> None:
    parts = np.repeat([TRAIN, TEST], [80, 20]).astype(np.int64)
    labels = np.tile([0, 1], 50).astype(np.int64)
    part = brought(parts, labels, validation=0.2)
    assert ((part == TEST) == (parts == TEST)).all()
    assert np.bincount(part).tolist() == [60, 20, 20]
    assert np.bincount(labels[part == VALIDATION]).tolist() == [10, 10]


def test_a_validation_part_that_leaves_nothing_to_train_on_is_an_error() -> None:
    parts = np.repeat([TRAIN, TEST], [10, 90]).astype(np.int64)
    with pytest.raises(UserError, match=r"d\.split\.validation is 0\.15 of 100 samples: that leaves nothing of the 10"):
        brought(parts, np.tile([0, 1], 50).astype(np.int64))


def test_a_brought_part_that_lacks_a_class_is_an_error_that_names_both() -> None:
    parts = np.repeat([TRAIN, VALIDATION, TEST], [60, 20, 20]).astype(np.int64)
    labels = np.repeat([0, 1], [70, 30]).astype(np.int64)
    with pytest.raises(
        UserError, match="the train part of repeat 0 has nothing of the class class 1, which has 30 sam"
    ):
        brought(parts, labels)


@pytest.mark.parametrize("grouped", [False, True])
def test_each_of_several_labels_has_its_share_in_every_part(grouped: bool) -> None:
    chance = np.random.default_rng(0)
    labels = (chance.random((1200, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.03]).astype(np.int64)
    labels[:, 1] |= labels[:, 0] & (chance.random(1200) < 0.5)  # some come together
    units = join(np.arange(1200) // 6) if grouped else singles(1200)
    classes = [f"label {number}" for number in range(6)]
    params = Split(test=0.25, validation=0.15, repeats=4)
    parts = split(units, make_strata((), labels), labels, classes, params, "datasets.made_up")
    for part in parts:
        for number, share in ((TRAIN, 0.6), (VALIDATION, 0.15), (TEST, 0.25)):
            mine = part == number
            assert abs(mine.mean() - share) < 0.02
            wanted = labels.sum(axis=0) * share
            assert (np.abs(labels[mine].sum(axis=0) - wanted) <= (2 if not grouped else 3) + 0.05 * wanted).all()


def test_a_rare_one_of_several_labels_is_an_error_that_names_it() -> None:
    labels = np.zeros((40, 2), np.int64)
    labels[::2, 0], labels[:2, 1] = 1, 1
    with pytest.raises(UserError, match="the class b has 2 samples; to have some in every part it takes 3"):
        split(singles(40), make_strata((), labels), labels, ["a", "b"], Split(test=0.25), "datasets.made_up")

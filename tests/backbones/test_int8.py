"""precision: int8: near to what float32 gives, reproducible, and refused where it would be wrong or of no use."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import extract as extract_module
from stages.backbones import engines, int8
from stages.backbones.backbone import Backbone
from stages.backbones.engines import calibrated, open_engine
from stages.cache import all_uses, held
from stages.cli import UserError
from stages.evaluate import evaluate
from stages.extract import extract
from stages.fetch import fetch
from stages.files import hash_file
from stages.finetune import finetune
from stages.params import Features, read_params
from stages.predict import Predictor, model_folder
from stages.prepare import prepare
from stages.sources._raw import Found, write_images
from tests.backbones.conftest import cells
from tests.conftest import cell_files
from tests.test_predict import make_photos, stored

SIZE = 96
LAYERS = ["blocks.3", "blocks.5", "pooled"]


def takes_int8() -> bool:
    try:
        int8.check_processor()
    except UserError:
        return False
    return True


needs_processor = pytest.mark.skipif(not takes_int8(), reason="this processor has no products of eight bits")


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRANSFER_ENGINE", raising=False)
    monkeypatch.setenv("TRANSFER_DEVICE", "cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


def features(**keys: Any) -> Features:
    entry = {"images": "cells", "backbone": "raw/lite0", "image_size": SIZE, "precision": "int8", "layers": LAYERS}
    return Features.model_validate({**entry, **keys})


def images(count: int, channels: int) -> list[dict[int, np.ndarray]]:
    return [{SIZE: image} for image in cells(count, SIZE, channels)]


@needs_processor
@pytest.mark.parametrize("channels", [1, 3])
def test_real_cells_come_out_nearly_as_in_float32(channels: int, lite0: Backbone, cache: Path) -> None:
    backbone = calibrated(lite0, features(), images(96, 1), cache)  # on grey cells alone
    opened = open_engine(backbone, features(), cache)
    assert opened.identity["precision"] == "int8"
    pixels = cells(40, SIZE, channels)
    found, exact = opened(pixels), open_engine(lite0, features(precision="float32"), cache)(pixels)
    for name, wanted in exact.items():
        varies = wanted.std(0) > 0.05 * wanted.std(0).max()
        alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(found[name].T[varies], wanted.T[varies], strict=True)]
        assert np.median(alike) > 0.8, name
        assert not np.array_equal(found[name], wanted)
    again = open_engine(backbone, features(), cache)(pixels[:7])
    assert all(np.array_equal(again[name], found[name][:7]) for name in LAYERS)


@needs_processor
def test_weights_are_stored_in_eight_bits_each_channel_with_a_scale_of_its_own(lite0: Backbone, tmp_path: Path) -> None:
    import onnx

    backbone = calibrated(lite0, features(layers=[]), images(16, 3), tmp_path)
    exact, quantised = sorted(tmp_path.glob("*.onnx"), key=lambda path: -path.stat().st_size)
    assert quantised.stat().st_size < 0.35 * exact.stat().st_size
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(quantised).graph.initializer}
    weights = {name: array for name, array in tensors.items() if array.dtype == np.int8 and array.ndim == 4}
    original = [p for p in lite0.network.parameters() if p.ndim == 4]
    assert sorted(w.size for w in weights.values()) == sorted(p.numel() for p in original)
    scales = {name: tensors[name.replace("_quantized", "_scale")] for name in weights}
    assert all(len(np.unique(scales[name])) > 1 for name in weights)
    assert backbone.ranges is not None


def test_ranges_end_at_one_of_few_steps() -> None:
    ends = [int8._rounded_up(end) for end in (-1.0, 0.0, 6.0, 5.99, 4.3, 4.2, 6.01, 12.1)]
    np.testing.assert_allclose(ends, [0, 0, 6, 6, 6, 6 / 2**0.5, 6 * 2**0.5, 12 * 2**0.5], rtol=1e-12)


def test_error_is_told_against_the_spread_over_images() -> None:
    wanted = np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 3.0]], np.float32)  # spread 1, 0 and 1
    assert int8.relative_error(wanted + np.array([[0.5, 9.0, 0.3]], np.float32), wanted) == pytest.approx(0.4)
    assert int8.relative_error(wanted, wanted) == 0


@needs_processor
def test_ranges_hold_for_grey_and_coloured_images_together(lite0: Backbone, cache: Path) -> None:
    grey, colour = images(12, 1), images(12, 3)
    both, *alone = (calibrated(lite0, features(), some, cache).ranges for some in (grey + colour, grey, colour))
    assert both is not None
    assert list(both) == [str(SIZE)]
    for ranges in alone:
        assert ranges is not None
        assert ranges != both
        for name, (low, high) in ranges[str(SIZE)].items():
            assert both[str(SIZE)][name][0] <= low <= 0 <= high <= both[str(SIZE)][name][1]


@needs_processor
def test_a_network_that_does_not_take_it_is_refused_in_one_line(
    lite0: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "_rounded_up", lambda end: max(end, 0.0) / 50)  # as where a few numbers reach far
    with pytest.raises(
        UserError, match=r"^tf_efficientnet_lite0 does not take precision: int8: at 96 pixels the error"
    ):
        calibrated(lite0, features(), images(8, 1), cache)


@pytest.mark.parametrize(
    ("machine", "flags", "taken"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, True),
        ("x86_64", {"avx2"}, False),
        ("x86_64", set(), True),
        ("aarch64", {"asimd"}, False),
        ("aarch64", {"asimd", "asimddp"}, True),
        ("arm64", set(), True),
    ],
)
def test_a_processor_without_the_instructions_is_refused_in_one_line(
    machine: str, flags: set[str], taken: bool, lite0: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(int8, "_processor_flags", lambda: flags)
    if taken:
        open_engine(lite0, features())
    else:
        with pytest.raises(UserError, match=r"^precision: int8 needs a processor that has .*: leave precision out"):
            open_engine(lite0, features())


def test_torch_does_not_run_it(lite0: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFER_ENGINE", "torch")
    with pytest.raises(UserError, match=r"^precision: int8 runs by ONNX Runtime on a CPU alone"):
        open_engine(lite0, features())


def test_float32_is_written_nowhere_so_that_fingerprints_stay() -> None:
    assert "precision" not in features(precision="float32").model_dump()
    assert features().model_dump()["precision"] == "int8"
    assert Features.model_validate(features().model_dump()) == features()
    with pytest.raises(ValueError, match="no network is run that could be int8"):
        features(cut="image", layers=[])


@pytest.fixture
def project(
    tmp_path: Path, fetched: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[Path]], Path]:
    """A project with Lite0; call it with image files to give it those."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extract_module, "CALIBRATED_ON", 10)
    shutil.copytree(fetched("package", "tf_efficientnet_lite0"), tmp_path / "data/raw/lite0")

    def put(files: list[Path]) -> Path:
        folder = tmp_path / "data/raw/cells"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = [Found(path.name, path, {"size": path.stat().st_size}) for path in files]
        write_images(folder, found, source="test", origin="a test", licence="none")
        return tmp_path

    return put


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@needs_processor
def test_bytes_hang_on_images_alone_and_a_new_image_computes_itself_alone(
    project: Callable[[list[Path]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_order = sorted(cell_files(24), key=hash_file)  # the lowest hashes are calibrated on
    entry = features(layers=[])
    folder = project(in_order[:-1])
    extract("fast", entry)
    first = contents(folder / "data/features/fast")
    (kept,) = (folder / "cache/ranges").glob("*.json")
    whole = kept.read_bytes()
    for damaged in (whole[:-20], whole.replace(b"6.0", b"7.0", 1), None):
        shutil.rmtree(folder / "cache/activations")
        kept.write_bytes(damaged) if damaged else kept.unlink()
        extract("fast", entry)
        assert contents(folder / "data/features/fast") == first
        assert kept.read_bytes() == whole
    project(in_order)
    seen = []
    real = engines._Int8.__call__
    monkeypatch.setattr(engines._Int8, "__call__", lambda self, some: seen.append(len(some)) or real(self, some))
    monkeypatch.setattr(extract_module, "calibrated", lambda *_: pytest.fail("measured again"))
    extract("fast", entry)
    assert sum(seen) == 1


PARAMS = """\
downloads:
  photos: {source: folder, path: photos}
  lite0: {source: weights, path: params.yaml, network: tf_efficientnet_lite0, origin: package}
datasets:
  cells: {images: photos, split: {test: 0.5, validation: 0.25, repeats: 1}}
features:
  fast: {images: photos, backbone: raw/lite0, image_size: 64, precision: int8}
  exact: {images: photos, backbone: raw/lite0, image_size: 64}
runs:
  probe: {dataset: cells, features: fast, transfer: {kind: logistic, C: 0.1}}
compare: {}
"""


@needs_processor
def test_a_model_on_int8_features_predicts_what_evaluate_stored_and_the_cache_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    make_photos(tmp_path / "photos")
    (tmp_path / "params.yaml").write_text(PARAMS)
    params = read_params()
    for stage, level, names in (
        *[(fetch, "downloads", ("photos", "lite0")), (prepare, "datasets", ("cells",))],
        *[(extract, "features", ("fast", "exact")), (finetune, "runs", ("probe",)), (evaluate, "runs", ("probe",))],
    ):
        for name in names:
            stage(name, params.entry(level, name))
    expected = stored(tmp_path, "probe")
    found = Predictor(model_folder("probe")).predict([Path(path).read_bytes() for path in expected])
    np.testing.assert_allclose(np.array(found), np.array(list(expected.values())), rtol=0, atol=1e-5)
    used = {row.features[0]: row.unused for row in held(all_uses()[0]) if row.features}
    assert used == {"fast": [], "exact": []}

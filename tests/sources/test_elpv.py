"""The packaged solar cells: counts of the papers, the package's own labels, and the inferred modules."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest

from stages.cli import UserError
from stages.files import RAW
from stages.sources import elpv
from stages.sources._raw import Images, read_images


@pytest.fixture(scope="module")
def cells_download(tmp_path_factory: pytest.TempPathFactory) -> Images:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elpv"))
        folder = RAW / "elpv"
        folder.mkdir(parents=True)
        elpv.fetch(elpv.Params(source="elpv", path="requirements.lock"), folder.resolve())
        return read_images("elpv")


def test_counts_are_those_of_the_papers(cells_download: Images) -> None:
    probability, cell_type = (cells_download.table[name].to_pylist() for name in ("probability", "type"))
    assert len(cells_download) == 2624
    assert sorted(Counter(probability).items()) == [(0.0, 1508), (1 / 3, 295), (2 / 3, 106), (1.0, 715)]
    assert Counter(cell_type) == {"mono": 1074, "poly": 1550}
    assert len(set(cells_download.image_hashes)) == 2624


def test_labels_are_those_that_the_package_itself_reads(cells_download: Images, cells: list[Path]) -> None:
    table = np.genfromtxt(cells[0].parents[1] / "labels.csv", dtype=None, names=["path", "probability", "type"])
    found = zip(*(cells_download.table[name].to_pylist() for name in ("sample", "probability", "type")), strict=True)
    assert sorted(found) == sorted((str(path), float(p), str(t)) for path, p, t in table)


def test_there_are_18_mono_and_26_poly_modules_as_in_the_papers(cells_download: Images) -> None:
    sizes = Counter(cells_download.table["module"].to_pylist())
    assert Counter(name[:4] for name in sizes) == {"mono": 18, "poly": 26}
    assert all(48 <= size <= 72 for size in sizes.values())  # the papers speak of 60 or 72 cells, some cut off
    assert sorted(sizes)[:2] == ["mono-01", "mono-02"]


def test_modules_are_runs_of_the_label_table_and_of_one_type(cells_download: Images) -> None:
    modules, types = (cells_download.table[name].to_pylist() for name in ("module", "type"))
    runs = [name for name, _ in groupby(modules)]  # samples are sorted as the table is
    assert len(runs) == len(set(runs)) == 44
    assert all(module[:4] == cell_type for module, cell_type in zip(modules, types, strict=True))
    assert [len(list(run)) for _, run in groupby(types)] == [60, 300, 180, 360, 714, 530, 72, 180, 48, 180]


@pytest.mark.parametrize(
    ("cells", "sizes"), [(60, [60]), (48, [48]), (72, [72]), (10, [10]), (180, [60] * 3), (530, [59] * 8 + [58])]
)
def test_a_run_is_cut_into_equal_blocks_of_about_60(cells: int, sizes: list[int]) -> None:
    assert [len(list(run)) for _, run in groupby(elpv.infer_modules(["mono"] * cells))] == sizes


def test_the_modules_of_a_type_are_counted_on_from_run_to_run() -> None:
    modules = elpv.infer_modules(["mono"] * 60 + ["poly"] * 120 + ["mono"] * 60)
    assert [name for name, _ in groupby(modules)] == ["mono-01", "poly-01", "poly-02", "mono-02"]


def test_record_names_licence_origin_and_that_borders_are_inferred(cells_download: Images) -> None:
    assert cells_download.facts["licence"] == "CC BY-NC-SA 4.0"
    assert cells_download.facts["origin"].startswith("package elpv-dataset 1.")
    assert "inferred" in cells_download.facts["notes"][0]


def test_a_damaged_package_is_an_error_of_one_line(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "labels.csv").write_text("images/cell0001.png  1.0\n")
    monkeypatch.setattr(elpv, "_package_data", lambda: work)
    with pytest.raises(UserError, match=r"labels\.csv: .*the package elpv-dataset is damaged"):
        elpv.fetch(elpv.Params(source="elpv", path="requirements.lock"), work)


def test_a_missing_package_is_an_error_that_says_what_to_do(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elpv.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="elpv-dataset is not installed: run `make install`"):
        elpv.fetch(elpv.Params(source="elpv", path="requirements.lock"), work)

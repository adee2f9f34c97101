"""The ELPV benchmark: 2,624 electroluminescence images of solar cells, from the Python package `elpv-dataset`.

Columns: `probability` of a defect (0, 1/3, 2/3 or 1), `type` of the cell (mono, poly) and `module`, the photovoltaic
module that a cell was cut from. Cells of one module look alike, so a split that tears modules apart flatters every
method (see docs). The package does not name the modules: the rows of its label table come in the order of the
photographed modules, and the borders are inferred from that, 18 mono and 26 poly modules of about 60 cells, as many as
the papers count.

Buerhop-Lutz et al., "A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery",
EU PVSEC 2018; Deitsch et al., "Segmentation of photovoltaic module cells in uncalibrated electroluminescence images",
Machine Vision and Applications 2021. Licence CC BY-NC-SA 4.0: not for commercial use.

    downloads: {elpv: {source: elpv, path: requirements.lock}}
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from stages.cli import UserError
from stages.params import Download
from stages.sources._raw import Found, write_images

CELLS_IN_A_MODULE = 60


class Params(Download):
    """Keys of the packaged solar cells."""

    source: Literal["elpv"] = Field(description="the ELPV solar cells from the package elpv-dataset")


def fetch(params: Params, folder: Path) -> None:
    """Write the cells into a download's folder; raises UserError when the package is missing or damaged."""
    data = _package_data()
    rows = _label_table(data / "labels.csv")
    modules = infer_modules([cell_type for _, _, cell_type in rows])
    found = [
        Found(sample, data / sample, {"probability": probability, "type": cell_type, "module": module})
        for (sample, probability, cell_type), module in zip(rows, modules, strict=True)
    ]
    write_images(
        folder,
        found,
        source=params.source,
        origin=f"package elpv-dataset {importlib.metadata.version('elpv-dataset')}",
        licence="CC BY-NC-SA 4.0",
        notes=["the borders of the modules are inferred from the order of the label table; they are not published"],
    )


def infer_modules(cell_types: Sequence[str]) -> list[str]:
    """Return a module's name for each cell, from the cells' types in the order of the label table.

    Each run of one type is cut into equal blocks (numpy.array_split), as many as come nearest to 60 cells a block, and
    the blocks of a type are numbered: mono-01, mono-02, ...
    """
    modules: list[str] = []
    numbers: Counter[str] = Counter()
    for cell_type, run in groupby(cell_types):
        cells = len(list(run))
        for block in np.array_split(np.arange(cells), max(1, round(cells / CELLS_IN_A_MODULE))):
            numbers[cell_type] += 1
            modules += [f"{cell_type}-{numbers[cell_type]:02d}"] * len(block)
    return modules


def _package_data() -> Path:
    """Find the package's data folder without importing the package, which would load libraries of its own."""
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package elpv-dataset is not installed: run `make install`")
    return Path(spec.submodule_search_locations[0]) / "data"


def _label_table(path: Path) -> list[tuple[str, float, str]]:
    """Read (name, probability, type) of each cell: three words a line."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        rows = [(sample, float(probability), cell_type) for sample, probability, cell_type in map(str.split, lines)]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; the package elpv-dataset is damaged, install it again") from None
    return rows

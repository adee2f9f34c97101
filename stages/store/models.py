"""A trained model on disk: plain arrays and plain facts, so that reading one runs no code from the file.

    model.json          the kind of transfer, the classes, what was chosen: all that is no array
    model.safetensors   the arrays
    history.csv         a row per epoch, where the training has epochs

Both files have the same bytes for the same model. (skops, which keeps scikit-learn's own objects, stamps the time into
its archives; and a model read from arrays predicts without importing scikit-learn.)
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stages.cli import UserError
from stages.files import damaged, new_file, read_json, write_json
from stages.params import kind_module, kinds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Model(Protocol):
    """A trained transfer."""

    @property
    def chosen(self) -> dict[str, Any]:
        """The values that were chosen, or the only ones there were."""

    @property
    def history(self) -> list[dict[str, float]]:
        """A row per epoch; empty where the training has no epochs."""

    @property
    def trained_parameters(self) -> int:
        """How many numbers the training has set."""

    def predict_proba(self, activations: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the probabilities (n, classes) of samples given by their activations (n, views, *shape)."""

    def save(self, folder: Path) -> None:
        """Write the model into a folder, by `write_arrays`."""


def write_model(folder: Path, model: Model) -> None:
    """Write a model, and its history where it has one, into a new folder."""
    folder.mkdir(parents=True)
    model.save(folder)
    if model.history:
        with new_file(folder / "history.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(model.history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(model.history)


def write_arrays(folder: Path, facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write what a model is made of. The facts name its `kind`, by whose file it is read again."""
    import numpy as np
    from safetensors.numpy import save_file

    write_json(folder / "model.json", facts)
    with new_file(folder / "model.safetensors") as path:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)


def read_model(folder: Path) -> Model:
    """Read a model; raises UserError when it is not there, is not whole, or is of a kind that is not known here."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    facts, path = read_json(folder / "model.json"), folder / "model.safetensors"
    if facts["kind"] not in kinds("transfers"):
        raise UserError(f"{folder / 'model.json'} is of kind {facts['kind']}, which is no file in stages/transfers/")
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from None
    load = kind_module("transfers", facts["kind"]).load
    if "each" in facts:
        from stages.transfers.shared.several import load_each

        return load_each(load, facts, arrays)
    model: Model = load(facts, arrays)
    return model

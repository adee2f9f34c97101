"""The model as MLflow loads and serves it: images in, class and probabilities out.

MLflow stores this file, a copy of stages/ and the folder of one repeat's model, and runs the file to load the model:
nothing is pickled, and the repository is not needed. One row in, one row out:

    image : a PNG, JPEG or other image file's bytes, or the same as base64 text
    class, p_<class> ... : the most probable class, and the probability of each; of several labels `class` holds those
        of probability one half or more, with a semicolon between
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel

if TYPE_CHECKING:
    from stages.predict import Predictor


class ServedModel(PythonModel):
    """One repeat's model with the frozen part below it."""

    def load_context(self, context: Any) -> None:
        """Open the model's folder; the network itself is built with the first image."""
        from stages.predict import Predictor

        # Exported networks are kept in the pipeline's cache, which lies in a project's folder; here there is none.
        os.environ.setdefault("TRANSFER_CACHE", str(_cache_folder()))
        self._predictor: Predictor = Predictor(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """Return a row with class and probabilities for each row; an MlflowException names an image that is none."""
        from stages.predict import BETWEEN
        from stages.samples.decoding import BadImage

        columns = self._predictor.columns
        contents = [_bytes(value, row) for row, value in enumerate(model_input["image"])]
        rows = []
        for row, result in enumerate(self._predictor.predict(contents)):
            if isinstance(result, BadImage):
                raise _refused(row, str(result))
            names = BETWEEN.join(self._predictor.names(result))
            rows.append({"class": names, **dict(zip(columns, result, strict=True))})
        return pd.DataFrame(rows, columns=["class", *columns])


def _cache_folder() -> Path:
    """Return a folder of the user's to keep files in, or where there is none one that goes with the machine."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "transfer-pipeline"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return Path(tempfile.mkdtemp(prefix="transfer-pipeline-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="transfer-pipeline-"))


def _bytes(value: Any, row: int) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _refused(row, "neither bytes nor base64 text") from None


def _refused(row: int, reason: str) -> MlflowException:
    return MlflowException(f"image {row} cannot be read: {reason}", error_code=INVALID_PARAMETER_VALUE)


set_model(ServedModel())

"""A result's model as an MLflow model: built from an entry of the outbox, without pickle and without local paths."""

from __future__ import annotations

import importlib.metadata
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.tracking.outbox import CODE, MODEL

if TYPE_CHECKING:
    from mlflow import MlflowClient

NAME = "model"
REQUIREMENTS = (
    "mlflow",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "pi-heif",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "scipy",
    "timm",
    "torch",
    "torchvision",
)
"""What the served model imports itself, whatever its kind, device or engine; tests/test_predict.py holds it to that."""


def log_model(client: MlflowClient, experiment: str, run: str, entry: Path, result: Mapping[str, Any]) -> str:
    """Log the model of an entry as an output of a run, and return its id.

    It is saved and then uploaded, not logged in one call: log_model would first load it and predict with it, in seconds
    for each result, and would leave in it where the outbox was.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    model = client.create_logged_model(
        experiment,
        NAME,
        source_run_id=run,
        params=result["params"],
        tags={"names": result["names"], "fingerprint": result["fingerprint"]},
        model_type="classifier",
    )
    client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])
    facts = Model(artifact_path=NAME, run_id=run, model_uuid=model.model_id, model_id=model.model_id)
    with TemporaryDirectory() as folder:
        path = Path(folder) / NAME
        save_model(path, entry, result["classes"], facts)
        client.log_model_artifacts(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def save_model(path: Path, entry: Path, classes: list[str], facts: Any) -> None:
    """Write the MLflow model of an entry to a folder. `facts` is the mlflow.models.Model that becomes its MLmodel."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    outputs: list[ColSpec | TensorSpec] = [
        ColSpec("string", "class"),
        *(ColSpec("double", f"p_{name}") for name in classes),
    ]
    mlflow.pyfunc.save_model(
        str(path),
        python_model=str(entry / CODE / "stages" / "tracking" / "served_model.py"),
        artifacts={"model": str(entry / MODEL)},
        code_paths=[str(entry / CODE / "stages")],
        signature=ModelSignature(Schema([ColSpec("binary", "image")]), Schema(outputs)),
        input_example=pd.DataFrame({"image": [example_image()]}),
        pip_requirements=requirements(),
        mlflow_model=facts,
    )
    _forget_local_paths(facts)
    facts.save(str(path / "MLmodel"))


def requirements() -> list[str]:
    """Return what the served model needs, with the versions that are installed here."""
    # A local version (2.14.1+cpu) is on no package index.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def _forget_local_paths(facts: Any) -> None:
    """Keep of the paths in MLmodel what MLflow needs to load it: names relative to the model's folder."""
    flavour = facts.flavors["python_function"]
    flavour["model_code_path"] = Path(flavour["model_code_path"]).name
    for artifact in flavour["artifacts"].values():
        artifact["uri"] = artifact["path"]


def example_image(size: int = 64) -> bytes:
    """Return a grey ramp as a PNG: an example that shows nobody's image."""
    rows = b"".join(b"\0" + bytes(255 * x // (size - 1) for x in range(size)) for _ in range(size))
    chunks = {b"IHDR": struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks.items()
    )

"""Where MLflow's store is, which results it holds, and the lock under which something is put there.

MLFLOW_TRACKING_URI names it; else it is mlflow.db in the project's main working copy, with the artifacts in mlartifacts
beside it: a worktree and `dvc exp run --temp` find the same one. What it holds is asked without importing MLflow, by
SQL or by HTTP, so that a pipeline in which nothing changed does not wait seconds to learn that.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from stages.cli import warn
from stages.files import locked, new_file
from stages.store.location import shared_root

if TYPE_CHECKING:
    from mlflow import MlflowClient

FINGERPRINT = "fingerprint"
"""Tag of a parent run, written last: what has it and is FINISHED is whole."""
NAMES = "names"
"""Tag of a parent run: every name that its result has had in params.yaml."""
DATASET = "transfer.dataset"
"""Tag of an experiment: which data set it is about. By it ours are told from others' experiments."""

SECONDS_TO_ANSWER = 5
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
    # Minutes of patience are for servers that are busy. One that is down is tried again with the next publish.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""What MLflow is told unless the environment says otherwise."""
# What urllib cannot do as MLflow's own client does it.
_ONLY_BY_CLIENT = (
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_WORKSPACE",
)


class StoreError(Exception):
    """The store cannot take anything now; the message says why in one line."""


@dataclass(frozen=True)
class Store:
    """MLflow's tracking store, by its address."""

    uri: str

    @property
    def shown(self) -> str:
        """The address as people may see it: without a password."""
        parts = urlsplit(self.uri)
        if parts.username is None and parts.password is None:
            return self.uri
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def database(self) -> Path | None:
        """The file, where the store is an SQLite database."""
        if not self.uri.startswith("sqlite:///"):
            return None
        return Path(self.uri.removeprefix("sqlite:///").partition("?")[0])

    @property
    def is_server(self) -> bool:
        """Whether it is a tracking server, which has a UI of its own."""
        return urlsplit(self.uri).scheme in ("http", "https")

    def published(self, fingerprints: Iterable[str], prefix: str = "") -> dict[str, set[str]] | None:
        """Return which of the results the store holds whole, each with the names it has there; without MLflow's client.

        prefix : only experiments whose names begin so are looked at.
        Returns None where only MLflow's client can tell. Raises StoreError when nobody answers.
        """
        wanted = set(fingerprints)
        if self.database is not None:
            return _published_in_database(self.database, wanted, prefix)
        self.check_reachable()
        if not self.is_server or any(name in os.environ for name in _ONLY_BY_CLIENT):
            return None
        from stages.tracking.server import published_on_server

        return published_on_server(self.uri, wanted, prefix)

    def check_reachable(self) -> None:
        """Raise StoreError when nobody listens at the store's address; returns at once where it has none."""
        from urllib.request import getproxies

        parts = urlsplit(self.uri)
        try:
            port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
        except ValueError as error:
            raise StoreError(f"{self.shown} is no address ({error})") from None
        if parts.hostname is None or port is None or (self.is_server and getproxies()):
            return
        try:
            socket.create_connection((parts.hostname, port), SECONDS_TO_ANSWER).close()
        except OSError as error:
            raise StoreError(f"{self.shown} does not answer ({error.strerror or error})") from None

    def connect(self) -> MlflowClient:
        """Import MLflow, which takes seconds, and return a client; a database that is not there is made.

        Raises StoreError when the store cannot be opened.
        """
        import_mlflow()
        import mlflow

        with told_in_one_line(self):
            if self.database is not None and not self.database.exists():
                # MLflow makes its tables one by one, and would not go on where it was killed between two.
                with new_file(self.database) as path:
                    mlflow.MlflowClient(f"sqlite:///{path.absolute()}").search_experiments(max_results=1)
            client = mlflow.MlflowClient(self.uri)
            client.search_experiments(max_results=1)
        return client

    def experiment(self, client: MlflowClient, name: str, dataset: str) -> str:
        """Return the id of an experiment; it is made where it is not there, and restored with a warning if deleted."""
        found = client.get_experiment_by_name(name)
        if found is None:
            return str(client.create_experiment(name, self._artifact_location(), {DATASET: dataset}))
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
            warn(f"the experiment {name} had been deleted in MLflow and is restored: params.yaml still names its runs")
        if DATASET not in found.tags:
            client.set_experiment_tag(found.experiment_id, DATASET, dataset)
        return str(found.experiment_id)

    def _artifact_location(self) -> str | None:
        # Without it MLflow puts artifacts below the current folder, which in an experiment of DVC is a temporary one.
        return (self.database.parent / "mlartifacts").absolute().as_uri() if self.database is not None else None

    def relocate(self) -> None:
        """Look for the artifacts beside the database, where both were moved or copied together.

        MLflow writes absolute paths: those of a copied project would lead into the original, and be written to.
        """
        location = self._artifact_location()
        if self.database is None or location is None or not self.database.exists():
            return
        try:
            with closing(sqlite3.connect(self.database, timeout=SECONDS_TO_ANSWER)) as database, database:
                for (old,) in database.execute(_ARTIFACT_LOCATIONS, (location,)).fetchall():
                    for table, column in _PATHS_IN_DATABASE:
                        moved = f"SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR {column} LIKE ?"
                        database.execute(f"UPDATE {table} {moved}", (location, len(old) + 1, old, f"{old}/%"))
        except sqlite3.Error:
            return  # the tables of another version: MLflow itself will say so


def open_store() -> Store:
    """Return the store that MLFLOW_TRACKING_URI names, else the one in the project's main working copy."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{shared_root() / 'mlflow.db'}"
    path, question, options = uri.removeprefix("sqlite:///").partition("?")
    if uri.startswith("sqlite:///") and path and not Path(path).is_absolute():
        # Relative to the current folder it would end, with `dvc exp run --temp`, in a folder that is thrown away.
        uri = f"sqlite:///{shared_root() / path}{question}{options}"
    return Store(uri)


def experiment_prefix() -> str:
    """Return what TRANSFER_EXPERIMENT_PREFIX puts before the names of experiments on a server that several share."""
    return os.environ.get("TRANSFER_EXPERIMENT_PREFIX", "")


def import_mlflow() -> None:
    """Import MLflow with its telemetry, its progress bars and its chatter off, unless the environment wants them."""
    import logging

    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # the traceback of an error that is raised, too


@contextmanager
def told_in_one_line(store: Store) -> Iterator[None]:
    """Turn what MLflow, its database and the network raise into a StoreError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        # SQLAlchemy may begin by saying what it was doing.
        lines = (line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result of"))
        reason = next(lines, type(error).__name__)
        raise StoreError(f"{store.shown}: {reason}") from error


def publish_lock() -> AbstractContextManager[None]:
    """Hold the lock of this project's publishers, in whatever working copy they run.

    MLflow has no unique tags, and two processes cannot make its database at once.
    """
    return locked(shared_root() / ".transfer" / "publish.lock", "another process is publishing")


def split_names(tag: str) -> set[str]:
    """Read the tag NAMES."""
    return {name.strip() for name in tag.split(",") if name.strip()}


def join_names(names: Iterable[str]) -> str:
    """Write the tag NAMES."""
    return ", ".join(sorted(set(names)))


_FINISHED_RESULTS = f"""
    SELECT fingerprint.value, names.value, experiments.name
    FROM tags AS fingerprint
    JOIN runs ON runs.run_uuid = fingerprint.run_uuid
    JOIN experiments ON experiments.experiment_id = runs.experiment_id
    JOIN experiment_tags AS ours ON ours.experiment_id = experiments.experiment_id AND ours.key = '{DATASET}'
    LEFT JOIN tags AS names ON names.run_uuid = runs.run_uuid AND names.key = '{NAMES}'
    WHERE fingerprint.key = '{FINGERPRINT}' AND runs.status = 'FINISHED'
    AND runs.lifecycle_stage = 'active' AND experiments.lifecycle_stage = 'active'
"""


_ARTIFACT_LOCATIONS = f"""
    SELECT DISTINCT artifact_location FROM experiments
    JOIN experiment_tags AS ours ON ours.experiment_id = experiments.experiment_id AND ours.key = '{DATASET}'
    WHERE artifact_location != ? AND artifact_location LIKE 'file://%/mlartifacts'
"""
_PATHS_IN_DATABASE = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
)


def _published_in_database(path: Path, wanted: set[str], prefix: str) -> dict[str, set[str]] | None:
    if not path.exists():
        return {}
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=SECONDS_TO_ANSWER)
        ) as database:
            rows = database.execute(_FINISHED_RESULTS).fetchall()
    except sqlite3.Error:
        # An empty file, the tables of another version, or a writer that was killed: MLflow repairs it or says why not.
        return None
    return {
        fingerprint: split_names(names or "")
        for fingerprint, names, experiment in rows
        if fingerprint in wanted and experiment.startswith(prefix)
    }


def finished(fingerprint: str) -> str:
    """Return MLflow's search filter for a result that is there as a whole."""
    return f"tags.{FINGERPRINT} = '{fingerprint}' AND attributes.status = 'FINISHED'"

"""Where the store is, and asking it without MLflow."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from stages import files
from stages.cli import UserError
from stages.tracking import server as server_module
from stages.tracking import store as store_module
from stages.tracking import ui
from stages.tracking.store import DATASET, Store, StoreError, open_store
from tests.tracking.conftest import Answer, Results

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, "sqlite:///{root}/mlflow.db"),
        ("", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///runs.db", "sqlite:///{root}/runs.db"),
        ("sqlite:////elsewhere/runs.db", "sqlite:////elsewhere/runs.db"),
        ("https://mlflow.example.org", "https://mlflow.example.org"),
    ],
)
def test_store_is_where_the_environment_says_or_in_the_main_working_copy(
    named: str | None, expected: str, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    elsewhere = results.root / "temporary"
    elsewhere.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(results.root))  # as in the temporary folder of an experiment
    monkeypatch.chdir(elsewhere)
    assert open_store().uri == expected.format(root=results.root)


def test_password_is_never_shown() -> None:
    assert Store("https://me:secret@mlflow.example.org:8443/path").shown == "https://mlflow.example.org:8443/path"
    with pytest.raises(StoreError) as error:
        Store("postgresql://me:secret@127.0.0.1:9/runs").published([A])
    assert str(error.value) == "postgresql://127.0.0.1:9/runs does not answer (Connection refused)"


def test_database_that_is_not_there_holds_nothing_and_one_that_is_none_must_be_asked_by_mlflow(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert Store(f"sqlite:///{path}").published([A]) == {}
    path.write_text("this is no database, and it is long enough to be looked at" * 20)
    assert Store(f"sqlite:///{path}").published([A]) is None


def test_store_that_was_moved_finds_its_artifacts_and_takes_new_ones(
    results: Results, publish: Callable[[], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    results.add("probe", A)
    publish()
    moved = results.root.with_name("moved")
    results.root.rename(moved)
    monkeypatch.chdir(moved)
    results.root = moved
    results.add("svm", B)
    assert publish()
    for run in results.parents():
        folder = Path(unquote(urlsplit(run["artifact_uri"]).path))
        assert folder.is_relative_to(moved / "mlartifacts")
        assert (folder / "metrics.json").is_file()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{moved / 'mlflow.db'}")
    for model in client.search_logged_models([str(results.parents()[0]["experiment_id"])]):
        assert (Path(unquote(urlsplit(model.artifact_location).path)) / "MLmodel").is_file()


def test_server_is_asked_page_by_page_under_the_prefix_and_with_the_password(stub: Any) -> None:
    asked: list[Any] = []

    def answer(path: str, body: Any) -> Answer:
        asked.append(body)
        if path.endswith("/experiments/search"):
            page = int(body.get("page_token", 0))
            found = {"experiments": [{"name": f"solar/{page}", "experiment_id": str(page)}]}
            found["experiments"] += [{"name": "other", "experiment_id": "9"}]
            return 200, found | ({"next_page_token": str(page + 1)} if page < 2 else {})
        run = {"data": {"tags": [{"key": "names", "value": "probe, svm"}]}}
        return 200, {"runs": [run]} if A in body["filter"] else {}

    address = stub(answer).replace("//", "//me:secret@")
    assert Store(address).published([A, B], "solar/") == {A: {"probe", "svm"}}
    assert {body["auth"] for body in asked} == {"Basic bWU6c2VjcmV0"}  # me:secret
    assert all(body["experiment_ids"] == ["0", "1", "2"] for body in asked if "experiment_ids" in body)
    assert all(DATASET in body["filter"] for body in asked if "experiment_ids" not in body)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (503, b"", "answers with an error (503 Service Unavailable)"),
        (200, b"<html>not MLflow</html>", "does not answer as an MLflow server does"),
        (200, b"[]", "does not answer as an MLflow server does"),
        (200, b'{"experiments": [{}]}', "does not answer as an MLflow server does"),
    ],
)
def test_server_that_answers_wrongly_is_an_error_of_one_line(status: int, body: bytes, message: str, stub: Any) -> None:
    with pytest.raises(StoreError, match=r"^http://127\.") as error:
        Store(stub(lambda *_: (status, body))).published([A])
    assert message in str(error.value)


def test_address_that_is_none_is_an_error_of_one_line() -> None:
    with pytest.raises(StoreError, match=r"^http://127\.0\.0\.1:99999 is no address"):
        Store("http://127.0.0.1:99999").published([A])


def test_what_does_not_speak_http_is_an_error_of_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):  # whether anybody listens; the question
                connection, _ = listener.accept()
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(StoreError, match="does not answer"):
            Store(f"http://127.0.0.1:{listener.getsockname()[1]}").published([A])


def test_missing_driver_of_a_database_is_an_error_of_one_line() -> None:
    with pytest.raises(StoreError, match="No module named 'driver'"), store_module.told_in_one_line(Store("x://y")):
        raise ModuleNotFoundError("No module named 'driver'")


def test_server_that_wants_what_only_mlflow_can_send_is_left_to_it(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Store(stub(lambda *_: (401, b""))).published([A]) is None
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team")
    assert Store(stub(lambda *_: (200, {}))).published([A]) is None


def test_server_that_hangs_is_given_up(stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SECONDS_TO_ANSWER", 0.2)
    start = time.monotonic()
    with pytest.raises(StoreError, match="timed out"):
        Store(stub(lambda *_: (time.sleep(1), {})[1:] and (200, {}))).published([A])
    assert time.monotonic() - start < 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def mlflow_server(tmp_path: Path, empty_store: Path) -> Iterator[str]:
    """A real tracking server with a database and an artifact store of its own."""
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    shutil.copyfile(empty_store, folder / "server.db")
    where = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--port", str(port), "--workers", "1"]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_real_server_gets_each_result_once_and_is_asked_without_mlflow(
    results: Results, publish: Callable[[], bool], mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    results.add("probe", A)
    results.add("svm", B)
    assert publish()
    assert open_store().published([A, B, "c" * 64]) == {A: {"probe"}, B: {"svm"}}
    monkeypatch.setattr(Store, "connect", lambda _: pytest.fail("MLflow was imported with nothing to do"))
    assert publish()
    monkeypatch.undo()
    client = MlflowClient(mlflow_server)
    (experiment,) = [e for e in client.search_experiments() if e.name == "cells"]
    assert len(client.search_runs([experiment.experiment_id])) == 2 + 2 * 2
    (model, _) = client.search_logged_models([experiment.experiment_id])
    assert "artifacts/model/run.json" in {f.path for f in _walk(client, model.model_id)}


def _walk(client: Any, model: str, path: str | None = None) -> Iterator[Any]:
    for found in client.list_logged_model_artifacts(model, path):
        yield found
        if found.is_dir and found.path.startswith("artifacts"):
            yield from _walk(client, model, found.path)


def test_ui_says_in_one_line_why_it_cannot_start(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (results.root / "mlflow.db").touch()
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        with pytest.raises(UserError, match=rf"^port {port} cannot be used \(Address already in use\): choose another"):
            ui.open_ui()
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(UserError, match=r"^PORT is http: it must be a number from 1 to 65535$"):
        ui.open_ui()
    (results.root / "mlflow.db").unlink()
    with pytest.raises(UserError, match=r"mlflow\.db is not there: nothing was published yet"):
        ui.open_ui()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org")
    ui.open_ui()
    assert capsys.readouterr().out.endswith("open https://mlflow.example.org\n")


def test_waiting_for_another_publisher_is_said(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "SECONDS_BEFORE_SAYING_SO", 0.1)
    script = (
        "import time; from stages.tracking.store import publish_lock\n"
        "with publish_lock(): print('held', flush=True); time.sleep(1)"
    )
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", script], cwd=results.root, env=env, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with store_module.publish_lock():
            pass
    assert capsys.readouterr().err == "warning: another process is publishing: waiting for it to end\n"

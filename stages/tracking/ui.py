"""Open MLflow's UI over the project's store.

    python -m stages.tracking.ui            PORT=5001 moves it from port 5000

It answers on this machine alone, in two processes. Where MLFLOW_TRACKING_URI names a server, that has a UI already.
"""

from __future__ import annotations

import os
import socket
import sys

from stages.cli import UserError, guard
from stages.tracking.store import open_store, publish_lock

HOST = "127.0.0.1"


def open_ui() -> None:
    """Replace this process by MLflow's UI; raises UserError when there is nothing to show or the port is taken."""
    store = open_store()
    if store.is_server:
        print(f"MLFLOW_TRACKING_URI names a server, which has a UI of its own: open {store.shown}")
        return
    if store.database is not None and not store.database.exists():
        raise UserError(f"{store.database} is not there: nothing was published yet, run `make run` or `make publish`")
    port = _free_port()
    with publish_lock():
        store.relocate()
    print(f"MLflow's UI: http://{HOST}:{port} (it takes some seconds; Ctrl-C ends it)", flush=True)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    # Its job runner is a dozen processes that nothing here needs.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    where = ["--backend-store-uri", store.uri, "--host", HOST, "--port", str(port)]
    hosts = ["--workers", "1", "--allowed-hosts", "localhost:*,127.0.0.1:*"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *where, *hosts])


def _free_port() -> int:
    text = os.environ.get("PORT") or "5000"
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UserError(f"PORT is {text}: it must be a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(text)))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"port {text} cannot be used ({reason}): choose another, `PORT=5001 make ui`") from None
    return int(text)


if __name__ == "__main__":
    guard(open_ui)

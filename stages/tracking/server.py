"""Ask a tracking server over HTTP which results it has, without importing MLflow."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from stages.tracking.store import DATASET, NAMES, SECONDS_TO_ANSWER, Store, StoreError, finished, split_names


def published_on_server(uri: str, wanted: set[str], prefix: str) -> dict[str, set[str]] | None:
    """Return which results a tracking server holds, with their names; None where only MLflow's client can ask it.

    Raises StoreError when it does not answer.
    """
    server = _Server(urlsplit(uri))
    try:
        experiments = server.experiments(prefix)
        if not experiments:
            return {}
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda fingerprint: server.names(experiments, fingerprint), sorted(wanted))
            return {k: names for k, names in zip(sorted(wanted), found, strict=True) if names is not None}
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise StoreError(f"{Store(uri).shown} answers with an error ({error.code} {error.reason})") from None
        return None  # it may want what only MLflow's client knows how to send
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return None
        raise StoreError(f"{Store(uri).shown} does not answer ({error.reason})") from None
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        raise StoreError(f"{Store(uri).shown} does not answer as an MLflow server does ({error!r})") from None


class _Server:
    """The two questions that are asked of MLflow's REST API."""

    def __init__(self, parts: SplitResult) -> None:
        user, password = parts.username or "", parts.password or ""
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(user)
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(password)
        self._headers = {"Content-Type": "application/json"}
        if user:
            self._headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
            self._headers["Authorization"] = f"Bearer {token}"
        self._root = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=parts.path.rstrip("/")).geturl()
        self._context: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
            if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
                self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE

    def experiments(self, prefix: str) -> list[str]:
        found: list[str] = []
        question: dict[str, Any] = {"filter": f"tags.`{DATASET}` LIKE '%'", "max_results": 1000}
        while True:
            answer = self._ask("experiments/search", question)
            ours = (e for e in answer.get("experiments", []) if e["name"].startswith(prefix))
            found += [e["experiment_id"] for e in ours]
            if not answer.get("next_page_token"):
                return found
            question["page_token"] = answer["next_page_token"]

    def names(self, experiments: list[str], fingerprint: str) -> set[str] | None:
        question = {"experiment_ids": experiments, "filter": finished(fingerprint), "max_results": 1}
        for run in self._ask("runs/search", question).get("runs", []):
            tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
            return split_names(tags.get(NAMES, ""))
        return None

    def _ask(self, what: str, question: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._root}/api/2.0/mlflow/{what}", json.dumps(question).encode(), self._headers
        )
        with urllib.request.urlopen(request, timeout=SECONDS_TO_ANSWER, context=self._context) as response:
            answer = json.load(response)
        if not isinstance(answer, dict):
            raise ValueError(answer)
        return answer

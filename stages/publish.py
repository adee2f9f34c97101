"""Put every result into MLflow that is not there yet.

    reports/runs/, data/models/, data/evaluations/  ->  .transfer/outbox/  ->  MLflow

A result first goes into the outbox, with all that belongs to it, and from there to the store. So a server that is down
costs one line of warning and loses nothing: what waits goes out with the next publish, from whatever working copy. The
store is asked each time which results it has; with nothing to do that takes a fraction of a second.

    python -m stages.publish              ends well without the server: a stage that fails loses an experiment of DVC
    python -m stages.publish --strict     ends with exit code 1 when a result could not be published
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.cli import UserError, guard, is_of_a_file, told, warn
from stages.params import Params, read_params
from stages.tracking import outbox
from stages.tracking.results import current_results, describe, missing_outputs
from stages.tracking.store import Store, StoreError, experiment_prefix, open_store, publish_lock, told_in_one_line

Results = Mapping[str, Sequence[str]]
"""The names of each result, by its fingerprint."""


def publish(params: Params) -> bool:
    """Publish the results of the runs in params.yaml and what waits in the outbox; returns whether all are there."""
    store = open_store()
    results, without = current_results(params)
    if without:
        warn(f"not evaluated yet, so not published: {', '.join(without)}; run `dvc repro`")
    if not outbox.pending() and _has_all(store, results):
        print(f"MLflow has all {len(results)} results: {store.shown}")
        return not without
    with publish_lock():
        return _publish(params, store, results) and not without


def _has_all(store: Store, results: Results) -> bool:
    try:
        there = store.published(results, experiment_prefix()) or {}
    except StoreError:
        return False  # said later, once everything is safe in the outbox
    return all(set(names) <= there.get(fingerprint, set()) for fingerprint, names in results.items())


def _publish(params: Params, store: Store, results: Results) -> bool:
    outbox.sweep()
    try:
        down, there = None, _there(store, results)
    except StoreError as error:
        down, there = error, {}
    new = {fingerprint: names for fingerprint, names in results.items() if fingerprint not in there}
    lacking = _fill_outbox(params, new, fetch=down is None)
    try:
        if down is not None:
            raise down
        renamed = {k: set(results[k]) for k, known in there.items() if not set(results[k]) <= known}
        _drain_outbox(store, renamed)
    except StoreError as error:
        warn(f"{error}; {_waiting()}")
        return False
    return not lacking and not outbox.pending()


def _there(store: Store, results: Results) -> dict[str, set[str]]:
    """Return which results the store has, and their names there; asks MLflow itself where nothing else can tell."""
    prefix = experiment_prefix()
    there = store.published(results, prefix)
    if there is not None:
        return there
    from stages.tracking.runs import names_in_store

    client = store.connect()
    with told_in_one_line(store):
        return names_in_store(client, results, prefix)


def _waiting() -> str:
    count = len(outbox.pending())
    what = "1 result waits" if count == 1 else f"{count} results wait"
    return f"{what} in {outbox.outbox_folder()} for the next `dvc repro` or `make publish`"


def _fill_outbox(params: Params, results: Results, fetch: bool) -> list[str]:
    """Put results into the outbox; returns the runs of which something is not here.

    fetch : whether to ask DVC for what is not here, and to say what even it has not.
    """
    results = {fingerprint: names for fingerprint, names in results.items() if not outbox.add_names(fingerprint, names)}
    ready, lacking = _sort_out(params, results)
    if lacking and fetch:
        reason = _pull(sorted({path for paths in lacking.values() for path in paths}))
        ready, lacking = _sort_out(params, results)
        if lacking:
            what = ", ".join(map(str, sorted({path for paths in lacking.values() for path in paths})))
            warn(f"not published: {', '.join(lacking)}; {what} cannot be had from DVC ({reason}): run `dvc repro`")
    left = list(ready.values())
    for fingerprint, name in ready.items():
        names = [name, *(other for other in results[fingerprint] if other != name)]
        try:
            outbox.put(*describe(params, names, fingerprint))
        except UserError as error:
            warn(f"not published: {name}; {error}")
            lacking[name] = []
        except OSError as error:  # the disk: those that come after would fare no better
            warn(f"not published: {', '.join(left)}; {told(error)}")
            return [*lacking, *left]
        left.remove(name)
    return list(lacking)


def _sort_out(params: Params, results: Results) -> tuple[dict[str, str], dict[str, list[Path]]]:
    """Return a run for each result that is here as a whole, and for the others a run and what it lacks."""
    ready: dict[str, str] = {}
    lacking: dict[str, list[Path]] = {}
    for fingerprint, names in results.items():
        missing = {name: missing_outputs(params, name, fingerprint) for name in names}
        name = min(names, key=lambda n: len(missing[n]))
        if missing[name]:
            lacking[name] = missing[name]
        else:
            ready[fingerprint] = name
    return ready, lacking


def _pull(paths: Sequence[Path]) -> str:
    """Ask DVC for outputs that are not here; returns what it says when it has them not either."""
    print(f"asking DVC for {len(paths)} outputs that are not here")
    command = [sys.executable, "-m", "dvc", "pull", "--quiet", *map(str, paths)]
    result = subprocess.run(
        command,
        env={**os.environ, "DVC_NO_ANALYTICS": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    said = [line.removeprefix("ERROR: ") for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    return said[0] if said else f"`dvc pull` ended with exit code {result.returncode}"


def _drain_outbox(store: Store, renamed: dict[str, set[str]]) -> None:
    """Send what waits, and further names of results that are there; raises StoreError when the store takes no more."""
    from stages.tracking.runs import find, give_names, log_result

    store.relocate()
    client = store.connect()
    with told_in_one_line(store):
        for fingerprint, names in renamed.items():
            if run := find(client, fingerprint, experiment_prefix()):
                give_names(client, run, names)
    sent, refused = 0, []
    for entry in outbox.pending():
        try:
            with told_in_one_line(store):
                sent += log_result(store, client, entry)
        except StoreError as error:
            store.check_reachable()
            refused.append(error)  # perhaps this one alone: the others need not wait for it
        else:
            outbox.remove(entry)
    print(f"MLflow got {sent} new results: {store.shown}")
    if refused:
        raise refused[0]


def main() -> None:
    """Publish as a stage or, with --strict, as a command whose exit code says whether all is published."""
    strict = sys.argv[1:] == ["--strict"]
    if sys.argv[1:] and not strict:
        raise UserError("usage: python -m stages.publish [--strict]")
    params = read_params()
    try:
        complete = publish(params)
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        # A stage that fails loses the experiment of `dvc exp run --temp`: a fault here is not worth that.
        if isinstance(error, OSError) and is_of_a_file(error):
            warn(f"not published: {told(error)}")
            complete = False
        elif strict:
            raise
        else:
            traceback.print_exc()
            complete = True
    if strict and not complete:
        sys.exit(1)


if __name__ == "__main__":
    guard(main)

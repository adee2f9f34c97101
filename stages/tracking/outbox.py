"""Results on their way to MLflow: a folder each, beside the store, until they are there.

    .transfer/outbox/<fingerprint>/
        result.json     what the runs in MLflow will say: names, params, metrics, tags, repeats
        artifacts/      plots, pictures and the page
        model/          the folder of repeat 0, which alone predicts
        code/stages/    the code that reads it

An entry holds all that is needed: with the server down, the temporary folder of `dvc exp run --temp` goes away long
before the result can go out. Large files are hard links, so that waiting costs no space. All of it is called with the
lock of stages.tracking.store held.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stages.cli import UserError, warn
from stages.files import DATA, link_or_copy, new_folder, read_json, write_json
from stages.store.location import shared_root
from stages.tracking.store import join_names, split_names

RESULT, ARTIFACTS, MODEL, CODE = "result.json", "artifacts", "model", "code"


def outbox_folder() -> Path:
    """Return the folder in which results wait; it need not exist."""
    return shared_root() / ".transfer" / "outbox"


def pending() -> list[Path]:
    """Return the entries that wait, in the order of their fingerprints."""
    folder = outbox_folder()
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def put(result: Mapping[str, Any], files: Mapping[str, Path]) -> Path:
    """Add a result that does not wait yet, whole or not at all, and return its entry.

    result : what result.json will say; `fingerprint` and `names` (text, as the tag) at least.
    files : where each file of the entry comes from, by its path in the entry.
    """
    entry: Path = outbox_folder() / result["fingerprint"]
    with new_folder(entry) as new:
        for name, source in files.items():
            target = new / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # A stage replaces the files in data/, nobody writes into them; what git holds may be edited in place.
            if DATA in source.parents:
                link_or_copy(source.resolve(), target)
            else:
                shutil.copyfile(source, target)
        write_json(new / RESULT, result)
    return entry


def add_names(fingerprint: str, names: Iterable[str]) -> bool:
    """Note further names of a result that waits; returns whether it does."""
    path = outbox_folder() / fingerprint / RESULT
    if not path.is_file():
        return False
    result = read_json(path)
    both = join_names({*split_names(result["names"]), *names})
    if both != result["names"]:
        write_json(path, {**result, "names": both})
    return True


def remove(entry: Path) -> None:
    """Take out an entry; killed in between, it leaves none that looks whole."""
    leaving = entry.with_name(f".{entry.name}.sent")
    shutil.rmtree(leaving, ignore_errors=True)
    entry.rename(leaving)
    shutil.rmtree(leaving)


def sweep() -> None:
    """Remove what killed processes left half written or half removed, and with a warning what a crash has cut off."""
    for left_over in outbox_folder().glob(".*"):
        shutil.rmtree(left_over, ignore_errors=True)
    for entry in pending():
        try:
            read_json(entry / RESULT)
        except UserError:
            warn(f"{entry} is not whole and is removed: its result is published again while params.yaml names its run")
            shutil.rmtree(entry)

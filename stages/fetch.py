"""Fetch images or weights from where params.yaml says.

    a package, a folder, a file  ->  data/raw/<name>/

The source's file in stages/sources/ knows how; what it has written is put in place only when it is whole.

    python -m stages.fetch elpv
"""

from __future__ import annotations

from stages.cli import run_stage
from stages.files import RAW, new_folder
from stages.params import Download, kind_module


def fetch(name: str, entry: Download) -> None:
    """Write data/raw/<name>/ as its entry in params.yaml describes it."""
    with new_folder(RAW / name) as folder:
        kind_module("sources", entry.source).fetch(entry, folder)


if __name__ == "__main__":
    run_stage(fetch, level="downloads")

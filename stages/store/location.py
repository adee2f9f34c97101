"""Where lies what all copies of a project share: MLflow's store and the private cache.

A git worktree, `dvc exp run --temp` and the workers of DVC's queue each run in a folder of their own. What is kept for
all of them lies in the main working copy, found from files alone: no process is started for it.
"""

from __future__ import annotations

import os
from pathlib import Path

from stages.cli import UserError


def shared_root() -> Path:
    """Return the project's folder in the main working copy; it need be neither a git nor a DVC repository.

    DVC names its workspace in DVC_ROOT, which in an experiment's temporary folder is the workspace that the experiment
    was started from. Raises UserError when DVC_ROOT is no folder.
    """
    return _in_main_copy(_project())


def cache_root() -> Path:
    """Return the folder of the private cache: TRANSFER_CACHE, else .transfer/cache in the shared root.

    Deleting it costs time and nothing else. Raises UserError for a TRANSFER_CACHE that cannot be a folder.
    """
    if named := os.environ.get("TRANSFER_CACHE"):
        folder = Path(named).expanduser().absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"TRANSFER_CACHE is {named}: {error.strerror}; name a folder, or unset it") from None
        return folder
    return shared_root() / ".transfer" / "cache"


def _project() -> Path:
    if named := os.environ.get("DVC_ROOT"):
        if not Path(named).is_dir():
            raise UserError(f"DVC_ROOT is {named}, which is no folder: unset it, or name the project's folder")
        return Path(named).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def _in_main_copy(project: Path) -> Path:
    """Return the folder that is, in the repository's main working copy, what `project` is in its own."""
    for top in (project, *project.parents):
        dot_git = top / ".git"
        if dot_git.is_dir():
            return project
        if dot_git.is_file():
            return _main_copy(top, dot_git) / project.relative_to(top)
    return project


def _main_copy(top: Path, dot_git: Path) -> Path:
    # In a worktree .git is a file that names a folder in the main repository's .git (gitrepository-layout(5)); there
    # `commondir` leads to the part that all worktrees share. A submodule has no commondir: it is a main copy itself.
    git_dir = top / dot_git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
    common_dir = git_dir / "commondir"
    if not common_dir.is_file():
        return top
    common = (git_dir / common_dir.read_text(encoding="utf-8").strip()).resolve()
    # Worktrees of a bare repository (name.git) have no main copy: what they share lies in the repository's folder.
    return common.parent if common.name.startswith(".") else common

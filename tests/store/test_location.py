"""The shared root, against what git itself answers."""

import subprocess
from pathlib import Path

import pytest

from stages.cli import UserError
from stages.store.location import cache_root, shared_root


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "protocol.file.allow=always"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    for name in ("DVC_ROOT", "TRANSFER_CACHE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "project"
    (folder / ".dvc").mkdir(parents=True)
    (folder / "stages").mkdir()
    (folder / ".dvc" / "config").touch()
    (folder / "stages" / "code.py").touch()
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Begin")
    return folder


def test_in_the_main_copy_and_below_it_the_root_is_the_repository(repository, monkeypatch):
    for folder in (repository, repository / "stages"):
        monkeypatch.chdir(folder)
        assert shared_root() == repository


def test_in_a_worktree_the_root_is_the_main_copy_as_git_names_it(repository, tmp_path, monkeypatch):
    git(repository, "worktree", "add", "-q", str(tmp_path / "elsewhere" / "tree"))
    monkeypatch.chdir(tmp_path / "elsewhere" / "tree")
    common = git(Path.cwd(), "rev-parse", "--path-format=absolute", "--git-common-dir")
    assert shared_root() == Path(common).parent == repository


def test_a_worktree_of_a_bare_repository_shares_the_repository_s_folder(repository, tmp_path, monkeypatch):
    git(tmp_path, "clone", "-q", "--bare", str(repository), "bare.git")
    git(tmp_path / "bare.git", "worktree", "add", "-q", str(tmp_path / "tree"))
    monkeypatch.chdir(tmp_path / "tree")
    assert shared_root() == tmp_path / "bare.git"


def test_a_submodule_is_a_project_of_its_own(repository, tmp_path, monkeypatch):
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    git(outer, "submodule", "--quiet", "add", str(repository), "inner")
    monkeypatch.chdir(outer / "inner")
    assert shared_root() == outer / "inner"


def test_an_experiment_in_a_temporary_clone_finds_the_workspace_that_dvc_names(repository, tmp_path, monkeypatch):
    git(tmp_path, "clone", "-q", str(repository), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    assert shared_root() == tmp_path / "clone"
    monkeypatch.setenv("DVC_ROOT", str(repository))
    assert shared_root() == repository


def test_a_project_below_the_top_of_a_repository_keeps_its_place_in_the_main_copy(repository, tmp_path, monkeypatch):
    (repository / "part" / ".dvc").mkdir(parents=True)
    (repository / "part" / ".dvc" / "config").touch()
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "Add a part")
    git(repository, "worktree", "add", "-q", str(tmp_path / "tree"))
    monkeypatch.chdir(tmp_path / "tree" / "part")
    assert shared_root() == repository / "part"


def test_without_git_and_dvc_the_root_is_the_folder_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert shared_root() == tmp_path


def test_a_root_that_is_no_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"DVC_ROOT is .*gone, which is no folder"):
        shared_root()


def test_the_cache_lies_in_the_shared_root_unless_named(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    assert cache_root() == repository / ".transfer" / "cache"
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^TRANSFER_CACHE is .*file: "):
        cache_root()
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    assert cache_root() == tmp_path / "cache"


def test_no_process_is_started(repository, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.chdir(repository)
    assert shared_root() == repository

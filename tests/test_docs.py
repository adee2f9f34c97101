"""What README and docs/ say holds: the table of keys, the links, the entries for own images, the list of transfers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from stages.params import key_table, kind_module, kinds, read_params
from tests.conftest import ROOT, make_project

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def test_table_of_keys_is_what_the_schema_says() -> None:
    assert (ROOT / "docs/params.md").read_text() == key_table(), "run `make keys`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_lists_every_transfer() -> None:
    text = (ROOT / "README.md").read_text()
    assert [kind for kind in kinds("transfers") if f"`{kind}`" not in text] == []


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {t for page in PAGES for t in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert named <= targets
    assert {"run", "test", "ui"} <= named


@pytest.mark.parametrize("page", ["README.md", "docs/own-images.md"])
def test_entries_for_own_images_are_valid(page: str, tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert block is not None
    indent = len(block[1]) - len(block[1].lstrip())
    lines = [line[indent:] for line in block[1].splitlines()]
    (tmp_path / "params.yaml").write_text("\n".join(lines) + "\n")
    assert set(read_params(tmp_path / "params.yaml").runs) == {"majority", "probe", "svm"}


def test_the_full_study_is_valid_and_has_every_cut_and_kind_that_trains_a_network() -> None:
    params = read_params(ROOT / "docs/study/params.yaml")
    cuts = {params.features[run.features].cut for run in params.runs.values()}
    assert {"image", "blocks.2", "blocks.3", "blocks.4", "blocks.5"} <= cuts
    trained = {kind for kind in kinds("transfers") if hasattr(kind_module("transfers", kind), "STREAMS")}
    assert trained <= {run.transfer.kind for run in params.runs.values()}


@pytest.mark.pipeline
def test_own_images_in_the_three_steps_of_the_readme(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert block is not None
    text = "\n".join(line[3:] for line in block[1].splitlines())
    project.path("params.yaml").write_text(text.replace("image_size: 224", "image_size: 64") + "\n")
    environment = Path(subprocess.check_output(["python", "-c", "import sys; print(sys.prefix)"], text=True).strip())
    result = project.run(f"make run VENV='{environment}'", check=True)
    assert "reports/report.html" in result.stdout
    predictions = project.run("python -m stages.predict --run svm photos", check=True).stdout.splitlines()
    assert len(predictions) == 81
    assert project.run(f"make summary VENV='{environment}' BASE=HEAD", check=True).stdout.startswith("# Leaderboard")

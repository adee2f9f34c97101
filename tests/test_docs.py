"""What README and docs/ say holds: the table of keys, the links, the entries for own images, the list of transfers."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.keys import key_table
from stages.params import kind_module, kinds, read_params
from tests.conftest import ROOT, make_project

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
CALL = re.compile(r"\bmake((?: [\w-]+(?:=[^\s`]*)?(?![^\s`]))+)")
"""Of make: its targets and settings."""


def test_table_of_keys_is_what_the_schema_says() -> None:
    assert (ROOT / "docs/params.md").read_text() == key_table(), "run `make keys`"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", without_blocks(page.read_text()), re.M):
        text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # of a link its words
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)


def code(text: str) -> list[str]:
    """What stands in a page's code: fenced blocks, indented lines, and spans between backticks."""
    rest = without_blocks(text)
    return [
        *re.findall(r"^ *```.*?^ *```$", text, re.M | re.S),
        *re.findall(r"^ {4,}(?![-*0-9]).*$", rest, re.M),
        *re.findall(r"`([^`]+)`", rest),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    lost = []
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if ":" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            lost.append(link)
    assert lost == []


def test_anchors_are_those_that_github_gives(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# How good?\n## `make cuts`, by hand\n```\n# no heading\n```\n## How good\n### [A_b](c.md) – d\n")
    assert anchors(page) == {"how-good", "make-cuts-by-hand", "how-good-1", "a_b--d"}


def test_readme_lists_every_transfer() -> None:
    text = (ROOT / "README.md").read_text()
    assert [kind for kind in kinds("transfers") if f"`{kind}`" not in text] == []


def test_make_targets_that_the_pages_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    calls = [c for page in PAGES for text in code(page.read_text()) for c in CALL.findall(text)]
    named = {word for call in calls for word in call.split() if "=" not in word}
    assert named <= targets
    assert {"run", "test", "ui", "cuts", "rank", "check", "cache"} <= named
    assert any("BACKBONE=lite0" in call for call in calls)


@pytest.mark.parametrize("page", ["README.md", "docs/own-images.md"])
def test_entries_for_own_images_are_valid(page: str, tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert block is not None
    indent = len(block[1]) - len(block[1].lstrip())
    lines = [line[indent:] for line in block[1].splitlines()]
    (tmp_path / "params.yaml").write_text("\n".join(lines) + "\n")
    assert set(read_params(tmp_path / "params.yaml").runs) == {"majority", "probe", "svm"}


# What the fragments in the pages name and do not bring.
AROUND = """\
downloads:
  scans: {source: folder, path: scans}
  tagged: {source: folder, path: tagged}
datasets:
  many: {images: photos}
features:
  many-b3: {images: photos, backbone: raw/lite0, image_size: 224, cut: blocks.3}
"""


def yaml_blocks() -> list[Any]:
    found = []
    for page in PAGES:
        for number, (indent, block) in enumerate(
            re.findall(r"^( *)```yaml\n(.*?)^ *```", page.read_text(), re.M | re.S)
        ):
            text = "\n".join(line.removeprefix(indent) for line in block.splitlines())
            found.append(pytest.param(text, id=f"{page.name}-{number}"))
    return found


@pytest.mark.parametrize("block", yaml_blocks())
def test_every_block_of_yaml_is_valid_where_it_belongs(block: str, tmp_path: Path) -> None:
    """Put into the entries for own images, with what its page takes as given."""
    readme = next(p.values[0] for p in yaml_blocks() if p.id.startswith("README"))
    merged: dict[str, Any] = {}
    for part in (readme, AROUND, block.replace("9f86d081...", "9f86d081" * 8)):
        for level, entries in yaml.safe_load(part).items():
            merged.setdefault(level, {}).update(entries)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged))
    params = read_params(tmp_path / "params.yaml")
    assert all(
        set(entries) <= set(getattr(params, level))
        for level, entries in yaml.safe_load(block).items()
        if level != "compare"
    )


@pytest.mark.parametrize("kind", kinds("transfers"))
def test_the_example_in_a_transfers_file_is_valid(kind: str) -> None:
    module = kind_module("transfers", kind)
    example = re.search(r"^ +(runs: \{.*\})$", str(module.__doc__), re.M)
    assert example is not None
    (run,) = yaml.safe_load(example[1])["runs"].values()
    assert module.Params.model_validate(run["transfer"]).kind == kind


def test_the_full_study_is_valid_and_has_every_cut_and_kind_that_trains_a_network() -> None:
    params = read_params(ROOT / "docs/study/params.yaml")
    cuts = {params.features[run.features].cut for run in params.runs.values()}
    assert {"image", "blocks.2", "blocks.3", "blocks.4", "blocks.5"} <= cuts
    trained = {kind for kind in kinds("transfers") if hasattr(kind_module("transfers", kind), "STREAMS")}
    assert trained <= {run.transfer.kind for run in params.runs.values()}


def test_the_full_study_has_what_transfer_must_beat_few_labels_and_four_repeats() -> None:
    """The same network from random weights twice: for as many epochs, and for as many operations."""
    params = read_params(ROOT / "docs/study/params.yaml")
    networks = {name: (d.network, d.origin) for name, d in params.downloads.items() if d.source == "weights"}

    def of(name: str) -> tuple[str, str]:
        return networks[params.features[params.runs[name].features].backbone.removeprefix("raw/")]

    scratch = {name for name in params.runs if of(name) == ("tf_efficientnet_lite0", "random")}
    assert scratch == {"scratch-epochs", "scratch-operations"}
    assert {params.runs[name].transfer.start for name in (*scratch, "small-cnn")} == {"zero"}
    assert {params.features[params.runs[name].features].cut for name in (*scratch, "small-cnn")} == {"image"}
    assert params.runs["scratch-epochs"].transfer.epochs == params.runs["all-layers"].transfer.epochs
    assert params.runs["scratch-operations"].transfer.epochs < params.runs["scratch-epochs"].transfer.epochs
    costs = {
        name: json.loads((ROOT / "docs/study/runs" / name / "cost.json").read_text())
        for name in ("scratch-operations", "above-b3")
    }
    all_of = {name: cost["extract_operations"] + cost["train_operations"] for name, cost in costs.items()}
    epoch = all_of["scratch-operations"] / params.runs["scratch-operations"].transfer.epochs
    assert abs(all_of["scratch-operations"] - all_of["above-b3"]) <= epoch / 2  # no other number of epochs is nearer
    assert of("small-cnn") == ("small_cnn", "random")
    assert of("all-layers") == of("above-b4") == ("tf_efficientnet_lite0", "package")
    few = {name for name, run in params.runs.items() if run.budgets == [5, 20, 100, None]}
    assert few >= {"probe", "svm", "small-cnn", "above-b4", "scratch-epochs"}
    assert {dataset.split.repeats for dataset in params.datasets.values()} == {4}
    assert all(run.repeats in (None, 4) for run in params.runs.values())


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

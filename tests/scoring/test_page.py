"""The page in a real browser: quiet, whole without network or script, fit for phone, paper, dark rooms and readers."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from stages.compare import compare
from stages.files import write_json, write_table
from stages.params import Dataset, Features, Label, Params, Split
from stages.prepare import contradictions_table
from stages.samples.describing import Contradiction
from stages.samples.thumbnails import new_thumbnails, thumbnail
from stages.scoring.metrics import Outcomes
from stages.scoring.page import above_cuts
from tests.browser import FLAGS, NONE, browser_path
from tests.conftest import cell_files
from tests.scoring.made_up import SPLIT, make_outcomes, make_params, make_record, write_made_up

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = ["<script>alert('class')</script>", "\"><img src=x onerror=alert('image')>", "größe & <b>שלום</b>"]
IMAGES = 240


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = browser_path()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(NONE)
        pytest.skip(NONE)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def write_project(pictures: bool = True) -> Params:
    """Write records of runs on three data sets into the current folder, one of them with hostile names."""
    datasets = {
        "cells": Dataset(images="photos", group="module", split=SPLIT),
        "cells-published": Dataset(images="photos", split=SPLIT),
        "strange": Dataset(images="photos", label=Label(column="other"), split=SPLIT),
    }
    runs = {
        "probe": ("cells", "lite0", "logistic", 0.70, {}),
        "svm-on-every-layer-there-is-and-more": ("cells", "lite0-layers", "rbf_svm", 0.80, {"trained_parameters": 9e6}),
        "pixels": ("cells", "pixels", "logistic", 0.55, {"operations_per_image": 0}),
        "published-probe": ("cells-published", "lite0", "logistic", 0.85, {}),
        "three": ("strange", "lite0", "logistic", 0.60, {"images_per_second": None}),
        "three-knn": ("strange", "lite0", "knn", 0.50, {}),
    }
    params = make_params({name: run[:3] for name, run in runs.items()}, datasets=datasets)
    random = np.random.default_rng(0)
    modules = [f"module {i // 8:02d}" for i in range(IMAGES)]
    slices = [
        {"column": "<i>type</i>", "value": value, "images": 80, "accuracy": 0.7, "auc": None}
        for value in (*HOSTILE, "plain")
    ]
    for name, (dataset, _, _, skill, cost) in runs.items():
        outcomes = make_outcomes(
            random.random(IMAGES) < skill,
            groups=modules if dataset == "cells" else None,
            classes=HOSTILE if dataset == "strange" else ("sound", "defective"),
        )
        family = "none" if name == "pixels" else "feature"
        write_made_up(make_record(name, outcomes, family, slices if dataset == "strange" else (), **cost))
    if pictures:
        write_pictures()
    return params


def write_pictures() -> None:
    sheet = Image.new("L", (1200, 600), "white")
    for i, path in enumerate(cell_files(32)):
        with Image.open(path) as cell:
            sheet.paste(cell.resize((140, 140)), (i % 8 * 150, i // 8 * 150))
    folder = Path("data/prepared/cells/pictures")
    folder.mkdir(parents=True)
    for name in ("sound", "defective"):
        sheet.save(folder / f"{name}.png")
        sheet = sheet.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    Path("data/evaluations/probe/pictures").mkdir(parents=True)
    sheet.rotate(180).save("data/evaluations/probe/pictures/mistakes.png")
    write_json(
        Path("data/prepared/cells/dataset.json"),
        {
            "counts": {"sound": 120, "defective": 120},
            "duplicates": 2,
            "near_duplicates": 1234,
            "rejected": 5,
            "described": {
                "sizes": {"300 x 300": 2620, "40 x 30": 3},
                "other_sizes": 1,
                "modes": {"L": 2620, "RGB": 4},
                "brightness": {"sound": [40.2, 91.6, 150.0], "defective": [3.0, 60.4, 99.9]},
                "parts": {
                    "sound": {"train": 70, "validation": 20, "test": 30},
                    "defective": {"train": 72, "validation": 18, "test": 30},
                },
                "reasons": {"<b>no image</b>": 4, "the file is empty": 1},
            },
            "leakage": {"same_pixels": 0, "near_duplicates": 0, "test_images": 0},
            "order": {"near": 75.0, "tested": 100},
            "contradictions": 1,
            "pictures": {name: f"pictures/{name}.png" for name in ("sound", "defective")},
        },
    )
    write_contradictions("cells", [("<i>a</i>.png", "b.png")])
    write_thumbnails("cells", {"<i>a</i>.png": 0, "b.png": 255})
    write_json(Path("data/raw/photos/download.json"), {"origin": "a package", "licence": "CC <BY>"})


def write_contradictions(dataset: str, pairs: list[tuple[str, str]]) -> None:
    found = [Contradiction(one, other, "pixels", "sound", "defective") for one, other in pairs]
    write_table(Path("data/prepared") / dataset / "contradictions.parquet", contradictions_table(found))


def write_thumbnails(dataset: str, greys: dict[str, int]) -> None:
    """Write small pictures that are of one grey each."""
    with new_thumbnails(Path("data/prepared") / dataset / "thumbnails.parquet") as add:
        for name, grey in greys.items():
            add(name, thumbnail(Image.new("L", (64, 64), grey)))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compare(write_project())
    return folder / "reports" / "report.html"


class Opened:
    """The page in a browser, with all that it logged, asked for and popped up."""

    def __init__(self, page: Page, report: Path) -> None:
        self.page = page
        self.logged: list[str] = []
        self.requested: list[str] = []
        page.on("console", lambda message: self.logged.append(message.text))
        page.on("pageerror", lambda error: self.logged.append(str(error)))
        page.on("dialog", lambda dialog: (self.logged.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.requested.append(request.url))
        page.goto(report.as_uri())

    def ask(self, script: str) -> Any:
        return self.page.evaluate(script)


def opened(browser: Browser, report: Path, width: int = 1200, **settings: Any) -> Opened:
    context = browser.new_context(viewport={"width": width, "height": 800}, **settings)
    return Opened(context.new_page(), report)


def data_section(name: str, report: Path = Path("reports/report.html")) -> str:
    """Return what the section Data says of a data set, as HTML."""
    section = report.read_text(encoding="utf-8").split('<h2 id="data">')[1]
    return re.split("<h3", section.split(f"<h3>{name}</h3>")[1])[0]


def facts_of(section: str) -> dict[str, str]:
    """Return the facts in a section as a reader sees them."""
    found = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", section)
    return {name: unescape(value).replace("\u00a0", " ") for name, value in found}


def leakage_in(section: str) -> str:
    """Return what a section says of leakage."""
    return unescape(section.split("<p>Leakage ")[1].split("</p>")[0]).replace("\u00a0", " ").removesuffix(".")


def table_of(section: str, name: str) -> list[list[str]]:
    """Return the cells of a table as a reader sees them."""
    rows = section.split(f'<table aria-label="{name}">')[1].split("</table>")[0].split("<tr>")[1:]
    cells = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]
    return [[unescape(cell).replace("\u00a0", " ") for cell in row] for row in cells]


def test_data_are_described(report: Path) -> None:
    section = data_section("cells", report)
    facts = facts_of(section)
    assert facts["licence"] == "CC <BY>"
    assert facts["sizes"] == "2,620 of 300 x 300, 3 of 40 x 30 and 1 of other sizes; 2,620 grey and 4 colour"
    assert facts["left out"] == "5, listed in rejected.parquet; 4: <b>no image</b>; 1: the file is empty"
    assert facts["exact duplicates"] == "2, kept on one side"
    assert facts["near duplicates"] == "1,234 images look like another, kept on one side"
    assert leakage_in(section) == (
        "by pixels: none; by looks: none; by order: likely, the training image that looks most like a test image "
        "stands near it for 75 % of 100 test images, where 50 % is chance; module does not keep it together"
    )
    first = "in the first split"
    assert table_of(section, "Classes of cells") == [
        ["class", "images", "share", f"train {first}", f"validation {first}", f"test {first}", "brightness, of 255"],
        ["sound", "120", "50 %", "70", "20", "30", "92 (40 to 150)"],
        ["defective", "120", "50 %", "72", "18", "30", "60 (3 to 100)"],
    ]
    assert "1 pairs of images look the same and are labelled otherwise." in section


def test_test_images_are_counted_by_slice(report: Path) -> None:
    assert table_of(data_section("strange", report), "Slices of strange") == [
        ["sliced by", "test images"],
        ["<i>type</i>", "; ".join(f"{name}: 80" for name in (*HOSTILE, "plain"))],
    ]
    assert "Slices of cells" not in data_section("cells", report)


def test_of_many_slices_the_largest_are_counted_and_those_of_the_class_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = {"1": 5, "2": 1200, "3": 7, "4": 8, "5": 9, "6": 10, "7": 11, "8": 6}
    figures = {"accuracy": 0.7, "auc": None}
    slices = [{"column": "line", "value": value, "images": n, **figures} for value, n in images.items()]
    slices += [{"column": "class", "value": value, "images": 40, **figures} for value in ("defective", "sound")]
    record = make_record("probe", make_outcomes(np.arange(80) % 5 > 0), slices=slices)
    record.details["not_sliced"] = [{"column": "line", "values": 30}]
    write_made_up(record)
    compare(make_params({"probe": ("cells", "lite0", "logistic")}))
    assert table_of(data_section("cells"), "Slices of cells")[1:] == [
        ["line", "2: 1,200; 3: 7; 4: 8; 5: 9; 6: 10; 7: 11; 32 more values"]
    ]


@pytest.mark.parametrize(
    ("keys", "near_duplicates", "leakage"),
    [
        ({}, "kept on one side", "4 test images look like one in another part of the first split"),
        (
            {"split": Split(column="split")},
            "9 of them like one in another part",
            "4 test images look like one in another part",
        ),
        (
            {"near_duplicates": False},
            "9 of them like one in another part of the first split",
            "4 test images look like one in another part of the first split",
        ),
    ],
)
def test_near_duplicates_and_copies_on_both_sides_are_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], near_duplicates: str, leakage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    leaks = {"same_pixels": 3, "near_duplicates": 9, "test_images": 4}
    order = {"near": 30.0, "tested": 60}
    write_json(Path("data/prepared/cells/dataset.json"), {"near_duplicates": 12, "leakage": leaks, "order": order})
    write_made_up(make_record("probe", make_outcomes(np.arange(80) % 5 > 0)))
    dataset = Dataset.model_validate({"images": "photos", "split": SPLIT, **keys})
    compare(make_params({"probe": ("cells", "lite0", "logistic")}, datasets={"cells": dataset}))
    section = data_section("cells")
    assert facts_of(section)["near duplicates"] == f"12 images look like another, {near_duplicates}"
    assert leakage_in(section) == (
        f"by pixels: 3 images, left out because a later part holds them; by looks: {leakage}; by order: none seen, the "
        "training image that looks most like a test image stands near it for 50 % of 60 test images, where 50 % is "
        "chance"
    )


def test_of_several_features_those_are_named_in_which_the_order_of_images_shows_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(Path("data/prepared/cells/dataset.json"), {"order": {"near": 30.0, "tested": 60}})
    for run, near in (("probe", 40.0), ("svm", 59.0), ("tuned", None)):
        record = make_record(run, make_outcomes(np.arange(80) % 5 > 0))
        record.details.update({} if near is None else {"order": {"near": near, "tested": 60}})
        write_made_up(record)
    runs = {"probe": ("cells", "lite0", "logistic"), "svm": ("cells", "inner", "svm"), "tuned": ("cells", "b4", "mlp")}
    compare(make_params(runs))
    assert leakage_in(data_section("cells")) == (
        "by order: none seen, the training image that looks most like a test image stands near it for 50 % of 60 test "
        "images, where 50 % is chance; by order in the features inner: likely, the training image nearest to a test "
        "image stands near it for 98 % of 60 test images, where 50 % is chance; name what it shares as group"
    )


def sheet_greys(alt: str) -> list[int]:
    """Return the grey in the middle of each picture of a contact sheet of one row."""
    found = re.search(f'src="data:image/webp;base64,([^"]+)"[^>]*alt="{alt}"', Path("reports/report.html").read_text())
    assert found is not None
    sheet = Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("L")
    return [int(sheet.getpixel((4 + 196 * n + 96, 100))) for n in range((sheet.width - 4) // 196)]


def test_contact_sheets_show_the_suspects_and_the_pairs_with_other_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As in test_suspects.py: c and then g are taken for the other class.
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9], [0.65, 0.35]] * 2)
    truth, repeats = np.array([0, 0, 0, 0, 1, 1, 1] * 2), np.repeat([0, 1], 7)
    outcomes = Outcomes(["sound", "defective"], list("abcdefg" * 2), repeats, None, truth, p)
    write_made_up(make_record("probe", outcomes))
    facts = {"contradictions": 2, "content_hash": "0" * 64}
    write_json(Path("data/prepared/cells/dataset.json"), facts)
    write_contradictions("cells", [("a", "left-out"), ("b", "d")])
    write_thumbnails("cells", {"a": 10, "b": 30, "c": 60, "d": 90, "e": 1, "f": 2, "g": 200, "left-out": 240})
    compare(make_params({"probe": ("cells", "lite0", "logistic")}))
    assert sheet_greys("Contact sheet of images of cells whose labels look wrong") == pytest.approx([60, 200], abs=4)
    pairs = sheet_greys("Contact sheet of pairs of cells that look the same")
    assert pairs == pytest.approx([10, 240, 30, 90], abs=4)
    write_json(Path("data/prepared/cells/dataset.json"), {**facts, "content_hash": "1" * 64})
    compare(make_params({"probe": ("cells", "lite0", "logistic")}))
    assert 'whose labels look wrong"' not in Path("reports/report.html").read_text()  # pictures of other data


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_page_logs_nothing_asks_for_nothing_and_fits(browser: Browser, report: Path, width: int, scheme: str) -> None:
    found = opened(browser, report, width, color_scheme=scheme)
    found.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert found.logged == []
    assert [url for url in found.requested if not url.startswith("data:")] == [report.as_uri()]
    assert found.ask("document.documentElement.scrollWidth") == width
    assert found.ask("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const light = rgb => { const [r, g, b] = rgb.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = e => e ? over(rgba(getComputedStyle(e).backgroundColor), paper(e.parentElement)) : [255, 255, 255];
  const poor = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement, style = getComputedStyle(e);
    if (!texts.currentNode.data.trim() || !e.getClientRects().length || e.tagName === 'SCRIPT') continue;
    const below = paper(e), ink = e.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(over(rgba(ink), below)), light(below)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${e.tagName} ${ink}: ${texts.currentNode.data.trim()}`);
  }
  return poor;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser: Browser, report: Path, scheme: str) -> None:
    found = opened(browser, report, color_scheme=scheme)
    found.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert found.ask(CONTRAST) == []
    dark = found.ask("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).every(v => v < 60)")
    assert dark == (scheme == "dark")


def test_paper_is_white_and_shows_what_is_open(browser: Browser, report: Path) -> None:
    found = opened(browser, report, color_scheme="dark")
    found.page.emulate_media(media="print")
    assert found.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert found.ask(CONTRAST) == []
    shown = found.ask("[...document.querySelectorAll('.runs details')].map(d => d.checkVisibility() === d.open)")
    assert len(shown) == 6
    assert all(shown)
    assert len(found.page.pdf(format="A4")) > 10_000


def test_page_is_whole_without_its_script(browser: Browser, report: Path) -> None:
    silent = opened(browser, report, java_script_enabled=False)
    texts = [page.page.inner_text("main") for page in (silent, opened(browser, report))]
    assert texts[0] == texts[1]


def test_hostile_names_are_shown_as_they_are_and_run_nothing(browser: Browser, report: Path) -> None:
    found = opened(browser, report)
    found.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    text = found.page.inner_text("#run-three >> xpath=..")
    for name in [*HOSTILE, "<i>type</i>"]:
        assert name in text
    assert "CC <BY>" in found.page.inner_text("body")
    assert found.logged == []
    assert found.ask("document.querySelectorAll('main script, main img:not([src^=\"data:image/webp\"])').length") == 0


def test_the_page_s_own_policy_blocks_foreign_scripts_and_requests(browser: Browser, report: Path) -> None:
    found = opened(browser, report)
    found.ask("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
        new Image().src = 'http://127.0.0.1:9/';
    }""")
    assert found.ask("window.ran === undefined")
    assert len(found.logged) == 2
    assert all("Content Security Policy" in line for line in found.logged)


STRUCTURE = """() => {
  const all = q => [...document.querySelectorAll(q)], problems = [];
  const ids = all('[id]').map(e => e.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach(id => problems.push(`id twice: ${id}`));
  for (const e of all('[aria-labelledby], [aria-describedby]'))
    for (const name of ['aria-labelledby', 'aria-describedby'])
      (e.getAttribute(name) ?? '').split(' ').filter(Boolean)
        .forEach(id => ids.includes(id) || problems.push(`no ${id}`));
  for (const a of all('a[href^="#"]'))
    ids.includes(decodeURIComponent(a.getAttribute('href').slice(1))) || problems.push(`leads nowhere: ${a.outerHTML}`);
  let last = 1;
  for (const h of all('h1, h2, h3, h4, h5, h6')) {
    if (+h.tagName[1] > last + 1) problems.push(`${h.tagName} after h${last}: ${h.textContent}`);
    last = +h.tagName[1];
  }
  all('th:not([scope])').forEach(e => problems.push(`th without scope: ${e.textContent}`));
  all('img').forEach(e => (e.alt && e.width && e.height) || problems.push('img without alt or size'));
  all('svg:not([aria-hidden])').forEach(e => e.getAttribute('aria-label') || problems.push('svg without a name'));
  all('table').forEach(e => e.caption || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
    || e.closest('[role=group]') || problems.push(`table without a name: ${e.textContent.slice(0, 40)}`));
  all('.wide, pre').forEach(e => (e.tabIndex === 0 && e.getAttribute('role') === 'group')
    || problems.push('what scrolls cannot be reached by keyboard'));
  for (const [q, n] of [['h1', 1], ['main', 1], ['body > header', 1], ['body > footer', 1], ['nav', 1]])
    all(q).length === n || problems.push(`${q}: ${all(q).length}`);
  if (document.documentElement.lang !== 'en') problems.push('no language');
  return problems;
}"""


def test_screen_readers_find_names_headings_and_landmarks(browser: Browser, report: Path) -> None:
    assert opened(browser, report).ask(STRUCTURE) == []


def test_first_tab_stop_leads_to_the_results(browser: Browser, report: Path) -> None:
    found = opened(browser, report)
    found.page.keyboard.press("Tab")
    assert found.ask("document.activeElement.getAttribute('href')") == "#main"
    assert found.ask("document.activeElement.getBoundingClientRect().left") >= 0


def test_link_to_a_run_opens_its_details(browser: Browser, report: Path) -> None:
    found = opened(browser, report)
    assert not found.page.is_visible("#run-three")
    found.page.click("#leaderboard-strange + table a[href='#run-three']")
    found.page.wait_for_function("document.getElementById('run-three').closest('details').open")
    assert found.page.is_visible("#run-three")


def test_all_figures_sort_by_a_heading_from_the_keyboard(browser: Browser, report: Path) -> None:
    found = opened(browser, report)
    found.page.click("text=All figures of all runs")
    heading = found.page.locator("table.sortable th", has_text="log loss")
    cell = heading.evaluate("th => th.cellIndex")
    column = f"[...document.querySelectorAll('table.sortable tbody tr')].map(r => +r.cells[{cell}].dataset.value)"
    heading.locator("button").focus()
    found.page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    falling = found.ask(column)
    assert falling == sorted(falling, reverse=True)
    assert len(set(falling)) > 1
    found.page.keyboard.press("Enter")
    assert found.ask(column) == falling[::-1]


def test_same_records_give_the_same_page(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(report.parents[1])
    before = report.read_bytes()
    names = ("cells", "cells-published", "strange")
    assert all(f'id="leaderboard-{name}"'.encode() in before for name in names)
    shutil.rmtree("reports/runs")
    shutil.rmtree("data")
    compare(write_project())
    assert report.read_bytes() == before


def test_pictures_are_inside_the_page_once_and_the_page_stays_small(report: Path) -> None:
    html = report.read_text()
    pictures = re.findall(r'src="data:image/webp;base64,([^"]+)"', html)
    assert len(pictures) == len(set(pictures)) == 4
    assert len(html) < 1_500_000


def test_pictures_too_large_for_a_page_are_scaled_down_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    params = write_project()
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    for i, path in enumerate(sorted(Path("data").rglob("*.png"))):
        Image.fromarray(np.roll(noise, i, axis=0)).save(path)
    compare(params)
    html = Path("reports/report.html").read_text()
    assert 1 <= html.count("data:image/webp") <= 4
    assert len(html) < 5_000_000


def test_page_is_made_without_the_data_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compare(write_project(pictures=False))
    html = Path("reports/report.html").read_text()
    assert "<img" not in html
    assert html.count("not on the machine that made this page") == 3


def test_one_split_and_a_lone_run_are_said_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = make_params({"svm": ("cells", "lite0", "rbf_svm")})
    write_made_up(make_record("svm", make_outcomes(np.arange(80) % 5 > 0, repeats=1)))
    compare(params)
    html = Path("reports/report.html").read_text()
    assert "highest on one split" in html
    assert "name a run under compare.references" in html
    assert "recommended</span>" not in html


def test_runs_that_differ_only_in_the_cut_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cuts = {"b3": "blocks.3", "b4": "blocks.4", "b5": "blocks.5"}
    features = {n: Features(images="photos", backbone="raw/net", image_size=64, cut=cut) for n, cut in cuts.items()}
    features["wide"] = Features(images="photos", backbone="raw/net", image_size=96, cut="blocks.4")
    runs = {f"above-{name}": ("cells", name, "fine_tune") for name in features}
    runs |= {"held": ("cells", "b4", "l2_sp"), "probe": ("cells", "lite0", "logistic")}
    params = make_params(runs, features=features)
    right = np.random.default_rng(0).random((len(runs), 80)) < 0.7
    for at, run in enumerate(runs):
        write_made_up(make_record(run, make_outcomes(right[at]), train_operations=(at + 1) * 10.0**12))
    assert above_cuts(list(runs), params) == [["above-b3", "above-b4", "above-b5"]]
    compare(params)
    html = Path("reports/report.html").read_text()
    chart = re.search(r'aria-label="Accuracy against multiply-adds of extraction and training.*?</svg>', html, re.S)
    assert chart is not None
    (path,) = re.findall(r'class="curve" d="M([^"]+)"', chart[0])
    dots = {(round(float(x)), round(float(y))) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart[0])}
    places = [tuple(round(float(v)) for v in point.split()) for point in path.split("L")]
    assert len(places) == 3
    assert set(places) <= dots
    assert html.count("A line joins runs that differ only in the cut.") == 1

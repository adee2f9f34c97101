"""Values that nobody means, where a file, a folder or a bucket is named: lines that say so, never a traceback."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.cli import guard
from stages.fetch import fetch
from stages.params import read_params
from tests.conftest import cell_files

ODD = [
    *("", ".", "~nobody/x", "*", "[", "\0", "a\0b", "a\nb", "x" * 5000, "é" * 200, "{}", "$HOME", "-"),
    *("params.yaml", "photos", "list.csv", "pack.zip", "/dev/null", "/proc/self/mem", "photos/0.png", "nowhere"),
    *("file://", "file:///nowhere", "memory://", "memory://x", "://", "http://[", "nosuch://x/y", "x://y", "file://\0"),
]
ENTRIES: dict[tuple[str, str], dict[str, Any]] = {
    **{("folder", key): {"path": "photos"} for key in ("path", "root")},
    **{("table", key): {"path": "list.csv"} for key in ("path", "root", "column")},
    **{("archive", key): {"path": "pack.zip"} for key in ("path", "table", "sha256")},
    ("medmnist", "root"): {"path": "list.csv", "name": "bloodmnist"},
    ("torchvision", "root"): {"path": "list.csv", "name": "EuroSAT"},
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("source", "key", "link"),
    [(*at, link) for at in ENTRIES for link in (False, True) if not link or at[0] in ("folder", "table")],
)
def test_odd_values_end_in_lines(
    source: str,
    key: str,
    link: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.sources.shared.remote.WAITS", ())
    (tmp_path / "photos" / "class").mkdir(parents=True)
    content = cell_files(1)[0].read_bytes()
    for file in ("photos/0.png", "photos/class/1.png"):
        Path(file).write_bytes(content)
    Path("list.csv").write_text("path,class\nphotos/0.png,a\n")
    with zipfile.ZipFile("pack.zip", "w") as archive:
        archive.writestr("a/1.png", content)
    ended = []
    for value in ODD:
        entry = {"source": source, **ENTRIES[source, key], key: value, **({"link": True} if link else {})}
        levels: dict[str, Any] = {
            "downloads": {"odd": entry},
            "datasets": {},
            "features": {},
            "runs": {},
            "compare": {},
        }
        Path("params.yaml").write_text(yaml.safe_dump(levels))
        with pytest.raises(SystemExit) as left:
            guard(lambda: fetch("odd", read_params().downloads["odd"]))
        assert left.value.code in (0, 2), value
        assert "Traceback" not in capsys.readouterr().err
        ended.append(left.value.code)
    assert 2 in ended

"""Folders of images: classes, splits that lie in folders, and everything odd that a folder can hold."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from stages.cli import UserError
from stages.files import RAW
from stages.sources import folder as source
from stages.sources._raw import Images, read_images


def lay_out(root: Path, *names: str) -> None:
    """Make files that hold their own name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def fetch(path: str = "photos", **keys: Any) -> Images:
    folder = RAW / "photos"
    folder.mkdir(parents=True)
    source.fetch(source.Params(source="folder", path=path, **keys), folder)
    return read_images("photos")


def rows(images: Images, *columns: str) -> list[tuple[Any, ...]]:
    return list(zip(*(images.table[column].to_pylist() for column in ("sample", *columns)), strict=True))


def test_a_sub_folder_is_a_class(work: Path) -> None:
    lay_out(work / "photos", "dog/1.jpg", "cat/2.PNG", "cat/1.jpeg")
    images = fetch()
    assert rows(images, "class") == [("cat/1.jpeg", "cat"), ("cat/2.PNG", "cat"), ("dog/1.jpg", "dog")]
    assert images.columns == ["class"]
    assert [images.read(row).decode() for row in range(3)] == ["cat/1.jpeg", "cat/2.PNG", "dog/1.jpg"]


@pytest.mark.parametrize("link", [False, True])
def test_linked_and_packed_folders_read_the_same(work: Path, link: bool) -> None:
    lay_out(work / "photos", "a/1.jpg", "a/zwei ü.jpg", "b/new\nline.jpg")
    images = fetch(link=link)
    assert [images.read(row).decode() for row in range(3)] == images.table["sample"].to_pylist()
    assert images.facts["linked"] is link
    assert bool(list((RAW / "photos").glob("*.tar"))) is not link


@pytest.mark.parametrize("pattern", ["{part}/{name}/1.jpg", "{name}/{part}/1.jpg"])
def test_folders_for_training_and_test_are_a_split_on_either_level(work: Path, pattern: str) -> None:
    for part in ("train", "Valid", "test"):
        lay_out(work / "photos", *(pattern.format(part=part, name=name) for name in ("cat", "dog")))
    found = {(name, part) for _, name, part in rows(fetch(), "class", "split")}
    assert found == {(name, part) for name in ("cat", "dog") for part in ("train", "validation", "test")}


def test_a_class_that_is_called_train_is_no_split(work: Path) -> None:
    lay_out(work / "photos", "train/1.jpg", "bus/1.jpg")
    images = fetch()
    assert images.columns == ["class"]
    assert rows(images, "class") == [("bus/1.jpg", "bus"), ("train/1.jpg", "train")]


def test_split_folders_in_some_classes_only_are_no_split(work: Path) -> None:
    lay_out(work / "photos", "cat/train/1.jpg", "cat/test/1.jpg", "dog/1.jpg")
    images = fetch()
    assert images.columns == ["class", "folder"]
    assert rows(images, "folder") == [("cat/test/1.jpg", "test"), ("cat/train/1.jpg", "train"), ("dog/1.jpg", None)]


def test_what_lies_between_class_and_image_is_a_column_to_group_by(work: Path) -> None:
    lay_out(work / "photos", "train/ill/p1/left/1.jpg", "test/ill/p2/1.jpg", "train/well/1.jpg")
    assert rows(fetch(), "class", "split", "folder", "folder_2") == [
        ("test/ill/p2/1.jpg", "ill", "test", "p2", None),
        ("train/ill/p1/left/1.jpg", "ill", "train", "p1", "left"),
        ("train/well/1.jpg", "well", "train", None, None),
    ]


def test_a_folder_beside_those_of_a_split_is_an_error_that_names_it(work: Path) -> None:
    lay_out(work / "photos", "train/cat/1.jpg", "test/cat/2.jpg", "extra/dog/3.jpg")
    with pytest.raises(UserError, match=r"test and train are parts of a split, and extra beside them is none"):
        fetch()


def test_hidden_files_and_folders_are_passed_over(work: Path) -> None:
    lay_out(work / "photos", "a/1.jpg", "a/.2.jpg", ".git/3.jpg", "b/.thumbs/4.jpg", "b/5.jpg", ".6.jpg")
    assert fetch().table["sample"].to_pylist() == ["a/1.jpg", "b/5.jpg"]


def test_other_files_are_counted_and_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(work / "photos", "a/1.jpg", "a/notes.txt", "b/Thumbs.db", "b/2.jpg", "README", "labels.txt")
    images = fetch()
    assert images.table["sample"].to_pylist() == ["a/1.jpg", "b/2.jpg"]
    assert images.facts["passed_over"] == {".db": 1, ".txt": 2, "without suffix": 1}
    message = capsys.readouterr().err
    assert message.startswith("warning: photos: 4 files are passed over, their names are not those of images: 2 .txt")
    assert message.count("\n") == 1


def test_same_class_in_two_spellings_of_unicode_is_one_class(work: Path) -> None:
    lay_out(work / "photos", unicodedata.normalize("NFC", "train/é/1.jpg"), "train/e/1.jpg")
    lay_out(work / "photos", unicodedata.normalize("NFD", "test/é/2.jpg"))
    assert set(fetch().table["class"].to_pylist()) == {"e", unicodedata.normalize("NFC", "é")}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("count", [2, 9])
def test_of_folders_that_are_linked_to_each_other_each_is_read_once(work: Path, count: int) -> None:
    names = [f"{number}/1.jpg" for number in range(count)]
    lay_out(work / "photos", *names)
    for here in range(count):
        for there in range(count):
            (work / f"photos/{here}/to {there}").symlink_to(work / f"photos/{there}", target_is_directory=True)
    assert fetch().table["sample"].to_pylist() == names


def test_a_folder_outside_is_read_by_the_first_link_to_it(work: Path) -> None:
    lay_out(work, "outside/1.jpg", "photos/b/2.jpg")
    for name in ("z", "c", "y"):
        (work / "photos" / name).symlink_to(work / "outside", target_is_directory=True)
    assert fetch().table["sample"].to_pylist() == ["b/2.jpg", "c/1.jpg"]


@pytest.mark.timeout(20)
def test_links_that_lead_back_end(work: Path) -> None:
    lay_out(work / "photos", "a/1.jpg", "b/2.jpg")
    (work / "photos/a/back").symlink_to(work / "photos", target_is_directory=True)
    (work / "photos/b/self").symlink_to(work / "photos/b", target_is_directory=True)
    (work / "photos/a/other").symlink_to(work / "photos/b", target_is_directory=True)
    (work / "photos/b/other").symlink_to(work / "photos/a", target_is_directory=True)
    assert fetch().table["sample"].to_pylist() == ["a/1.jpg", "b/2.jpg"]


def test_a_class_folder_may_be_a_link(work: Path) -> None:
    lay_out(work / "elsewhere", "1.jpg")
    lay_out(work / "photos", "a/1.jpg")
    (work / "photos/b").symlink_to(work / "elsewhere", target_is_directory=True)
    assert rows(fetch(), "class") == [("a/1.jpg", "a"), ("b/1.jpg", "b")]


@pytest.mark.parametrize("target", ["nowhere.jpg", "1.jpg"])  # 1.jpg: a link to itself
def test_a_link_to_nothing_is_left_out_and_listed(work: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "photos/a").mkdir(parents=True)
    (work / "photos/a/1.jpg").symlink_to(target)
    (work / "photos/b").symlink_to("lost folder")
    with pytest.raises(
        UserError, match=r"^photos: none of its 2 images can be used; the first: a/1\.jpg: it is a link"
    ):
        fetch()
    shutil.rmtree(RAW)
    lay_out(work / "photos", "a/2.jpg")
    images = fetch()
    assert images.table["sample"].to_pylist() == ["a/2.jpg"]
    assert images.rejected == [(name, "it is a link to no file or folder") for name in ("a/1.jpg", "b")]
    told = "warning: photos: 2 of 3 images are left out; the first: a/1.jpg: it is a link to no file or folder\n"
    assert capsys.readouterr().err == told


@pytest.mark.timeout(20)
def test_a_pipe_is_no_image(work: Path) -> None:
    lay_out(work / "photos", "a/1.jpg", "b/1.jpg")
    os.mkfifo(work / "photos/a/2.jpg")
    assert fetch().table["sample"].to_pylist() == ["a/1.jpg", "b/1.jpg"]


def test_an_image_outside_of_all_classes_is_left_out_and_listed(work: Path) -> None:
    lay_out(work / "photos", "a/1.jpg", "2.jpg")
    images = fetch()
    assert rows(images, "class") == [("a/1.jpg", "a")]
    assert images.rejected == [("2.jpg", "it lies in no class")]


def test_an_image_outside_of_all_classes_leaves_the_split_as_it_is(work: Path) -> None:
    lay_out(work / "photos", "train/a/1.jpg", "test/a/2.jpg", "train/b/3.jpg", "test/4.jpg", "5.jpg")
    images = fetch()
    assert rows(images, "class", "split") == [
        *(("test/a/2.jpg", "a", "test"), ("train/a/1.jpg", "a", "train"), ("train/b/3.jpg", "b", "train"))
    ]
    assert [name for name, _ in images.rejected] == ["5.jpg", "test/4.jpg"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.jpg", "2.jpg", "3.jpg"], r"^photos/2\.jpg lies in no class: move it into a sub-folder of photos,"),
        (
            ["train/1.jpg", "test/2.jpg"],
            r"^photos/test/2\.jpg lies in no class: move it into a sub-folder of photos/te",
        ),
    ],
)
def test_images_most_of_which_lie_in_no_class_are_an_error(work: Path, names: list[str], message: str) -> None:
    lay_out(work / "photos", *names)
    with pytest.raises(UserError, match=message):
        fetch()


def test_a_folder_without_images_is_an_error(work: Path) -> None:
    lay_out(work / "photos", "a/notes.txt")
    with pytest.raises(UserError, match=r"^params\.yaml: the folder photos holds no images; it takes a sub-folder"):
        fetch()


def test_a_folder_that_is_not_there_or_is_a_file_is_an_error(work: Path) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: the folder photos is not there$"):
        source.find_images(Path("photos"))
    (work / "photos").write_text("")
    with pytest.raises(UserError, match=r"^params\.yaml: the folder photos is no folder$"):
        source.find_images(Path("photos"))

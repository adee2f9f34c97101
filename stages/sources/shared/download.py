"""A file from a URL, known by its hash: what was interrupted goes on, and what is not the file is not used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.cli import UserError, progress, warn
from stages.files import hash_file, in_use
from stages.store.location import cache_root

if TYPE_CHECKING:
    import requests

CHUNK = 2**20
TIMEOUT = 30  # s without a byte


@contextmanager
def downloaded(url: str | None, sha256: str | None, path: Path) -> Iterator[Path]:
    """Give the path of a file from a URL, or without one `path` itself, once its hash is found to be that given.

    A download lies in the private cache until the block ends well; one that is broken off goes on there.
    Raises UserError when there is no such file, when it cannot be reached, and when it has another hash.
    """
    if url is None:
        if not path.is_file():
            raise UserError(f"params.yaml: the file {path} is {'no file' if path.exists() else 'not there'}")
        if sha256 is not None and (found := hash_file(path)) != sha256:
            raise UserError(f"{path} has the sha256 {found}, and params.yaml asks for {sha256}")
        yield path
        return
    assert sha256 is not None
    target = cache_root() / "downloads" / sha256
    with in_use(target):
        whole = target.is_file() and hash_file(target) == sha256
        if target.is_file() and not whole:
            warn(f"{target} was damaged: it is downloaded again")
        if not whole:
            download(url, target, "sha256", sha256)
        yield target
        target.unlink(missing_ok=True)


def download(url: str, target: Path, algorithm: str, expected: str) -> None:
    """Download a file whose hash is known; one that is broken off goes on. Raises UserError."""
    import requests

    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    goes_on = part.is_file()
    try:
        _get(url, part)
        found = hash_file(part, algorithm)
        if goes_on and found != expected:  # it may have been the beginning of another version
            part.unlink()
            _get(url, part)
            found = hash_file(part, algorithm)
    except requests.RequestException as error:
        raise UserError(f"{url} cannot be downloaded: {_reason(error)}; what has come is kept, run it again") from None
    if found != expected:
        part.unlink()
        raise UserError(f"{url} has the {algorithm} {found}, and not {expected}: it is another file than was meant")
    part.replace(target)


def _get(url: str, part: Path) -> None:
    """Append to a file what of a URL is not yet in it, or write it anew where the server sends no parts."""
    import requests

    have = part.stat().st_size if part.is_file() else 0
    # Compressed on the way it could not go on in the middle.
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.range_not_satisfiable:  # all of it is there
            return
        response.raise_for_status()
        chunks = response.iter_content(CHUNK)
        length = response.headers.get("Content-Length")
        with part.open("ab" if response.status_code == requests.codes.partial_content else "wb") as file:
            for chunk in progress(chunks, total=None if length is None else int(length), unit="byte", size=len):
                file.write(chunk)


def _reason(error: requests.RequestException) -> str:
    response = error.response
    return type(error).__name__ if response is None else f"{response.status_code} {response.reason}"

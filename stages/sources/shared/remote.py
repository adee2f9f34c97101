"""Files in a bucket, or behind any other URL that fsspec knows: s3://, gs://, az://, http://, file://.

Keys, regions and endpoints come from the environment, as each service's own tools read them: AWS_PROFILE,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_CONNECTION_STRING and so on.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Iterator
from urllib.parse import quote, unquote, unquote_to_bytes

from stages.cli import UserError
from stages.sources.shared.spelling import spellings

STREAMS = 32
"""Files that are read at once: of one after the other mostly the way there and back would be waited for."""
WAITS = (0.5, 2.0, 8.0)
"""Seconds before each further attempt to read what could not be read; libraries of services have their own besides."""
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}


OUTAGE = 10
"""So many files one after the other that cannot be read are no fault of theirs: what they come from has failed."""


class NotThereError(Exception):
    """There is no such image, or it may not be read; the message says why, and where."""


class UnreadableError(NotThereError):
    """An image may be there and cannot be read: it may be its fault, or that of what it comes from."""


def is_url(root: str) -> bool:
    """Whether a root is a URL, and no folder of this machine."""
    return "://" in root


class Remote:
    """A folder behind a URL."""

    def __init__(self, url: str) -> None:
        """Find out what reads the URL; raises UserError for a URL of no known kind, or whose package is missing."""
        from fsspec.core import url_to_fs

        self.url = url.rstrip("/")
        kind = url.partition("://")[0]
        try:
            self._system, path = url_to_fs(self.url)
        except ImportError:
            package = _PACKAGES.get(kind)
            how = f"pip install {package}" if package else "install the package that reads it"
            raise UserError(f"{url}: what reads {kind}:// is not installed: {how}") from None
        except ValueError as error:
            raise UserError(f"params.yaml: root: {url}: {_first_line(error)}") from None
        except Exception as error:  # each service's library has errors of its own
            raise UserError(f"{url} cannot be reached: {_first_line(error)}") from None
        self._path = path.rstrip("/")
        self._quoted = kind in ("http", "https")

    def names(self) -> Iterator[str]:
        """Yield the names of all files below, from the folder on; raises UserError when it cannot be listed."""
        try:
            self._system.invalidate_cache()
            found = self._system.find(self._path)
        except Exception as error:  # each service's library has errors of its own
            raise UserError(f"{self.url} cannot be listed: {_first_line(error)}") from None
        for path in found:
            name = path.removeprefix(self._path).lstrip("/")
            if name:
                yield "/".join(map(_plain, name.split("/"))) if self._quoted else name

    def name(self, value: str) -> str | None:
        """Return the name, from the folder on, of what is written as a name or a whole URL; None where it is outside.

        >>> Remote("file:///scans").name("a/../b.png"), Remote("file:///scans").name("../b.png")
        ('b.png', None)
        """
        name = posixpath.normpath(value.removeprefix(f"{self.url}/"))
        outside = name in ("..", ".") or name.startswith(("../", "/")) or is_url(value.removeprefix(self.url))
        return None if outside else name

    def read(self, name: str) -> bytes:
        """Return a file's bytes, trying several times; from any thread. Raises NotThereError, and UnreadableError.

        Where there is no such file it may be there with another spelling of the name.
        """
        why = f"it is not there, in {self.url}"
        for spelling in spellings(name):
            try:
                return self._read(spelling)
            except (FileNotFoundError, IsADirectoryError):
                pass
            except PermissionError as error:  # a bucket that may not be listed says so of what is not there, too
                why = f"it cannot be read: {_first_line(error)}"
        raise NotThereError(why)

    def _read(self, name: str) -> bytes:
        """Return a file's bytes; raises UnreadableError, and what says that it is not there or may not be read."""
        path = f"{self._path}/{quote(name, safe='/%') if self._quoted else name}"
        failed: Exception | None = None
        for wait in (0.0, *WAITS):
            time.sleep(wait)
            try:
                return bytes(self._system.cat_file(path))
            except (FileNotFoundError, IsADirectoryError, PermissionError):
                raise
            except Exception as error:  # each service's library has errors of its own
                failed = error
        assert failed is not None
        raise UnreadableError(f"it cannot be read: {_first_line(failed)}")


def _plain(part: str) -> str:
    """Return a part of a URL as a person writes it, or as it is where that, quoted by `_read`, is another."""
    plain = unquote(part)
    return plain if plain.encode() == unquote_to_bytes(part) and not {"%", "/"} & set(plain) else part


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__

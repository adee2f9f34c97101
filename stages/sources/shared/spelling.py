"""How the name of a file may be spelled."""

from __future__ import annotations

import unicodedata


def spellings(name: str) -> list[str]:
    """Return a name, and those of its normal forms of Unicode that differ: what wrote the table may have used another.

    >>> [len(spelling) for spelling in spellings("\u00fc.png")]
    [5, 6]
    """
    return list(dict.fromkeys([name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]))

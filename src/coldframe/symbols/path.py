r"""The symbol path, `_NT_SYMBOL_PATH`, as the Windows debuggers read it.

https://learn.microsoft.com/windows-hardware/drivers/debugger/advanced-symsrv-use. Elements are separated by `;`:

| element | meaning |
|---|---|
| `FOLDER` | a plain folder, or a symbol store |
| `srv*STORE*...*SOURCE` | stores asked from left to right; what comes from a URL is kept in the leftmost store |
| `symsrv*DLL*...` | the same, with the name of a DLL that is of no interest here |
| `cache*FOLDER` | keeps what elements to its right download |

Windows separators are understood (`..\symbols`), keywords in any case. An empty store (`srv**URL`, `cache*`) is the
default one, in coldframe's own cache folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

DEFAULT = ""


@dataclass(frozen=True, slots=True)
class Location:
    """One place to look in: `place` is a folder or a URL; what a URL gives is kept in folder `keep` (or by default)."""

    place: str
    keep: str = DEFAULT

    @property
    def is_url(self) -> bool:
        """Whether it needs the network."""
        return is_url(self.place)

    @property
    def folder(self) -> Path:
        """The folder, in this system's spelling."""
        return local_path(self.place)


def is_url(text: str) -> bool:
    """Whether `text` names a server on the network."""
    return text.lower().startswith(("http://", "https://"))


def is_element(text: str) -> bool:
    """Whether `text` only makes sense as an element of a symbol path (`srv*...`, a URL), not as a file's name."""
    return is_url(text) or text.lower().startswith(("srv*", "symsrv*", "cache*"))


def local_path(text: str) -> Path:
    r"""A folder or file as this system spells it: `\` is a separator, `file://` is left out, `~` is the home."""
    if text.lower().startswith("file://"):
        text = unquote(urlsplit(text).path)
    if os.sep == "/":
        text = text.replace("\\", "/")
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def parse(symbol_path: str) -> list[Location]:
    """The places of a symbol path, in the order in which they are to be asked."""
    found: list[Location] = []
    keep = DEFAULT
    for raw in symbol_path.split(";"):
        element = raw.strip().strip('"')
        keyword, star, rest = element.partition("*")
        match keyword.lower() if star else "":
            case "cache":
                keep = rest.split("*")[0].strip()
                found.append(Location(keep))
            case "srv":
                found += _server(rest.split("*"), keep)
            case "symsrv":
                found += _server(rest.split("*")[1:], keep)
            case _ if element:
                found.append(Location(element, keep))
    return list(dict.fromkeys(found))


def _server(stores: list[str], keep: str) -> list[Location]:
    stores = [store.strip() for store in stores]
    downstream = next((store for store in stores[:-1] if not is_url(store)), None)
    keep = keep if downstream is None else downstream
    return [Location(store, keep) for store in stores if store or store is not stores[-1]]

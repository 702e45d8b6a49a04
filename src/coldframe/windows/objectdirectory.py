r"""The object manager's namespace: `_OBJECT_DIRECTORY` trees from nt!ObpRootDirectoryObject, what WinObj shows.

A directory is an array of hash buckets, each a chain of `_OBJECT_DIRECTORY_ENTRY`. The guest is not trusted: an entry
and a directory are walked once, however they are linked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coldframe.errors import NotFoundError, UnreadableMemoryError
from coldframe.windows.typed import Struct

if TYPE_CHECKING:
    from coldframe.windows.guest import Guest

ROOT = "\\"
DIRECTORY = "Directory"
LINK = "SymbolicLink"
_MOST_ENTRIES = 1 << 18
_DEEPEST = 64
_CALLBACK = 0x10  # _OBJECT_SYMBOLIC_LINK.Flags: the union holds a function instead of the target (10.0.14393 and later)


@dataclass(frozen=True, slots=True)
class NamedObject:
    r"""An object in a directory: its whole path, its body's kernel address, its type's name (`Device`).

    `target` is where a symbolic link leads; None for others, and for a link that a kernel function resolves.
    """

    path: str
    address: int
    type: str
    target: str | None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("\\")[2]


def namespace(guest: Guest, path: str = ROOT) -> Iterator[NamedObject]:
    r"""The objects below `path`, depth first, each directory's by name; see `Objects.directory`."""
    seen: set[int] = set()
    parent, address = "", _root(guest)
    for part in filter(None, path.split("\\")):
        children = _children(guest, parent, address, set())
        found = next((child for child in children if child.name.lower() == part.lower()), None)
        if found is None:
            raise NotFoundError(f"object in {parent or ROOT}", part, (child.name for child in children))
        if found.type != DIRECTORY:
            if found.path.count("\\") < path.rstrip("\\").count("\\"):
                leads = f"; it leads to {found.target}" if found.target else ""
                raise NotFoundError("object", path, hint=f"{found.path} is a {found.type}, no directory{leads}")
            yield found
            return
        parent, address = found.path, found.address
    seen.add(address)
    waiting = _children(guest, parent, address, seen)[::-1]
    while waiting:
        entry = waiting.pop()
        yield entry
        if entry.type == DIRECTORY and entry.address not in seen:
            seen.add(entry.address)
            if entry.path.count("\\") < _DEEPEST:
                waiting += _children(guest, entry.path, entry.address, seen)[::-1]


def _root(guest: Guest) -> int:
    """The root directory's address; raises `NotFoundError` where the kernel's variable cannot be had."""
    variable = guest.variable("ObpRootDirectoryObject")
    if variable is None:
        raise NotFoundError("symbol", "nt!ObpRootDirectoryObject", hint="the kernel's symbols lack the root directory")
    address = guest.typed.pointer(variable)
    if address < guest.kernel_start:
        raise NotFoundError("object directory", ROOT, hint=f"nt!ObpRootDirectoryObject holds {address:#x}")
    return address


def _children(guest: Guest, parent: str, address: int, seen: set[int]) -> list[NamedObject]:
    """The objects in the directory at `address`, by name; entries in `seen` are left out, and those found added."""
    directory = guest.struct("_OBJECT_DIRECTORY", address)
    try:
        buckets = [int(bucket) for bucket in directory.array("HashBuckets")]
    except UnreadableMemoryError as error:
        guest.warn(f"object directory {parent or ROOT}: {error}")
        return []
    found = []
    for bucket in buckets:
        at = bucket
        while at >= guest.kernel_start and at not in seen and len(seen) < _MOST_ENTRIES:
            seen.add(at)
            try:
                entry = guest.struct("_OBJECT_DIRECTORY_ENTRY", at)
                at, body = entry.integer("ChainLink"), entry.integer("Object")
                found.append(_named(guest, parent, body))
            except UnreadableMemoryError as error:
                guest.warn(f"object directory {parent or ROOT}: {error}")
                break
    return sorted(found, key=lambda child: child.path.lower())


def _named(guest: Guest, parent: str, body: int) -> NamedObject:
    objects = guest.objects
    header = guest.struct("_OBJECT_HEADER", body - guest.types.offset("_OBJECT_HEADER", "Body"))
    kind = objects.type_name(header)
    name = objects.own_name(header) or f"(unnamed at {body:#x})"
    target = _target(guest.struct("_OBJECT_SYMBOLIC_LINK", body)) if kind == LINK else None
    return NamedObject(f"{parent}\\{name}", body, kind, target)


def _target(link: Struct) -> str | None:
    if link.has("Callback") and link.has("Flags") and link.integer("Flags") & _CALLBACK:
        return None
    try:
        return link.struct("LinkTarget").text
    except UnreadableMemoryError:
        return None

"""Where symbols are looked for, by the identity that a module's CodeView record names.

A place is a PDB or ISF file, a folder of such files, a symbol store (`ntkrnlmp.pdb/GUIDAGE/ntkrnlmp.pdb`, compressed as
`.pd_` or pointed to by `file.ptr`), a tree of ISF files (`ntkrnlmp.pdb/GUID-AGE.json.xz`), or a symbol server's URL.
The network is used only when the symbol path names a URL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from coldframe.errors import CapabilityError, FormatError, SymbolFileNotFoundError
from coldframe.symbols import cabinet, isf
from coldframe.symbols.cache import TableCache
from coldframe.symbols.files import atomic_write
from coldframe.symbols.model import PdbIdentity, SymbolFile
from coldframe.symbols.path import DEFAULT, Location, is_element, local_path, parse
from coldframe.symbols.pdb import read_identity

_MOST_FILES = 20_000  # in one folder that is searched file by file
_MOST_NOTES = 12
_SUFFIXES = (".pdb", ".pd_", *isf.SUFFIXES)


class SymbolStore:
    """The places where symbols are, asked in order: `paths` first, then those of `nt_symbol_path`.

    `paths` are PDB or ISF files, folders of them (searched by identity, one level of folders deep), symbol stores, or
    elements of a symbol path (`srv*...`). With `offline`, no URL is asked. What `find` gave, or missed, is remembered:
    a new store looks anew. `cache` keeps compiled symbols (see `cache`) and downloads without a store of their own.
    """

    def __init__(
        self,
        paths: Iterable[str | Path] = (),
        nt_symbol_path: str | None = None,
        *,
        offline: bool = False,
        cache: TableCache | None = None,
    ) -> None:
        self.locations: list[Location] = []
        for path in paths:
            text = str(path)
            self.locations += parse(text) if is_element(text) else [Location(text)]
        self.locations += parse(nt_symbol_path or "")
        self.offline = offline
        self.cache = cache or TableCache()
        self._found: dict[PdbIdentity, SymbolFile] = {}
        self._missing: dict[PdbIdentity, str] = {}
        self._identities: dict[tuple[str, int, int], PdbIdentity | str] = {}

    def find(self, identity: PdbIdentity) -> SymbolFile:
        """The symbols of `identity`, mapped from the cache when they were read before.

        Raises `SymbolFileNotFoundError`, its message naming the GUID, the age and each place with what was found there.
        """
        identity = replace(identity, guid=identity.guid.replace("-", "").strip("{}").upper())
        found = self._found.get(identity)
        if found is not None:
            return found
        if identity in self._missing:
            raise SymbolFileNotFoundError(self._missing[identity])
        notes: list[str] = []
        if _is_sane(identity):
            for location in self.locations:
                found = self._ask(location, identity, notes)
                if found is not None:
                    self._found[identity] = found = replace(found, identity=identity)
                    return found
        else:
            notes.append("its name or GUID is no name or GUID: the module's CodeView record is damaged")
        message = self._missing[identity] = _not_found(identity, notes)
        raise SymbolFileNotFoundError(message)

    def named_files(self) -> tuple[list[SymbolFile], list[str]]:
        """The symbols of each place that is itself a PDB or ISF file, and a line for each that cannot be read."""
        files, troubles = [], []
        for location in self.locations:
            if location.is_url or location.place == DEFAULT or not location.folder.is_file():
                continue
            try:
                files.append(self.cache.load(location.folder))
            except (FormatError, CapabilityError) as error:
                troubles.append(str(error))
            except OSError as error:
                troubles.append(f"{location.place} ({error.strerror})")
        return files, troubles

    def _ask(self, location: Location, identity: PdbIdentity, notes: list[str]) -> SymbolFile | None:
        """What one place has, with a note for the error message when it has nothing that fits."""
        if location.is_url:
            return self._ask_server(location, identity, notes)
        folder = self._kept(location.place) if location.place == DEFAULT else location.folder
        try:
            if folder.is_file():
                return self._load_if(folder, identity, notes, keyed=False)
            if not folder.is_dir():
                if location.place != DEFAULT:
                    notes.append(f"{location.place} (no such file or folder)")
                return None
            before = len(notes)
            for path, keyed in _candidates(folder, identity):
                found = self._load_if(path, identity, notes, keyed=keyed)
                if found is not None:
                    return found
        except OSError as error:
            notes.append(f"{location.place} ({error.strerror})")
            return None
        if len(notes) == before:
            notes.append(f"{folder} (nothing)")
        return None

    def _load_if(self, path: Path, identity: PdbIdentity, notes: list[str], *, keyed: bool) -> SymbolFile | None:
        """The symbols in `path` when they are of `identity`; where the place itself names the age, the GUID decides."""
        told = self._identity_of(path)
        if isinstance(told, str):
            if keyed or path.name.lower().startswith(Path(identity.name).stem.lower()):
                notes.append(told)
            return None
        if told.guid != identity.guid or (told.age != identity.age and not keyed):
            if keyed or told.guid == identity.guid or path.name.lower() == identity.name.lower():
                notes.append(f"{path} (has GUID {told.guid}, age {told.age:x})")
            return None
        try:
            return self.cache.load(path)
        except (FormatError, CapabilityError) as error:
            notes.append(str(error))
        except OSError as error:
            notes.append(f"{path} ({error.strerror})")
        return None

    def _identity_of(self, path: Path) -> PdbIdentity | str:
        """Whose symbols `path` holds, by its headers or its name as far as they tell; else what is wrong with it."""
        try:
            told = path.stat()
            key = str(path), told.st_size, told.st_mtime_ns
            if key not in self._identities:
                self._identities[key] = self._read_identity(path)
            return self._identities[key]
        except OSError as error:
            return f"{path} ({error.strerror})"

    def _read_identity(self, path: Path) -> PdbIdentity | str:
        try:
            if path.name.lower().endswith(isf.SUFFIXES):
                return isf.identity_from_name(path) or self.cache.load(path).identity
            with path.open("rb") as stream:
                packed = stream.read(4) == cabinet.MAGIC
            return self.cache.load(path).identity if packed else read_identity(path)
        except (FormatError, CapabilityError) as error:
            return str(error)

    # Symbol servers

    def _kept(self, keep: str) -> Path:
        """The folder that downloads go to."""
        return local_path(keep) if keep else (self.cache.folder or Path()) / "downloads"

    def _ask_server(self, location: Location, identity: PdbIdentity, notes: list[str]) -> SymbolFile | None:
        """Download from the server into the store that goes with it."""
        from coldframe.symbols.download import DownloadError, fetch  # noqa: PLC0415 - HTTP is slow to load

        folder = self._kept(location.keep) / identity.name / _key(identity)
        kept = folder / identity.name
        if kept.is_file():
            found = self._load_if(kept, identity, notes, keyed=True)
            if found is not None:
                return found
        if self.offline:
            notes.append(f"{location.place} (not asked: offline)")
            return None

        def check(path: Path) -> None:
            with path.open("rb") as stream:
                start = stream.read(4)
            if start == cabinet.MAGIC:
                atomic_write(path, cabinet.unpack(path))
            told = read_identity(path)
            if told.guid != identity.guid:
                raise FormatError(f"it gave a PDB with GUID {told.guid}")

        reasons: list[str] = []
        for name in (identity.name, f"{identity.name[:-1]}_"):
            url = f"{location.place.rstrip('/')}/{quote(identity.name)}/{_key(identity)}/{quote(name)}"
            try:
                fetch(url, kept, check)
            except DownloadError as error:
                reasons.append(str(error))
            except (FormatError, CapabilityError) as error:
                reasons.append(f"gave no such PDB: {str(error).rpartition(': ')[2]}")
            else:
                return self._load_if(kept, identity, notes, keyed=True)
        notes.append(f"{location.place} ({', '.join(dict.fromkeys(reasons))})")
        return None


def _key(identity: PdbIdentity) -> str:
    """The folder's name in a symbol store: GUID and age, both in hex, joined."""
    return f"{identity.guid}{identity.age:X}"


def _is_sane(identity: PdbIdentity) -> bool:
    """Whether the name can be a file's: it may come from a hostile guest and becomes part of paths and URLs."""
    name = identity.name
    return (
        0 < len(os.fsencode(name)) <= 200
        and name.isprintable()
        and name not in (".", "..")
        and not set(name) & set('/\\:*?"<>|')
        and re.fullmatch("[0-9A-F]{32}", identity.guid) is not None
        and 0 <= identity.age < 1 << 32
    )


def _candidates(folder: Path, identity: PdbIdentity) -> Iterator[tuple[Path, bool]]:
    """Files of `folder` that may hold the symbols, and whether their place itself names the GUID and age."""
    seen: set[Path] = set()
    for path in _keyed(folder, identity):
        if path not in seen and path.is_file():
            seen.add(path)
            yield path, True
    for path in (folder / identity.name, folder / "symbols" / "pdb" / identity.name, *_files(folder)):
        if path not in seen and path.is_file():
            seen.add(path)
            yield path, False


def _keyed(folder: Path, identity: PdbIdentity) -> Iterator[Path]:
    """Where a symbol store or a tree of ISF files keeps `identity`."""
    key, name = _key(identity), identity.name
    trees = [folder / name, folder / name.lower()]
    if (folder / "index2.txt").is_file():  # a store in two tiers
        trees += [folder / name[:2] / name, folder / name[:2].lower() / name.lower()]
    for tree in trees:
        for held in (tree / key, tree / key.lower()):
            for file in (name, name.lower(), f"{name[:-1]}_", f"{name[:-1].lower()}_"):
                yield held / file
            pointer = held / "file.ptr"
            if pointer.is_file():
                yield from _pointed(pointer)
    for tree in (*trees, folder, folder / "windows" / name):
        for suffix in isf.SUFFIXES:
            yield tree / f"{identity.guid}-{identity.age}{suffix}"


def _pointed(pointer: Path) -> Iterator[Path]:
    """The file that a `file.ptr` names: `PATH:` and a path, or only a path; `MSG:` says that there is none."""
    with pointer.open(encoding="utf-8", errors="replace") as stream:
        text = stream.read(4096).strip().strip("\0").split("\n")[0].strip()
    if text and not text.upper().startswith("MSG:") and "\0" not in text:
        yield pointer.parent / local_path(text[5:].strip() if text.upper().startswith("PATH:") else text)


def _files(folder: Path) -> Iterator[Path]:
    """Symbol files in `folder` and in the folders in it, in order of their names, at most `_MOST_FILES` entries."""
    for path in islice(_entries(folder), _MOST_FILES):
        if path.name.lower().endswith(_SUFFIXES):
            yield path


def _entries(folder: Path) -> Iterator[Path]:
    below = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            below.append(Path(entry.path))
        else:
            yield Path(entry.path)
    for inner in below:
        try:
            yield from sorted(Path(entry.path) for entry in os.scandir(inner) if not entry.is_dir())
        except OSError:
            continue


def _not_found(identity: PdbIdentity, notes: list[str]) -> str:
    """One line: what was wanted, where it was looked for, what would help."""
    shown = notes[:_MOST_NOTES] + ([f"and {len(notes) - _MOST_NOTES} more"] if len(notes) > _MOST_NOTES else [])
    looked = f"looked in {'; '.join(shown)}" if shown else "there is no place to look in"
    return (
        f"no symbols for {identity.name!r}, GUID {identity.guid}, age {identity.age:x}: {looked}; "
        "give its PDB or ISF file with --symbols, or let _NT_SYMBOL_PATH name a server (srv*FOLDER*URL)"
    )

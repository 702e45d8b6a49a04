"""VMware: the memory file `.vmem`, and the state (`.vmss`, `.vmsn`) beside it, or with the memory inside.

Format, as Volatility's vmware layer and the crash utility's vmware_vmss.c read it: a header of 12 bytes, groups of 80
(name, offset, size), in each group tags (flags, length of the name, name, indices, data) until a tag of two zeros. The
group "memory" says where memory belongs and may hold it; the group "cpu" has the registers of each vCPU.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from coldframe.errors import FormatError
from coldframe.images.image import ImageFile, PhysicalImage, whole_runs
from coldframe.memory import PAGE_SIZE, PhysicalMemory

FORMAT = "VMware"
MAGICS = (
    *(b"\xd0\xbe\xd2\xbe", b"\xd0\xbe\xd0\xbe"),
    *(b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xba\xd2\xba"),
)
_NARROW = MAGICS[:2]  # sizes of blocks have four bytes
_HEADER, _GROUP = struct.Struct("<4sII"), struct.Struct("<64sQQ")
_MOST_GROUPS, _MOST_TAGS, _MOST_REGIONS, _MOST_VCPUS = 1 << 12, 1 << 16, 1 << 10, 1 << 10
_COMPRESSED, _BLOCK = 62, 63  # sizes that stand for "the size follows"
_HIGHEST_PAGE = 1 << 40
_GENERAL = (
    *("rax", "rcx", "rdx", "rbx", "rbp", "rsp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
"""As the block "gpregs" has them."""
_PLAIN: Mapping[str, str] = {name: name for name in (*_GENERAL, "rip")} | {"eflags": "eflags", "EFLAGS": "eflags"}
_CONTROL = (0, 2, 3, 4)


class _Tag(NamedTuple):
    """A tag: its data is `size` bytes at `offset` of the file."""

    group: str
    name: str
    indices: tuple[int, ...]
    offset: int
    size: int
    compressed: bool = False


@dataclass(slots=True)
class _State:
    """What the tags tell: regions (first page, its page in the memory, pages), the memory inside, registers."""

    regions: list[tuple[int, int, int]] = field(default_factory=list)
    memory: _Tag | None = None
    registers: list[dict[str, int]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def state_beside(file: ImageFile) -> ImageFile | None:
    """The `.vmss` or `.vmsn` file of the same name beside a `.vmem` file, or None."""
    return _beside(file, (".vmss", ".vmsn")) if file.path.suffix.lower() == ".vmem" else None


def _beside(file: ImageFile, suffixes: Sequence[str]) -> ImageFile | None:
    for suffix in suffixes:
        path: Path = file.path.with_suffix(suffix)
        if path != file.path and path.is_file() and path.stat().st_size:
            return ImageFile.map(path)
    return None


def open_state(file: ImageFile) -> PhysicalImage:
    """The memory in a state file, or in the `.vmem` beside it; raises `FormatError` where there is none."""
    state = _read(file)
    if state.memory is None:
        beside = _beside(file, (".vmem",))
        if beside is None:
            raise FormatError(
                f"{file.path} is the state of a VMware machine without its memory: that is in a .vmem file of the same "
                "name, which is not beside it"
            )
        return _open(beside, 0, len(beside.data), state, file)
    if state.memory.compressed:
        raise FormatError(
            f"{file.path} has the memory compressed, which is not read: suspend the machine with mainMem.useNamedFile"
        )
    return _open(file, state.memory.offset, state.memory.size, state, file)


def open_vmem(file: ImageFile, state: ImageFile) -> PhysicalImage:
    """The memory in `file`, as the tags of the group "memory" in `state` place it; raises `FormatError`."""
    return _open(file, 0, len(file.data), _read(state), state)


def _open(file: ImageFile, offset: int, size: int, state: _State, told_by: ImageFile) -> PhysicalImage:
    """`size` bytes of memory at `offset` of `file`."""
    warnings = state.warnings
    wanted = [
        (place * PAGE_SIZE, min(pages * PAGE_SIZE, size - page * PAGE_SIZE), offset + page * PAGE_SIZE)
        for place, page, pages in state.regions
        if page * PAGE_SIZE < size
    ]
    if not state.regions:  # a guest whose memory has no hole
        wanted = [(0, size // PAGE_SIZE * PAGE_SIZE, offset)]
    runs = whole_runs(file, wanted, warnings)
    if not runs:
        raise FormatError(f"{file.path} has none of the memory that {told_by.path} places")
    registers = [known for known in state.registers if known]
    return PhysicalImage(PhysicalMemory(runs), FORMAT, registers, warnings)


def _read(file: ImageFile) -> _State:
    """What the state file tells; one that is damaged behind the memory's place is read so far."""
    state = _State()
    regions: dict[str, dict[int, int]] = {"regionPPN": {}, "regionPageNum": {}, "regionSize": {}}
    vcpus: dict[int, dict[str, int]] = {}
    try:
        for tag in _tags(file):
            if tag.group == "cpu":
                _register(file, tag, vcpus)
            elif tag.name == "Memory" and state.memory is None:
                state.memory = tag
            elif tag.name in regions and len(tag.indices) == 1 and tag.indices[0] < _MOST_REGIONS:
                value = _value(file, tag)
                if value < _HIGHEST_PAGE:
                    regions[tag.name][tag.indices[0]] = value
    except FormatError as error:
        if state.memory is None and not regions["regionSize"]:
            raise
        state.warnings.append(f"{error}; what follows is left out")
    places, pages, sizes = regions.values()
    whole = sorted(places.keys() & pages.keys() & sizes.keys())
    state.regions = [(places[number], pages[number], sizes[number]) for number in whole]
    state.registers = [vcpus[number] for number in sorted(vcpus)]
    return state


def _value(file: ImageFile, tag: _Tag) -> int:
    return int.from_bytes(file.at(tag.offset, tag.size if tag.size <= 8 else 0, f"the tag {tag.name}"), "little")


def _register(file: ImageFile, tag: _Tag, vcpus: dict[int, dict[str, int]]) -> None:
    """Note a register of the group "cpu", a tag of its own or within a block of them."""
    if not tag.indices or tag.indices[0] >= _MOST_VCPUS:
        return
    known = vcpus.setdefault(tag.indices[0], {})
    data = bytes(file.at(tag.offset, min(tag.size, 256), f"the tag {tag.name}"))
    if tag.name == "gpregs" and len(data) == 8 * len(_GENERAL):
        known |= zip(_GENERAL, struct.unpack(f"<{len(_GENERAL)}Q", data), strict=True)
    elif tag.name == "CR64" and len(tag.indices) == 1 and len(data) >= 40:
        known |= {f"cr{number}": int.from_bytes(data[8 * number : 8 * number + 8], "little") for number in _CONTROL}
    elif tag.name == "CR64" and len(tag.indices) == 2 and tag.indices[1] in _CONTROL:
        known[f"cr{tag.indices[1]}"] = _value(file, tag)
    elif tag.name == "IDTR" and len(tag.indices) == 1 and len(data) == 10:
        known["idt_limit"], known["idt_base"] = struct.unpack("<HQ", data)
    elif tag.name == "IDTR" and len(tag.indices) == 2 and tag.indices[1] in (1, 2):  # its lower and upper half
        half = (_value(file, tag) & 0xFFFFFFFF) << 32 * (tag.indices[1] - 1)
        known["idt_base"] = known.get("idt_base", 0) | half
    elif tag.name in _PLAIN and tag.size <= 8:
        known[_PLAIN[tag.name]] = _value(file, tag)


def _tags(state: ImageFile) -> Iterator[_Tag]:
    """Each tag of the groups "memory" and "cpu"."""
    magic, _, count = _HEADER.unpack(state.at(0, _HEADER.size, "the header of a VMware state file"))
    if magic not in MAGICS or count > _MOST_GROUPS:
        raise FormatError(f"{state.path} is no VMware state: it begins with {magic!r} and {count} groups")
    width = 4 if magic in _NARROW else 8
    left = _MOST_TAGS
    groups = []
    for number in range(count):
        at = _HEADER.size + number * _GROUP.size
        text, offset, _ = _GROUP.unpack(state.at(at, _GROUP.size, "a group of a VMware state file"))
        groups.append((text.partition(b"\0")[0].decode("latin-1"), offset))
    for group, start in sorted(
        (found for found in groups if found[0] in ("cpu", "memory")), key=lambda found: found[0]
    ):
        offset = start
        while left:
            left -= 1
            flags, length = state.at(offset, 2, f"a tag of the group {group}")
            if not flags and not length:
                break
            name = bytes(state.at(offset + 2, length, "a tag's name")).decode("latin-1")
            offset += 2 + length
            indices = struct.unpack(f"<{flags >> 6}I", state.at(offset, 4 * (flags >> 6), "a tag's indices"))
            offset += 4 * (flags >> 6)
            size = flags & 0x3F
            if size in (_BLOCK, _COMPRESSED):  # size in the file, size in memory, how much padding, padding, data
                compressed = size == _COMPRESSED
                size = int.from_bytes(state.at(offset, width, "a tag's size"), "little")
                padding = int.from_bytes(state.at(offset + 2 * width, 2, "a tag's padding"), "little")
                offset += 2 * width + 2 + padding
                yield _Tag(group, name, indices, offset, size, compressed)
            else:
                yield _Tag(group, name, indices, offset, size)
            offset += size

"""VMware: the memory file `.vmem`, and the state beside it (`.vmss`, `.vmsn`) that says where its parts belong.

Format, as Volatility's vmware layer and LeechCore read it: a header of 12 bytes, groups of 80 (name, offset, size), in
each group tags (flags, length of the name, name, indices, data) until a tag of two zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from coldframe.errors import FormatError
from coldframe.images.image import ImageFile, PhysicalImage, whole_runs
from coldframe.memory import PAGE_SIZE, PhysicalMemory

FORMAT = "VMware"
MAGICS = (b"\xd0\xbe\xd2\xbe", b"\xd1\xba\xd1\xba", b"\xd2\xbe\xd2\xbe", b"\xd3\xbe\xd3\xbe")
_HEADER, _GROUP = struct.Struct("<4sII"), struct.Struct("<64sQQ")
_MOST_GROUPS, _MOST_TAGS, _MOST_REGIONS = 1 << 12, 1 << 16, 1 << 10
_LONG = (62, 63)  # sizes that stand for "the size follows"
_HIGHEST_PAGE = 1 << 40


def state_beside(file: ImageFile) -> ImageFile | None:
    """The `.vmss` or `.vmsn` file of the same name beside a `.vmem` file, or None."""
    if file.path.suffix.lower() != ".vmem":
        return None
    for suffix in (".vmss", ".vmsn"):
        path = file.path.with_suffix(suffix)
        if path.is_file() and path.stat().st_size:
            return ImageFile.map(path)
    return None


def open_vmem(file: ImageFile, state: ImageFile) -> PhysicalImage:
    """The memory in `file`, as the tags of the group "memory" in `state` place it; raises `FormatError`."""
    regions: dict[str, dict[int, int]] = {"regionPPN": {}, "regionPageNum": {}, "regionSize": {}}
    for name, indices, value in _tags(state):
        if name in regions and len(indices) == 1 and indices[0] < _MOST_REGIONS and value < _HIGHEST_PAGE:
            regions[name][indices[0]] = value
    places, pages, sizes = regions.values()
    whole = sorted(places.keys() & pages.keys() & sizes.keys())
    wanted = [(places[n] * PAGE_SIZE, sizes[n] * PAGE_SIZE, pages[n] * PAGE_SIZE) for n in whole]
    warnings: list[str] = []
    if not wanted:  # a guest whose memory has no hole
        wanted = [(0, len(file.data) // PAGE_SIZE * PAGE_SIZE, 0)]
    runs = whole_runs(file, wanted, warnings)
    if not runs:
        raise FormatError(f"{file.path} has none of the memory that {state.path} places")
    return PhysicalImage(PhysicalMemory(runs), FORMAT, warnings=warnings)


def _tags(state: ImageFile) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Name, indices and value of each tag of the group "memory"; of long ones (other data) nothing."""
    magic, _, count = _HEADER.unpack(state.at(0, _HEADER.size, "the header of a VMware state file"))
    if magic not in MAGICS or count > _MOST_GROUPS:
        raise FormatError(f"{state.path} is no VMware state: it begins with {magic!r} and {count} groups")
    width = 4 if magic == MAGICS[0] else 8
    left = _MOST_TAGS
    for number in range(count):
        at = _HEADER.size + number * _GROUP.size
        name, offset, _ = _GROUP.unpack(state.at(at, _GROUP.size, "a group of a VMware state file"))
        if name.rstrip(b"\0") != b"memory":
            continue
        while left:
            left -= 1
            flags, length = state.at(offset, 2, "a tag of the group memory")
            if not flags and not length:
                break
            text = bytes(state.at(offset + 2, length, "a tag's name"))
            offset += 2 + length
            indices = struct.unpack(f"<{flags >> 6}I", state.at(offset, 4 * (flags >> 6), "a tag's indices"))
            offset += 4 * (flags >> 6)
            size = flags & 0x3F
            if size in _LONG:  # size in the file, size in memory, two bytes of padding, data
                size = int.from_bytes(state.at(offset, width, "a tag's size"), "little")
                offset += 2 * width + 2 + size
                continue
            value = int.from_bytes(state.at(offset, size, "a tag's data"), "little")
            offset += size
            yield text.decode("latin-1"), indices, value

"""The devices' part of a QEMU migration stream: vCPU registers, found by the description at the stream's end.

That description is JSON (QEMU's migration/vmstate.c): for each section, in order, its fields with their sizes. So the
sections can be walked without knowing the devices, and each one's footer proves that the walk is right. Field names
are those of QEMU's target/i386/machine.c (`vmstate_x86_cpu`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence

from coldframe.errors import FormatError
from coldframe.images.image import ImageFile

_FULL, _SUBSECTION, _DESCRIPTION, _FOOTER = 0x04, 0x05, 0x06, 0x7E
_MOST_JSON, _DEEPEST = 64 << 20, 16
_MOST_DEVICES = 1 << 14
_GENERAL = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
_SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_SEGMENT = struct.Struct(">IQII")
_PLAIN: Mapping[str, str] = {
    "env.eip": "rip",
    "env.eflags": "eflags",
    "env.cr[0]": "cr0",
    "env.cr[2]": "cr2",
    "env.cr[3]": "cr3",
    "env.cr[4]": "cr4",
    "env.efer": "efer",
    "env.lstar": "lstar",
    "env.kernelgsbase": "k_gs_base",
    "env.mxcsr": "mxcsr",
}


def registers(file: ImageFile, at: int, warnings: list[str]) -> Sequence[Mapping[str, int]]:
    """The registers of each vCPU from the sections at `at` on; none, with a warning, where they cannot be followed."""
    try:
        return [_cpu(fields) for name, fields in _devices(file, at, _description(file)) if name == "cpu"]
    except (FormatError, KeyError, TypeError, ValueError, struct.error) as error:
        warnings.append(f"{file.path}: the vCPUs' registers cannot be read: {error}")
        return []


def _description(file: ImageFile) -> Sequence[Mapping[str, object]]:
    """The list of devices in the JSON at the end of the file."""
    end = len(file.data)
    low = max(0, end - _MOST_JSON)
    tail = bytes(file.data[low:])
    at = len(tail)
    while (at := tail.rfind(bytes([0, _DESCRIPTION]), 0, at)) >= 0:
        if at + 6 <= len(tail) and int.from_bytes(tail[at + 2 : at + 6], "big") == len(tail) - at - 6:
            try:
                devices = json.loads(tail[at + 6 :])["devices"]
            except (ValueError, RecursionError, KeyError, TypeError):
                break
            if isinstance(devices, list) and len(devices) <= _MOST_DEVICES:
                return devices
            break
        at += 1  # the next search ends before this byte
    raise FormatError("the stream ends without a description of its devices")


def _devices(
    file: ImageFile, at: int, described: Sequence[Mapping[str, object]]
) -> Iterator[tuple[str, Mapping[str, tuple[int, bytes]]]]:
    """Name and fields (element size, bytes) of each device's section."""
    for device in described:
        kind, number, length = struct.unpack(">BIB", file.at(at, 6, "a device's section"))
        name = bytes(file.at(at + 6, length, "a device's name")).decode("latin-1")
        if kind != _FULL or name != device["name"]:
            raise FormatError(f"expected the section of {device['name']!r} at {at:#x}, found {kind} {name!r}")
        at += 6 + length + 8
        fields: dict[str, tuple[int, bytes]] = {}
        for field, size, count in _fields(device):
            fields[field] = (size, bytes(file.at(at, size * count, "a device's field")))
            at += size * count
        at += _subsections(device, 0)
        if bytes(file.at(at, 5, "a section's footer")) != struct.pack(">BI", _FOOTER, number):
            raise FormatError(f"the section of {name!r} does not end at {at:#x} as it is described")
        at += 5
        yield name, fields


def _fields(record: Mapping[str, object]) -> Iterator[tuple[str, int, int]]:
    """Name, size of an element and number of elements of each field."""
    fields = record.get("fields", [])
    if not isinstance(fields, list):
        raise FormatError("a device's fields are no list")
    for field in fields:
        size, count = field["size"], field.get("array_len", 1)
        if not (isinstance(size, int) and isinstance(count, int) and 0 <= size < 1 << 32 and 0 <= count < 1 << 24):
            raise FormatError(f"the field {field['name']!r} has {count} elements of {size} bytes")
        yield str(field["name"]), size, count


def _subsections(record: Mapping[str, object], depth: int) -> int:
    """How many bytes the subsections take: each a byte, its name, a version, its fields and its own subsections."""
    inner = record.get("subsections", [])
    if not isinstance(inner, list) or depth > _DEEPEST:
        raise FormatError("a device's subsections are no list, or too deep")
    total = 0
    for subsection in inner:
        total += 2 + len(str(subsection["vmsd_name"])) + 4
        total += sum(size * count for _, size, count in _fields(subsection))
        total += _subsections(subsection, depth + 1)
    return total


def _cpu(fields: Mapping[str, tuple[int, bytes]]) -> Mapping[str, int]:
    """The registers of one vCPU by their usual names."""
    size, values = fields["env.regs"]
    general = [int.from_bytes(values[at : at + size], "big") for at in range(0, len(values), size)]
    found = dict(zip(_GENERAL, general, strict=False))
    found |= {name: int.from_bytes(fields[field][1], "big") for field, name in _PLAIN.items() if field in fields}
    for name, (selector, base, _, _) in zip(_SEGMENTS, _SEGMENT.iter_unpack(fields["env.segs"][1]), strict=True):
        found |= {name: selector, f"{name}_base": base}
    for name in ("gdt", "idt"):
        _, base, limit, _ = _SEGMENT.unpack(fields[f"env.{name}"][1])
        found |= {f"{name}_base": base, f"{name}_limit": limit}
    return found

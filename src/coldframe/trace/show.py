"""Arguments of an event in the words of a person reading along."""

from __future__ import annotations

from collections.abc import Mapping

from coldframe.trace.decode import Value

_SHOWN_BYTES = 48


def argument_lines(value: Value) -> list[str]:
    """One decoded argument: the bytes of a buffer on a line of their own."""
    if isinstance(value, Mapping) and "data" in value and "error" not in value:
        return [f"{value['address']} {_extent(value)}", _shown(value)]
    return [argument_text(value)]


def argument_text(value: Value) -> str:
    r"""One decoded argument on one line: `0x54 File \Users\a.txt`, `0x1f0000 812 bytes (valid, transition): b'...'`."""
    if not isinstance(value, Mapping):
        return str(value)
    place = str(value.get("handle", value.get("address", "")))
    if "error" in value:
        return f"{place} ({value['error']})"
    if "data" in value:
        return f"{place} {_extent(value)}: {_shown(value)}"
    if "text" in value:
        return f'{place} "{value["text"]}"'
    if "handle" in value:
        return " ".join(str(part) for part in (place, value.get("type"), value.get("name")) if part)
    if "root" in value:
        root = value["root"]
        return f'{place} "{value["name"]}"' + (f" under {argument_text(root)}" if root else "")
    rest = ", ".join(
        f"{key} {part}" if key != "value" else str(part) for key, part in value.items() if key != "address"
    )
    return f"{place} -> {rest}"


def _extent(value: Mapping[str, Value]) -> str:
    """How many bytes a buffer has, and in which states its pages were found."""
    pages = value.get("pages")
    states = [
        " ".join([str(page["state"]), *(f"via {via}" for via in _texts(page["via"]))])
        for page in (pages if isinstance(pages, list) else [])
        if isinstance(page, dict)
    ]
    missing = ", parts missing" if value.get("missing") else ""
    return f"{value['size']} bytes ({', '.join(dict.fromkeys(states))}{missing})"


def _shown(value: Mapping[str, Value]) -> str:
    """The first bytes of a buffer."""
    data = value["data"]
    shown = bytes.fromhex(data[: 2 * _SHOWN_BYTES]) if isinstance(data, str) else b""
    more = "..." if isinstance(data, str) and len(data) > 2 * _SHOWN_BYTES else ""
    return f"{shown!r}{more}"


def _texts(value: Value) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []

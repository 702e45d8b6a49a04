"""`--disk`, `--pagefile`, `--no-disk`: where pages that left RAM are read from, for each verb that opens a guest."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from coldframe import target as targets
from coldframe.errors import CapabilityError, UsageError
from coldframe.target import AbsentPagesFrom

if TYPE_CHECKING:
    from coldframe.debug import LiveGuest
    from coldframe.windows import Guest

_MOST_FILES = 16  # 4 bits of a PTE name one


_SAID: ContextVar[AbsentPagesFrom] = ContextVar("absent pages")
_HELD: ContextVar[Guest | None] = ContextVar("the guest that a shell holds open", default=None)

Disk = Annotated[
    list[str],
    typer.Option(
        "--disk",
        metavar="IMAGE",
        default_factory=list,
        show_default=False,
        help="The guest's disk, for pages that left RAM: qcow2 (@SNAPSHOT too), vmdk, vdi, vhdx, raw; repeatable.",
    ),
]
Pagefile = Annotated[
    list[str],
    typer.Option(
        "--pagefile",
        metavar="N=FILE",
        default_factory=list,
        show_default=False,
        help="A copy of paging file number N; repeatable.",
    ),
]
NoDisk = Annotated[bool, typer.Option("--no-disk", help="Read RAM alone, not a running guest's disk.")]


def said() -> AbsentPagesFrom:
    """What the verb that runs was told of pages that left RAM."""
    return _SAID.get(AbsentPagesFrom())


def open_target(target: str, *, symbols: list[Path]) -> AbstractContextManager[Guest]:
    """As `coldframe.target.open_target`, with the disks and paging files that the call named."""
    held = _HELD.get()
    if held is not None:
        return nullcontext(held)
    return targets.open_target(target, symbols=symbols, **said())


def attach(target: str, *, symbols: list[Path]) -> AbstractContextManager[LiveGuest]:
    """As `coldframe.target.attach`, likewise."""
    held = _HELD.get()
    if held is not None:
        from coldframe.debug import LiveGuest  # noqa: PLC0415 - only a guest that is held open needs it here

        if not isinstance(held, LiveGuest):
            raise CapabilityError(f"this needs a running guest, and {target} is a memory image")
        return nullcontext(held)
    return targets.attach(target, symbols=symbols, **said())


@contextmanager
def holding_open(guest: Guest) -> Iterator[None]:
    """In this block every verb works on `guest`, whatever target it is given, and leaves it open."""
    token = _HELD.set(guest)
    try:
        yield
    finally:
        _HELD.reset(token)


def add_options(app: typer.Typer) -> None:
    """Give the three options to every verb of `app` that opens a guest: one that has a target and symbols."""
    for command in app.registered_commands:
        if command.callback is not None and {"target", "symbols"} <= set(
            inspect.signature(command.callback).parameters
        ):
            command.callback = _with_options(command.callback)


def _with_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(verb)
    def called(*, disk: list[str], pagefile: list[str], no_disk: bool, **words: Any) -> Any:
        token = _SAID.set(AbsentPagesFrom(disk=disk, pagefiles=_numbered(pagefile), no_disk=no_disk))
        try:
            return verb(**words)
        finally:
            _SAID.reset(token)

    own = inspect.signature(verb)
    hints = get_type_hints(verb, include_extras=True)
    parameters = [each.replace(annotation=hints[name]) for name, each in own.parameters.items()]
    for name, kind, default in (("disk", Disk, None), ("pagefile", Pagefile, None), ("no_disk", NoDisk, False)):
        parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
        parameters.append(parameter if default is None else parameter.replace(default=default))
    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _numbered(words: list[str]) -> dict[int, targets.PathLike]:
    """`N=FILE` each: the paging files by number."""
    found: dict[int, targets.PathLike] = {}
    for word in words:
        number, equals, name = word.partition("=")
        if not equals or not number.strip().isdigit() or int(number) >= _MOST_FILES or not name:
            raise UsageError(f"expected --pagefile N=FILE with N from 0 to {_MOST_FILES - 1}, found {word!r}")
        if not Path(name).is_file():
            raise UsageError(f"expected a paging file at {name}, found no such file")
        found[int(number)] = Path(name)
    return found

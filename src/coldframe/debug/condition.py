"""Conditions of breakpoints as users write them: a function of the hit, or a Python expression over one.

Names in it: `hit`, `process`, `thread`, `registers`, `memory`, `args` (by number: `args[6] > 100`), and the function's
parameters by the names of its prototype (`Length > 100`). It is the user's own expression, run in the user's process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import TYPE_CHECKING, TypeAlias

from coldframe.debug.prototypes import prototype
from coldframe.errors import ColdframeError, UsageError

if TYPE_CHECKING:
    from coldframe.debug.hit import Hit

Condition: TypeAlias = "Callable[[Hit], bool]"
"""Whether a hit is wanted; the guest is paused while it is asked."""

_ATTRIBUTES = ("process", "thread", "registers", "memory", "args", "vcpu", "address")


class Names(Mapping[str, object]):
    """The names that a condition may use, each read from the guest when it is used."""

    def __init__(self, hit: Hit) -> None:
        self._hit = hit
        known = prototype(hit.function)
        self._parameters = () if known is None else tuple(parameter.name for parameter in known.parameters)

    def __getitem__(self, name: str) -> object:
        if name == "hit":
            return self._hit
        if name in _ATTRIBUTES:
            return getattr(self._hit, name)
        if name in self._parameters:
            return self._hit.args[self._parameters.index(name)]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(("hit", *_ATTRIBUTES, *self._parameters))

    def __len__(self) -> int:
        return 1 + len(_ATTRIBUTES) + len(self._parameters)


def condition(wanted: Condition | str | None) -> Condition | None:
    """What is `wanted` as a function; raises `UsageError` where it is no expression, and at a hit where it fails."""
    if isinstance(wanted, str):
        return _of_expression(wanted)
    if wanted is not None and not callable(wanted):
        raise UsageError(f"a condition is a function of the hit or a Python expression, not {wanted!r}")
    return wanted


def _of_expression(expression: str) -> Condition:
    try:
        code: CodeType = compile(expression, "<condition>", "eval")
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"cannot read the condition {expression!r}: {error}") from None

    def holds(hit: Hit) -> bool:
        names = Names(hit)
        try:
            return bool(eval(code, {}, names))
        except ColdframeError:
            raise
        except NameError as error:
            raise UsageError(f"the condition {expression!r}: {error}; there are {', '.join(names)}") from None
        except Exception as error:
            raise UsageError(f"the condition {expression!r} fails: {type(error).__name__}: {error}") from None

    return holds

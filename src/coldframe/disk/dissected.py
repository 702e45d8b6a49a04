"""dissect.*, the extra `disk`: loaded when wanted, and its errors turned into ours."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from coldframe.errors import CapabilityError, ColdframeError, FormatError


def load(name: str) -> ModuleType:
    """The module `dissect.NAME`; raises `CapabilityError` that names the extra where it is not installed."""
    try:
        return importlib.import_module(f"dissect.{name}")
    except ImportError as error:
        missing = error.name or f"dissect.{name}"
        raise CapabilityError(
            f"reading virtual disks needs {missing}, which is not installed: pip install 'coldframe[disk]'"
        ) from None


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raise `FormatError` that begins with `what` for whatever a parser meets in damaged or hostile data."""
    try:
        yield
    except ColdframeError:
        raise
    except (EOFError, IndexError):
        raise FormatError(f"{what}: ends too soon") from None
    except Exception as error:
        words = str(error).strip().split("\n")[0] or type(error).__name__
        raise FormatError(f"{what}: {words}") from None

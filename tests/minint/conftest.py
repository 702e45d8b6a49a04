"""A minint to look into, started once for each layout and number of vCPUs that the tests ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

import pytest

from coldframe.minint import Minint, start


@pytest.fixture(scope="module")
def boot() -> Iterator[Callable[..., Minint]]:
    """`boot(layout="19041", vcpus=2, ...)`: a running minint; the same words give the same one, for this module."""
    with ExitStack() as stack:

        @cache
        def started(**words: object) -> Minint:
            return stack.enter_context(start(**words))  # type: ignore[arg-type]

        yield started

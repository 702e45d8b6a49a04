"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file, called `stream.name`, that becomes `path` when the block ends well and is removed when it does not.

    Concurrent writers of one path each write their own; the last one's stays. Makes the folders on the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    try:
        os.close(descriptor)
        with Path(name).open("wb") as stream:
            yield stream
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` as the whole of `path`, or leave `path` as it was."""
    with atomic_file(path) as stream:
        stream.write(content)

"""Fetching a file from a symbol server over HTTP, whole or not at all."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from coldframe.symbols.files import atomic_file

_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 18
_MAX_SIZE = 4 << 30


class DownloadError(Exception):
    """The server did not give the file; the message says why, in a few words."""


def fetch(url: str, target: Path, check: Callable[[Path], None] | None = None) -> None:
    """Put what `url` gives at `target`.

    `check` is called with the temporary file before it takes the name `target`, and raises when it is not what was
    wanted. Raises `DownloadError`; nothing is left at `target` then. Progress is shown on a terminal only.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "coldframe"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, atomic_file(target) as stream:
            told = response.headers.get("Content-Length")
            _copy(response, stream, int(told) if told and told.isdecimal() else None, target.name)
            stream.flush()
            if check is not None:
                check(Path(stream.name))
    except urllib.error.HTTPError as error:
        raise DownloadError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"no answer: {error.reason}") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise DownloadError(f"broke off: {error}") from error
    except OSError as error:
        raise DownloadError(f"cannot be kept: {error}") from error
    except ValueError as error:
        raise DownloadError(f"not a URL that can be asked: {error}") from error


def _copy(response: http.client.HTTPResponse, stream: IO[bytes], size: int | None, name: str) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(name, total=size)
        got = 0
        while chunk := response.read(_CHUNK):
            got += len(chunk)
            if got > _MAX_SIZE:
                raise DownloadError(f"gives more than {_MAX_SIZE >> 30} GB")
            stream.write(chunk)
            progress.advance(task, len(chunk))
    if size is not None and got != size:
        raise DownloadError(f"broke off after {got} of {size} bytes")

"""New `bytes` of a known size that are filled in place, not copied together from pieces."""

from __future__ import annotations

import ctypes
from io import BytesIO

import numpy as np

_LARGE = 1 << 22
"""Bytes: new memory of so many and more is asked for in huge pages, as numpy does for its arrays: the system hands out
a hundred thousand small ones at a quarter of the speed."""
_MADV_HUGEPAGE = 14
_SMALL_PAGE = 4096

# "If v is NULL, the contents of the bytes object are uninitialized", https://docs.python.org/3/c-api/bytes.html
_uninitialised = ctypes.pythonapi.PyBytes_FromStringAndSize
_uninitialised.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
_uninitialised.restype = ctypes.py_object
_madvise = getattr(ctypes.CDLL(None), "madvise", None)
if _madvise is not None:
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def new_bytes(size: int) -> BytesIO:
    """`size` bytes (1 or more) to be filled, all of them, through `getbuffer()`; `getvalue()` gives these very bytes
    once there is no view of them. What they hold before is undefined."""
    made = BytesIO(_uninitialised(None, size))
    if size >= _LARGE and _madvise is not None:
        start = np.frombuffer(made.getbuffer(), np.uint8).ctypes.data
        first = -(-start // _SMALL_PAGE) * _SMALL_PAGE
        _madvise(first, (start + size - first) // _SMALL_PAGE * _SMALL_PAGE, _MADV_HUGEPAGE)
    return made

"""The program that `regular` runs: finds a regular expression in what comes on standard input.

It stands alone, on Python's own library, so that it starts in hundredths of a second. In comes the length and the
bytes of the expression, and its flags; then, as often as wanted, where to begin, a length, and so many bytes. Out
go, for each of these, start and end of every match that is not empty, and -1 twice. All numbers have 8 bytes.
"""

import re
import resource
import struct
import sys

MOST_MEMORY = 2 << 30  # bytes: an expression that wants more ends this program alone

_PAIR = struct.Struct("<qq")


def main() -> None:
    """Answer until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    source, answer = sys.stdin.buffer, sys.stdout.buffer
    size, flags = _PAIR.unpack(source.read(_PAIR.size))
    pattern = re.compile(source.read(size), flags)
    while len(asked := source.read(_PAIR.size)) == _PAIR.size:
        start, size = _PAIR.unpack(asked)
        for match in pattern.finditer(source.read(size), start):
            if match.end() > match.start():
                answer.write(_PAIR.pack(*match.span()))
        answer.write(_PAIR.pack(-1, -1))
        answer.flush()


if __name__ == "__main__":
    main()

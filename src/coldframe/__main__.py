"""`python -m coldframe`."""

from coldframe.cli import main

main()

"""For all tests."""

from __future__ import annotations

import signal

# A shell starts its background jobs with SIGINT ignored, and so would be this process and all that the tests start: the
# tests that press Ctrl-C would wait for ever. nohup does the same with SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

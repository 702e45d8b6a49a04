"""Print the folder that volatility3 is to be given: `vol -p "$(python -m coldframe.volatility)" ...`."""

from __future__ import annotations

from coldframe.volatility import PLUGINS

print(PLUGINS)

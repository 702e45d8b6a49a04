"""coldframe as the memory layer of volatility3: `vol -p "$(python -m coldframe.volatility)" -f TARGET PLUGIN`.

volatility3 is under the Volatility Software License. Nothing of coldframe imports it, or imports `layers.py` and
`plugins/` here, which derive from its classes: volatility3 does, when it is told of the folder `plugins`.
"""

from __future__ import annotations

from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"
"""The folder to name in volatility3's option `-p`."""

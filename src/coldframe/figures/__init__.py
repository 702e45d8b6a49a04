"""Pictures: the path of an address, an address space as a map, a census as bars; SVG, and PNG through Pillow."""

from coldframe.figures.canvas import Canvas
from coldframe.figures.census import census_figure
from coldframe.figures.path import path_figure
from coldframe.figures.space_map import Area, map_figure

__all__ = ["Area", "Canvas", "census_figure", "map_figure", "path_figure"]

"""Builds guests' physical memory for tests: page tables in every state, structures at their real offsets."""

from builder.image import GB, MB, PAGE, ImageBuilder, Swizzle, pattern
from builder.kernels import kernel, kernel_files
from builder.layouts import LAYOUTS, bit_field_types
from builder.states import RAM, RAM_BELOW_4_GB, VIRTUAL_STORE, Case, Scene, build_scene

__all__ = [
    "GB",
    "LAYOUTS",
    "MB",
    "PAGE",
    "RAM",
    "RAM_BELOW_4_GB",
    "VIRTUAL_STORE",
    "Case",
    "ImageBuilder",
    "Scene",
    "Swizzle",
    "bit_field_types",
    "build_scene",
    "kernel",
    "kernel_files",
    "pattern",
]

"""Builds guests' physical memory for tests: page tables in every state, structures at their real offsets."""

from builder.image import GB, MB, PAGE, ImageBuilder, Swizzle, pattern
from builder.kernels import kernel, kernel_files

__all__ = ["GB", "MB", "PAGE", "ImageBuilder", "Swizzle", "kernel", "kernel_files", "pattern"]

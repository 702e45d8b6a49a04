"""The compressed store: pages that Windows 10 and 11 keep compressed in the memory of a process of their own."""

from coldframe.windows.store.layouts import StoreLayout, store_layout
from coldframe.windows.store.reader import CompressedStore
from coldframe.windows.store.records import Store, Stored

__all__ = ["CompressedStore", "Store", "StoreLayout", "Stored", "store_layout"]

"""Key stores: where the key lives, the source of truth."""

from ._interface import KeyStore
from .file import FileKeyStore
from .memory import MemoryKeyStore

__all__ = ["FileKeyStore", "KeyStore", "MemoryKeyStore"]

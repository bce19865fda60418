"""Key stores: where the key lives, the source of truth."""

from ._interface import KeyStore
from .memory import MemoryKeyStore

__all__ = ["KeyStore", "MemoryKeyStore"]

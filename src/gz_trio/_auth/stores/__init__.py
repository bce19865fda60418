"""Key stores: where the key lives, the source of truth."""

from ._interface import KeyStore
from .file import FileKeyStore
from .memory import MemoryKeyStore
from .redis import RedisKeyStore

__all__ = ["FileKeyStore", "KeyStore", "MemoryKeyStore", "RedisKeyStore"]

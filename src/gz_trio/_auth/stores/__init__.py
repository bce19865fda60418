"""Key stores: where the key lives, the source of truth."""

from ._interface import KeyStore
from .file import FileKeyStore
from .keyring import KeyringKeyStore
from .memory import MemoryKeyStore
from .redis import RedisKeyStore

__all__ = ["FileKeyStore", "KeyStore", "KeyringKeyStore", "MemoryKeyStore", "RedisKeyStore"]

"""The operating system's locks on files beside a key file, which fall with their process."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

import filelock

_POLL_SECONDS = 0.01
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}

_log = logging.getLogger("gz_trio.auth")


class Lock:
    """A lock file, which is never removed.

    Args:
        path: The lock file.
        key_file: Whose lock it is; the log names it.
        on_acquired: Called with the lock file's descriptor, once it is held.
    """

    def __init__(
        self, path: Path, key_file: Path, on_acquired: Callable[[int], None] | None = None
    ) -> None:
        self._key_file = key_file
        self._folder = path.parent
        # Held by whoever acquires, whichever thread that is in; and no marker files where there
        # are no locks: those outlive their process.
        self._lock = filelock.FileLock(
            path,
            mode=0o600,
            thread_local=False,
            fallback_to_soft=False,
            preserve_lock_file=True,
            on_acquired=on_acquired,
        )

    def acquire(self, seconds: float) -> bool:
        """Whether it is held now. On a file system that has no locks it always is.

        Args:
            seconds: How long to try; 0: once, without waiting.

        Raises:
            OSError: The lock file cannot be made or opened.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire(seconds, poll_interval=_POLL_SECONDS, blocking=seconds > 0)
        except filelock.Timeout:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _warn_of_no_locks(self._key_file)
        return True

    def release(self) -> bool:
        """Give it back; whether it was held."""
        held = self._lock.is_locked
        self._lock.release()
        return held


@cache  # Once for each file is enough.
def _warn_of_no_locks(key_file: Path) -> None:
    _log.warning(
        "the key file %s is on a file system without locks: processes that share it may each "
        "refresh its key, which a single-use refresh token does not survive",
        key_file,
    )

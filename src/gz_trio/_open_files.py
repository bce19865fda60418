"""How many files a process may open: each of its connections is one."""

from __future__ import annotations

import sys
from contextlib import suppress


def allow_all_files() -> int | None:
    """Let this process open as many files as the system allows.

    Returns:
        How many that are; `None`: there is no limit, or none that can be asked for.
    """
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415  there is none on Windows

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if allowed == resource.RLIM_INFINITY else allowed

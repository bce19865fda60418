"""Which file systems are shared over a network: those tell of no change that another host makes."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

_NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs",
        "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "virtiofs",
    }
)  # fmt: skip

_OCTAL = re.compile(r"\\([0-7]{3})")


def network_file_system(path: Path) -> str | None:
    """The kind of network file system that `path` is on, as Linux names it; `None` for others.

    What the system does not tell, and what is on no Linux, counts as local.
    """
    with suppress(OSError):
        return kind_in(Path("/proc/self/mountinfo").read_text("utf-8"), path.resolve())
    return None


def kind_in(mountinfo: str, path: Path) -> str | None:
    """The same, for a resolved path and the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

    >>> mountinfo = "36 25 0:31 / /home rw shared:1 - nfs4 server:/home rw"
    >>> kind_in(mountinfo, Path("/home/me/key.json")), kind_in(mountinfo, Path("/tmp/key.json"))
    ('nfs4', None)
    """
    depth, kind = -1, ""
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        # Of two mounts on one folder, the later one hides the earlier.
        if path.is_relative_to(mount) and len(mount.parts) >= depth:
            depth, kind = len(mount.parts), after.split(" ")[0]
    return kind if kind in _NETWORK else None

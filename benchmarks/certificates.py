"""A certificate for the load server, and the authority that the clients are to trust."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import trustme


@dataclass(frozen=True)
class Certificates:
    """Where they are: paths of PEM files.

    Clients find the authority by `SSL_CERT_FILE`, which every one of them obeys.
    """

    server: str
    authority: str


@contextmanager
def make_certificates() -> Generator[Certificates]:
    """Files that last as long as the block."""
    authority = trustme.CA()
    with TemporaryDirectory() as folder:
        certificates = Certificates(str(Path(folder, "server")), str(Path(folder, "authority")))
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.private_key_and_cert_chain_pem.write_to_path(certificates.server)
        authority.cert_pem.write_to_path(certificates.authority)
        yield certificates

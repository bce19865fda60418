"""How the tests are run: hypothesis profiles, and the examples in the docs and docstrings."""

import signal

import trio
from hypothesis import HealthCheck, settings
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser

import gz_trio
from gz_trio.testing import FakeGateway

pytest_plugins = [
    "gz_trio.testing.fixtures",
    "tests.places",
    "tests.secrets_guard",
    "tests.transports",
]

# An ordinary run tries the same examples each time, so that it fails only for what was changed;
# the other two draw by `--hypothesis-seed`. No deadline: it would measure the machine.
ordinary = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ordinary", ordinary)
settings.register_profile("sample", ordinary, derandomize=False, max_examples=400)
settings.register_profile("exhaustive", ordinary, derandomize=False, max_examples=50_000)
settings.load_profile("ordinary")


# A shell without job control has what it starts in the background ignore Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def imported(namespace: dict[str, object]) -> None:
    """What the examples in docstrings take as imported."""
    namespace.update(vars(gz_trio), trio=trio, FakeGateway=FakeGateway)


pytest_collect_file = (
    Sybil(
        [PythonCodeBlockParser(), SkipParser()],
        filenames=["README.md"],
        patterns=["docs/*.md"],
    )
    + Sybil(
        [DocTestParser()],
        path="src",
        setup=imported,
        pattern="*.py",
        document_types={".py": PythonDocStringDocument},
    )
).pytest()

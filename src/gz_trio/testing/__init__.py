"""A fake gateway for tests of Trio programs that talk to language models.

`FakeGateway` is a real HTTP/1.1 server: over TCP, or over in-memory streams, so that a test runs
under Trio's `MockClock` and minutes pass in no time. Faults say what goes wrong and when; the
ledger of requests says what the program under test really sent.

`check_key_store` tries all that a key store promises on a store of your own.
"""

from ._call import SeenRequest
from ._chunks import Shape
from ._completions import Answer
from ._continuing import Continues
from ._fault_words import add_fault
from ._faults import (
    DIALECTS,
    Close,
    Comment,
    Cut,
    Dialect,
    Drip,
    EarlyDone,
    EmptyStream,
    ErrorFrame,
    Fault,
    Insert,
    OtherText,
    Reset,
    Stall,
    Status,
    Warning_,
)
from ._gateway import FakeGateway
from ._history import FakeHistory
from ._key_store import check_key_store
from ._server import Framing
from ._texts import lost_and_doubled

__all__ = [
    "DIALECTS",
    "Answer",
    "Close",
    "Comment",
    "Continues",
    "Cut",
    "Dialect",
    "Drip",
    "EarlyDone",
    "EmptyStream",
    "ErrorFrame",
    "FakeGateway",
    "FakeHistory",
    "Fault",
    "Framing",
    "Insert",
    "OtherText",
    "Reset",
    "SeenRequest",
    "Shape",
    "Stall",
    "Status",
    "Warning_",
    "add_fault",
    "check_key_store",
    "lost_and_doubled",
]

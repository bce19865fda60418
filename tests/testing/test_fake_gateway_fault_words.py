"""Faults of the fake gateway in words: every one can be said, and what is none is told."""

import pytest

from gz_trio.testing import FakeGateway, add_fault
from gz_trio.testing._fault_words import KINDS
from tests.testing.fake_gateway_wire import chat

EVERY_FAULT = [
    "status=503 message='try later' dialect=openai type=t code=c header.x-a=b",
    "status=418 body='{\"a\": 1}' generation=2",
    "status=500 body=text path=/v1/models",
    "error-frame=auth_error message=m status=401 code=x dialect=openrouter done=false token=2",
    r"error-frame data='{}\n'",
    "cut", "cut=100 token=1", "reset after-bytes=5", "stall", "stall=90 request=2", "drip=0.1",
    "early-done=stop done=false token=3", "early-done finish-reason=length", "empty-stream",
    "other-text=X token=4", r"insert='data: \xff\n\n' token=1", "comment=ping times=forever",
    "warning message='not so good'",
]  # fmt: skip


@pytest.mark.parametrize("words", EVERY_FAULT)
def test_every_fault_can_be_had(words: str) -> None:
    add_fault(FakeGateway(), words)


def test_the_table_names_every_kind() -> None:
    assert {words.partition(" ")[0].partition("=")[0] for words in EVERY_FAULT} == set(KINDS)


async def test_bytes_are_inserted_as_they_are_written() -> None:
    gateway = FakeGateway(tokens=1)
    add_fault(gateway, r"insert=': gr\xfc\xdfe → ü\n\n'")
    async with gateway.http_client() as client:
        headers = {"authorization": f"Bearer {gateway.key}"}
        answer = await client.post("/chat/completions", json=chat(), headers=headers)
    assert answer.content.startswith(b": gr\xfc\xdfe " + "→ ü".encode() + b"\n\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "there is no ''"),
        ("explode", "there is no 'explode'; there are status,"),
        ("status", "status needs a status"),
        ("status=many", "status must be a whole number"),
        ("status=9", "from 200 to 599"),
        ("insert token=1", "insert needs a data"),
        ("cut sideways=1", "cut has no 'sideways'; it has after-bytes,"),
        ("cut headers=x", "cut has no 'headers'"),
        ("cut token=-1", "token is -1"),
        ("cut times=often", "times must be a whole number or forever"),
        ("cut path=/elsewhere", "path must be /v1/chat/completions or"),
        ("status=400 dialect=klingon", "dialect must be gatewayz or"),
        ("early-done done=perhaps", "done must be true or false"),
        ("stall=soon", "seconds must be a number"),
        ("empty-stream=1", "empty-stream has no ''"),
        ("comment='half", "quot"),
        (r"insert='\x'", "data has an escape that is none"),
    ],
)
def test_what_is_no_fault_is_told_from_what_could_be(words: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"^fault ") as raised:
        add_fault(FakeGateway(), words)
    assert complaint in str(raised.value)

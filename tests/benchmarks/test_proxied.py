"""The proxy that the benchmark measures."""

import os
import sys

import httpx
import pytest

from benchmarks.load_server import Counts, Plan
from benchmarks.peers.wire import EventStream, body
from benchmarks.processes import serving
from benchmarks.proxied import proxying

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks run on Linux")


def test_it_hands_on_what_the_server_sends_and_ends_with_the_block() -> None:
    with serving(Plan(tokens=5, interval=0.01)) as server:
        with proxying(f"http://127.0.0.1:{int(server.read())}/v1") as (pid, base_url):
            answer = httpx.post(f"{base_url}/chat/completions", json=body(0))
            chunks = EventStream().feed(answer.content)
            assert server.ask("mark", Counts).answers == 1
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    texts = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert len([text for text in texts if text]) == 5

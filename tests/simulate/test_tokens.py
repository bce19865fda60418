"""Counting tokens where the server does not tell how many there are."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from gz_trio import Delta, ToolCallDelta
from gz_trio.simulate import Workload, run
from gz_trio.simulate._tokens import tokenizer
from gz_trio.testing import FakeGateway, Status
from tests.simulate.loads import do, listening


class Characters:
    """In place of a tokenizer of the package `tokenizers`: a token is a character."""

    @classmethod
    def from_file(cls, name: str) -> Characters:
        return cls()

    @classmethod
    def from_pretrained(cls, name: str) -> Characters:
        if name != "known":
            raise RuntimeError("no such repository")
        return cls()

    def encode(self, text: str, *, add_special_tokens: bool) -> SimpleNamespace:
        return SimpleNamespace(ids=["<s>"] * add_special_tokens + list(text))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tokenizers")
    module.Tokenizer = Characters  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "tokenizers", module)


def test_without_a_name_nothing_counts() -> None:
    assert tokenizer(None) is None


@pytest.mark.usefixtures("package")
def test_it_is_a_file_or_a_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.touch()
    for name in (str(path), "known"):
        count = tokenizer(name)
        assert count is not None
        assert count("to be") == 5


@pytest.mark.usefixtures("package")
def test_one_that_cannot_be_loaded_is_told() -> None:
    with pytest.raises(ValueError, match=r"^the tokenizer unknown cannot be loaded: no such"):
        tokenizer("unknown")


async def test_without_the_package_it_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'gz-trio\[tokenizer\]'$"):
        await run(Workload(users=1, tokenizer="known"))


NO_USAGE = Status(400, "Unknown parameter: 'stream_options.include_usage'")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("name", "usage", "tokens_by", "tokens"),
    [
        ("known", True, "usage", 3),
        ("known", False, "tokenizer", 12),
        (None, False, "chunks", 3),
    ],
)
async def test_the_server_counts_else_the_tokenizer_else_chunks_stand_for_them(
    name: str | None, usage: bool, tokens_by: str, tokens: int
) -> None:
    gateway = FakeGateway(answer=lambda _body, _attempt: ["to", " be or", " not"])
    if not usage:
        gateway.fault(NO_USAGE, request=1)
    workload = Workload(users=1, requests=1, output_tokens=3, tokenizer=name, spread=0)
    async with listening(gateway) as target:
        load = await do(workload, target)
    (record,) = load.records
    assert (record.outcome, record.tokens_by, record.tokens) == ("ok", tokens_by, tokens)
    result = load.result()
    assert (result.tokens_by, result.tokens) == (tokens_by, tokens)
    assert result.wrong_lengths == (tokens_by == "tokenizer")


@pytest.mark.usefixtures("package")
async def test_reasoning_and_tool_calls_are_counted_too() -> None:
    call = Delta(tool_calls=(ToolCallDelta(0, "1", "look", '{"for": "it"}'),))
    said = [Delta(reasoning="Let me"), Delta(reasoning=" think."), Delta(text="Yes."), call]
    gateway = FakeGateway(answer=lambda _body, _attempt: said)
    gateway.fault(NO_USAGE, request=1)
    workload = Workload(users=1, requests=1, tokenizer="known", spread=0)
    async with listening(gateway) as target:
        load = await do(workload, target)
    (record,) = load.records
    assert (record.chunks, record.tokens_by, record.tokens) == (4, "tokenizer", 13 + 4 + 17)

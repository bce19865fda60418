"""An engine that draws its tokens: a reply that breaks cannot be had again, only another one."""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

import gz_trio
from gz_trio import Delta, Restarted, ResumePolicy, StreamInterrupted
from tests.interop.line import laid, open_gateway
from tests.interop.servers import MODEL, Engine
from tests.interop.tap import Tap

QUESTIONS = [f"Chat {number}: tell me a story." for number in range(24)]
MANY = len(QUESTIONS) // 4
"""So many replies at least have to diverge for a test to count."""


def first(tap: Tap, question: str) -> str:
    """The text of the engine's first answer, which may have been cut."""
    return tap.answers(question)[0].text


def last(tap: Tap, question: str) -> str:
    """The text of its last answer, which has to be whole."""
    answer = tap.answers(question)[-1]
    assert answer.finish_reason is not None
    return answer.text


async def outlive_a_rotation(
    engine: Engine,
    folder: Path,
    resume: ResumePolicy,
    ask: Callable[[gz_trio.Session, str], Awaitable[None]],
) -> Tap:
    """`ask` every question at once, and have every answer broken when it has begun."""

    async def ask_one(gateway: gz_trio.Gateway, question: str) -> None:
        # Without a limit, an answer may have a thousand tokens.
        async with gateway.open_session(MODEL, extra_body={"max_tokens": 100}) as session:
            await ask(session, question)

    def begun(question: str) -> bool:
        answers = line.tap.answers(question)
        # An answer may be without text, then it is asked for again after a while.
        return bool(answers) and (answers[0].text != "" or answers[0].finish_reason is not None)

    async with laid(engine, folder) as line, open_gateway(line, resume) as gateway:
        with trio.fail_after(60.0):
            async with trio.open_nursery() as nursery:
                for question in QUESTIONS:
                    nursery.start_soon(ask_one, gateway, question)
                await line.rotate(begun, QUESTIONS)
    return line.tap


async def test_a_reply_that_diverges_ends_with_the_text_that_its_reader_had(
    sampling_engine: Engine, nginx: Path
) -> None:
    texts: dict[str, str] = defaultdict(str)
    partials: dict[str, str] = {}

    async def ask(session: gz_trio.Session, question: str) -> None:
        try:
            async with session.stream(question) as reply:
                async for delta in reply:
                    texts[question] += delta.text
        except StreamInterrupted as error:
            partials[question] = error.partial

    tap = await outlive_a_rotation(sampling_engine, nginx, ResumePolicy(), ask)
    assert len(partials) >= MANY
    for question in QUESTIONS:
        if question in partials:
            assert texts[question] == partials[question] != ""
            assert first(tap, question).startswith(texts[question])
            second = tap.answers(question)[-1]
            assert not second.text.startswith(texts[question])
        else:
            assert texts[question] == last(tap, question)


async def test_a_reply_that_diverges_and_may_restart_has_the_second_text_whole(
    sampling_engine: Engine, nginx: Path
) -> None:
    texts: dict[str, str] = defaultdict(str)
    dropped: dict[str, str] = {}

    async def ask(session: gz_trio.Session, question: str) -> None:
        async with session.stream(question) as reply:
            async for event in reply.events():
                match event:
                    case Delta(text=text):
                        texts[question] += text
                    case Restarted():
                        dropped[question] = texts.pop(question)
                    case _:
                        pass
        assert reply.text == texts[question] == session.messages[-1]["content"]

    policy = ResumePolicy(on_divergence="restart")
    tap = await outlive_a_rotation(sampling_engine, nginx, policy, ask)
    assert len(dropped) >= MANY
    assert texts == {question: last(tap, question) for question in QUESTIONS}
    for question, text in dropped.items():
        assert first(tap, question).startswith(text)


async def test_ask_restarts_by_itself(sampling_engine: Engine, nginx: Path) -> None:
    texts: dict[str, str] = {}

    async def ask(session: gz_trio.Session, question: str) -> None:
        texts[question] = await session.ask(question)

    tap = await outlive_a_rotation(sampling_engine, nginx, ResumePolicy(), ask)
    assert texts == {question: last(tap, question) for question in QUESTIONS}
    assert (
        sum(not text.startswith(first(tap, question)) for question, text in texts.items()) >= MANY
    )

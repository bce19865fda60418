"""A shard: the users of one process, who send their requests at their times."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from itertools import count
from math import ceil, inf
from time import perf_counter_ns

import trio

from .. import GatewayError, Reply, RetryPolicy
from .._background import Background
from ..testing import lost_and_doubled
from ._conversations import Conversations, Loaded, Turn
from ._errors import TargetError
from ._fake import intended_text
from ._histograms import Samples
from ._intervals import Interval
from ._lag import Lag, p99
from ._prompts import MadeUp
from ._records import RequestRecord
from ._request import Left, Running
from ._schedule import arrivals, expected
from ._target import Group, Target, open_groups
from ._timer import Timer, open_timer
from ._tokens import tokenizer
from ._traces import load
from ._workload import Workload

SECOND = 1_000_000_000
AFTER_AN_ERROR = 1 * SECOND
"""A user whose request failed waits so long: else a gateway that is down is asked without end."""

TRY_OUT = RetryPolicy(max_retries=2)
"""A target that is down is told within seconds."""


class Shard:
    """One process's share of a workload. Made by `open_shard`.

    Args:
        workload: Of all shards.
        target: Where requests go.
        number: Which shard it is, from 0.
        shards: How many there are.
        on_interval: Told once a second what happened in it.
        count_tokens: Counts the tokens of a text, where the server does not tell.
    """

    def __init__(
        self,
        workload: Workload,
        target: Target,
        conversations: Conversations,
        groups: list[Group],
        timer: Timer,
        *,
        number: int,
        shards: int,
        on_interval: Callable[[Interval], object],
        count_tokens: Callable[[str], int] | None,
    ) -> None:
        self._workload = workload
        self._target = target
        self._conversations = conversations
        self._groups = groups
        self._timer = timer
        self._number = number
        self._shards = shards
        self._on_interval = on_interval
        self._count_tokens = count_tokens
        self._models = list(workload.weights)
        self._weights = list(workload.weights.values())
        self._sessions = 0
        self._requests = 0
        self._most_requests = (
            inf if workload.requests is None else _share(workload.requests, number, shards)
        )
        self._began = 0
        self._window_ends: float = inf
        self._load = trio.CancelScope()
        self._arrivals = trio.CancelScope()
        self._interrupted = False
        self._spread = workload.spread_seconds
        # Since the last interval
        self._lag = Lag()
        self._in_window = Samples()
        self._outside = Samples()
        self._records: list[RequestRecord] = []
        self._lates: list[int] = []
        self._sent = 0
        self._intervals = 0
        # In all
        self._active: dict[Running, None] = {}
        self._chunks_of_the_past = 0
        self._told_chunks = 0
        self._told_refreshes = 0
        self._chunks_before_window = 0
        self._chunks_in_window: int | None = None

    async def try_out(self) -> None:
        """Send one request that does not count, and take its time.

        Raises:
            TargetError: It failed.
        """
        if self._spread is not None:
            return
        before = perf_counter_ns()
        turn = self._conversations.conversation(0).turns[0]
        asked, _, _ = self._draw(0, 0, turn)
        body = self._body(self._models[0], list(turn.messages), asked)
        try:
            async with self._groups[0].gateway.stream(body, retry=TRY_OUT) as reply:
                await reply.drain(_nothing)
        except GatewayError as error:
            where = self._target.base_url
            raise TargetError(f"the first request to {where} failed: {error}") from error
        self._spread = (perf_counter_ns() - before) / SECOND

    def stop(self) -> None:
        """End the run before its time: what is under way is left unfinished."""
        self._interrupted = True
        self._load.cancel()

    async def run(self, began: int) -> None:
        """Do it all.

        Args:
            began: When the load begins, by `time.perf_counter_ns`.
        """
        workload = self._workload
        self._began = began
        window_began = began + int(workload.warm_up_seconds * SECOND)
        if workload.duration_seconds is not None:
            self._window_ends = window_began + int(workload.duration_seconds * SECOND)
        self._lag = Lag()  # The wait until now was none.
        trio.lowlevel.add_instrument(self._lag)
        try:
            async with Background("load") as nursery:
                nursery.start_soon(self._tell)
                nursery.start_soon(self._mark_window, window_began)
                nursery.start_soon(self._rotate)
                with self._load:
                    await self._run_load()
        finally:
            trio.lowlevel.remove_instrument(self._lag)
        # One that fails does not say that it is done: whoever listens notices that it has died.
        self._tell_interval(max(0, perf_counter_ns() - began) // SECOND, last=True)

    async def _run_load(self) -> None:
        async with trio.open_nursery() as nursery:
            if self._window_ends < inf:
                nursery.start_soon(self._end_after_grace)
            async with trio.open_nursery() as load:
                if self._workload.users is None:
                    with self._arrivals:
                        await self._begin_sessions(load)
                else:
                    for user in range(_share(self._workload.users, self._number, self._shards)):
                        load.start_soon(self._user, user)
            nursery.cancel_scope.cancel()

    async def _end_after_grace(self) -> None:
        ends = int(self._window_ends) + int(self._workload.grace_seconds * SECOND)
        await self._timer.sleep_until(ends)
        self._load.cancel()

    # Closed loop

    async def _user(self, user: int) -> None:
        """One user of a closed loop, session after session."""
        share = self._dice("user", user * self._shards + self._number).random()
        intended = self._began + int(share * (self._spread or 0.0) * SECOND)
        group = self._group_of(user)
        while intended < self._window_ends:
            session = self._next_session()
            if session is None:
                return
            next_intended = await self._session(session, group, intended)
            if next_intended is None:
                return
            intended = next_intended

    # Open loop

    async def _begin_sessions(self, nursery: trio.Nursery) -> None:
        """Begin each session at its time."""
        loaded = self._conversations
        if isinstance(loaded, Loaded) and self._workload.prompts_format == "mooncake":
            for session in range(self._number, len(loaded), self._shards):
                due = self._began + (loaded.conversation(session).turns[0].due or 0)
                if due >= self._window_ends or self._requests_are_used_up:
                    return
                if self._next_session() is None:
                    return
                await self._timer.sleep_until(due)
                nursery.start_soon(self._session, session, self._group_of(self._sessions - 1), due)
            return
        for offset in arrivals(
            self._workload.rate_at,
            (self._window_ends - self._began) / SECOND,
            self._workload.arrivals,
            seed=self._workload.seed,
            shard=self._number,
            shards=self._shards,
        ):
            number = self._next_session()
            if number is None or self._requests_are_used_up:
                return
            due = self._began + int(offset * SECOND)
            await self._timer.sleep_until(due)
            nursery.start_soon(self._session, number, self._group_of(self._sessions - 1), due)

    # Both

    def _next_session(self) -> int | None:
        """The number of the next session, among all shards; `None` if there are no more."""
        session = self._sessions * self._shards + self._number
        if self._workload.sessions is not None and session >= self._workload.sessions:
            return None
        self._sessions += 1
        return session

    @property
    def _requests_are_used_up(self) -> bool:
        return self._requests >= self._most_requests

    def _group_of(self, index: int) -> int:
        """The group of a user, or of a session in an open loop."""
        size = self._workload.key_group
        return index // size % len(self._groups) if size else 0

    def _dice(self, *what: object) -> random.Random:
        return random.Random(f"{self._workload.seed}/{what}")

    async def _session(self, session: int, group: int, intended: int) -> int | None:
        """One session; gives when its user would begin the next one, `None` for never."""
        model = self._dice("session", session).choices(self._models, self._weights)[0]
        think = 0
        messages: list[dict[str, object]] = []
        for number, turn in enumerate(self._conversations.conversation(session).turns):
            if number:
                intended += think if turn.delay is None else turn.delay
            if turn.due is not None:
                intended = max(intended, self._began + turn.due)
            if intended >= self._window_ends or self._requests_are_used_up:
                return None
            self._requests += 1
            if self._requests_are_used_up:
                self._arrivals.cancel()
            await self._timer.sleep_until(intended)
            messages = [*([] if turn.whole else messages), *turn.messages]
            asked, leave_after, think = self._draw(session, number, turn)
            record, answer = await self._request(
                session, number, group, model, messages, intended, asked, leave_after
            )
            intended = self._began + record.ended
            if record.outcome in ("error", "timeout"):
                return intended + max(AFTER_AN_ERROR, think)
            recorded = turn.answer if self._workload.history == "recorded" else None
            messages.append(
                answer if recorded is None else {"role": "assistant", "content": recorded}
            )
        return intended + think

    def _draw(self, session: int, number: int, turn: Turn) -> tuple[int, int, int]:
        """What is random in a turn.

        All at once: dice take as much memory as the rest of a user, and users wait.

        Returns:
            How many tokens are asked for; after how many the user leaves, 0: not before the end;
            and the think time after it, in nanoseconds.
        """
        dice = self._dice("turn", session, number)
        asked = turn.output_tokens or self._workload.output_lengths.draw_count(dice)
        leaves = self._workload.cancelled > 0 and dice.random() < self._workload.cancelled
        think = int(self._workload.think_times.draw(dice) * SECOND)
        return asked, dice.randint(1, asked) if leaves else 0, think

    def _body(
        self, model: str, messages: list[dict[str, object]], tokens: int
    ) -> dict[str, object]:
        body: dict[str, object] = {
            "model": model,
            "messages": messages,
            "max_tokens": tokens,
            "stream_options": {"include_usage": True},
        }
        if self._workload.exact_output:
            body |= {"min_tokens": tokens, "ignore_eos": True}
        return body

    async def _request(  # noqa: PLR0917 - for the one caller above
        self,
        session: int,
        number: int,
        group: int,
        model: str,
        messages: list[dict[str, object]],
        intended: int,
        asked: int,
        leave_after: int,
    ) -> tuple[RequestRecord, dict[str, object]]:
        """Send a request, and receive the reply; gives what is kept of it, and the answer."""
        body = self._body(model, messages, asked)
        running = Running(leave_after, keep_unsaid=self._count_tokens is not None)
        self._active[running] = None
        reply: Reply | None = None
        ended: BaseException | None = None
        sent = perf_counter_ns()
        self._sent += 1
        self._lates.append(max(0, sent - intended))
        try:
            async with self._groups[group].gateway.stream(body) as reply:
                await reply.drain(running.take, on_event=running.note)
        except (GatewayError, Left) as error:
            ended = error
        except BaseException as error:
            ended = error
            raise
        finally:
            del self._active[running]
            record = running.record(
                reply,
                ended,
                began=self._began,
                session=session,
                turn=number,
                group=group * self._shards + self._number,
                model=model,
                intended=intended,
                sent=sent,
                asked_tokens=asked,
            )
            self._keep(record, running, reply, body)
        return record, {} if reply is None else reply.message

    def _keep(
        self,
        record: RequestRecord,
        running: Running,
        reply: Reply | None,
        body: dict[str, object],
    ) -> None:
        """Count a request that is over."""
        record.shard = self._number
        since = record.intended + self._began
        window_began = self._began + int(self._workload.warm_up_seconds * SECOND)
        record.window = window_began <= since < self._window_ends
        self._chunks_of_the_past += record.chunks
        if reply is not None:
            if record.output_tokens is None and self._count_tokens is not None:
                unsaid = "".join(running.unsaid or ())
                record.output_tokens = self._count_tokens(reply.text) + self._count_tokens(unsaid)
                record.tokens_by = "tokenizer"
            if self._target.fake:
                intended = intended_text(body)
                if record.outcome != "ok":
                    intended = intended[: len(reply.text)]
                record.lost, record.doubled = lost_and_doubled(intended, reply.text)
        if record.outcome == "ok":
            samples = self._in_window if record.window else self._outside
            _sample(samples, record, running)
        elif record.outcome == "unfinished" and record.window:
            self._in_window.add("age", record.ended - record.sent)
            self._in_window.add("age_intended", record.ended - record.intended)
        self._records.append(record)

    # Telling

    async def _tell(self) -> None:
        for second in count():
            await self._timer.sleep_until(self._began + (second + 1) * SECOND)
            self._tell_interval(second)

    def _tell_interval(self, second: int, *, last: bool = False) -> None:
        polls_ms, cpu = self._lag.take()
        chunks, told = self._chunks(), self._told_chunks
        refreshes, told_refreshes = sum(g.refreshes for g in self._groups), self._told_refreshes
        self._told_chunks, self._told_refreshes = chunks, refreshes
        in_window = 0
        if last:
            in_window = self._chunks_in_window or 0
            if self._chunks_in_window is None:
                in_window = chunks - self._chunks_before_window
        interval = Interval(
            shard=self._number,
            number=self._intervals,
            second=second,
            histograms=self._in_window.take(),
            outside=self._outside.take(),
            out_of_range=dict(self._in_window.out_of_range),
            tokens=chunks - told,
            tokens_in_window=in_window,
            sent=self._sent,
            active=len(self._active),
            paused=sum(running.waits for running in self._active),
            refreshes=refreshes - told_refreshes,
            late_ms=p99(self._lates) / 1e6,
            polls_ms=polls_ms,
            cpu=cpu,
            records=self._records,
            skipped=self._skipped() if self._intervals == 0 else {},
            last=last,
            ended=("interrupted" if self._interrupted else "complete") if last else "",
        )
        self._in_window.out_of_range.clear()
        self._intervals += 1
        self._records, self._lates, self._sent = [], [], 0
        self._on_interval(interval)

    def _chunks(self) -> int:
        """How many chunks came so far."""
        return self._chunks_of_the_past + sum(len(running.arrivals) for running in self._active)

    def _skipped(self) -> dict[str, int]:
        loaded = self._conversations
        return dict(loaded.skipped) if isinstance(loaded, Loaded) and self._number == 0 else {}

    async def _mark_window(self, window_began: int) -> None:
        """Count the chunks at both ends of the window."""
        await self._timer.sleep_until(window_began)
        self._chunks_before_window = self._chunks()
        if self._window_ends < inf:
            await self._timer.sleep_until(int(self._window_ends))
            self._chunks_in_window = self._chunks() - self._chunks_before_window

    async def _rotate(self) -> None:
        """Replace all keys when it is time; the fake gateway does that by itself."""
        if self._target.fake:
            return
        for when in self._workload.rotation_seconds:
            await self._timer.sleep_until(self._began + int(when * SECOND))
            for group in self._groups:
                if group.authenticator is not None:
                    group.authenticator.request_refresh()


def _sample(samples: Samples, record: RequestRecord, running: Running) -> None:
    """Count the figures of a request that ended well."""
    late = record.sent - record.intended
    samples.add("late", late)
    for name in ("ttft", "ttfo", "latency"):
        value = getattr(record, name)
        if value is not None:
            samples.add(name, value)
            samples.add(f"{name}_intended", value + late)
    if record.itl is not None:
        samples.add("itl", record.itl)
    samples.add_gaps("icl", running.arrivals)
    for gap in running.paused_gaps():
        samples.add("icl_paused", gap)


def _nothing(*_: object) -> None: ...


def _share(count: int, shard: int, shards: int) -> int:
    """A shard's part of so many that are dealt out in turn."""
    return len(range(shard, count, shards))


def groups_of(workload: Workload, shards: int) -> int:
    """How many groups of sessions each shard has."""
    if not workload.key_group:
        return 1
    if workload.users is not None:
        sessions: float = workload.users
    elif workload.duration_seconds is None:
        sessions = workload.sessions or workload.requests or 1
    else:
        until = workload.warm_up_seconds + workload.duration_seconds
        sessions = expected(workload.rate_at, until)
    return max(1, ceil(ceil(sessions / shards) / workload.key_group))


@asynccontextmanager
async def open_shard(
    workload: Workload,
    target: Target,
    on_interval: Callable[[Interval], object],
    *,
    number: int = 0,
    shards: int = 1,
) -> AsyncGenerator[Shard]:
    """A shard, signed in, that has tried out its target and waits to begin.

    Raises:
        ValueError: The prompts' file cannot be used.
        TargetError: The target cannot be.
    """
    conversations: Conversations = MadeUp(workload)
    if workload.prompts is not None:
        conversations = await trio.to_thread.run_sync(load, workload)
    accounts = [group * shards + number for group in range(groups_of(workload, shards))]
    async with (
        open_timer() as timer,
        open_groups(target, accounts, timeout=workload.timeout_seconds) as groups,
    ):
        shard = Shard(
            workload,
            target,
            conversations,
            groups,
            timer,
            number=number,
            shards=shards,
            on_interval=on_interval,
            count_tokens=tokenizer(workload.tokenizer),
        )
        await shard.try_out()
        yield shard

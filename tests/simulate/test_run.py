"""A run in this process: who sends what, and when; and what becomes of it."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from gz_trio import GatewayError, RetryPolicy
from gz_trio.simulate import Merge, RequestRecord, TargetError, Workload, _shard, _target, run
from gz_trio.simulate._conversations import Conversation
from gz_trio.simulate._fake import intended_tokens
from gz_trio.simulate._prompts import MadeUp
from gz_trio.simulate._shard import AFTER_AN_ERROR, Shard, groups_of
from gz_trio.simulate._target import Target
from gz_trio.testing import FakeGateway, Stall, Status
from tests.secrets_guard import secret
from tests.simulate.loads import (
    Load,
    bodies,
    closed_port,
    do,
    listening,
    nothing_left,
    until,
)
from tests.simulate.records import MS

QUICK: dict[str, Any] = {"spread": "10ms", "output_tokens": 5}


def under_way_at_once(records: list[RequestRecord]) -> int:
    """The most requests that were sent and not ended at any one time."""
    changes = sorted(
        change for record in records for change in ((record.sent, 1), (record.ended, -1))
    )
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def messages_of(body: dict[str, object]) -> list[dict[str, str]]:
    return cast("list[dict[str, str]]", body["messages"])


class TestAClosedLoop:
    """Each user waits for a reply, and thinks, before the next request."""

    async def test_one_users_requests_follow_one_another(self) -> None:
        workload = Workload(users=1, requests=6, turns=2, think_time="20ms", **QUICK)
        async with listening(FakeGateway(token_interval=0.002)) as target:
            load = await do(workload, target)
        places = [(record.session, record.turn) for record in load.records]
        assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
        for before, record in pairwise(load.records):
            assert record.intended == before.ended + 20 * MS
        assert all(record.sent >= record.intended for record in load.records)

    async def test_no_more_are_under_way_than_there_are_users(self) -> None:
        workload = Workload(users=3, requests=30, spread=0, output_tokens=5)
        async with listening(FakeGateway(token_interval=0.002)) as target:
            load = await do(workload, target)
        assert under_way_at_once(load.records) == 3
        ends = Counter(record.ended for record in load.records)
        for record in load.records:
            assert record.intended == 0 or record.intended in ends

    async def test_first_requests_are_spread_by_the_seed(self) -> None:
        async def begins(seed: int) -> list[int]:
            workload = Workload(users=5, requests=5, spread="50ms", seed=seed)
            return [record.intended for record in (await do(workload, target)).records]

        async with listening(FakeGateway()) as target:
            first = await begins(1)
            assert first == await begins(1) != await begins(2)
        assert len(set(first)) == 5
        assert all(0 <= instant < 50 * MS for instant in first)

    async def test_unless_it_is_given_the_spread_is_what_a_request_takes(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(0.2), token=0, request=1)
        async with listening(gateway) as target:
            load = await do(Workload(users=20, requests=20, output_tokens=5), target)
        assert len(gateway.requests) == 21  # The one that was tried out does not count.
        assert len(load.records) == 20
        assert max(record.intended for record in load.records) > 100 * MS

    async def test_users_of_several_shards_are_different_ones(self) -> None:
        workload = Workload(users=5, duration="100ms", think_time="1h", **QUICK)
        async with listening(FakeGateway()) as target:
            load = await do(workload, target, shards=2)
        assert Counter(record.shard for record in load.records) == {0: 3, 1: 2}
        assert len({record.intended for record in load.records}) == 5


class TestHistory:
    async def test_each_turn_holds_the_replies_that_came(self) -> None:
        gateway = FakeGateway()
        async with listening(gateway) as target:
            await do(Workload(users=1, sessions=1, turns=3, **QUICK), target)
        conversation = MadeUp(Workload(users=1, turns=3)).conversation(0)
        said: list[dict[str, str]] = []
        for body, turn in zip(bodies(gateway), conversation.turns, strict=True):
            said += cast("Any", turn.messages)
            assert messages_of(body) == said
            said.append({"role": "assistant", "content": gateway.intended(body)})

    async def test_or_those_that_were_recorded(self, tmp_path: Path) -> None:
        chat = [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": "Three"},
        ]
        prompts = tmp_path / "chats.jsonl"
        prompts.write_text(json.dumps({"messages": chat}))
        gateway = FakeGateway()
        settings: dict[str, Any] = {"users": 1, "sessions": 1, "prompts": str(prompts), **QUICK}
        async with listening(gateway) as target:
            await do(Workload(history="recorded", **settings), target)
            await do(Workload(history="live", **settings), target)
        recorded, live = messages_of(bodies(gateway)[1]), messages_of(bodies(gateway)[3])
        assert recorded == chat
        assert live[1]["content"] == gateway.intended(bodies(gateway)[2]) != "Two"
        assert [live[0], live[2]] == [chat[0], chat[2]]

    async def test_sessions_begin_without_one(self) -> None:
        gateway = FakeGateway()
        async with listening(gateway) as target:
            await do(Workload(users=1, sessions=3, turns=2, **QUICK), target)
        assert [len(messages_of(body)) for body in bodies(gateway)] == [1, 3] * 3


class TestAnOpenLoop:
    """Sessions begin at their times, whatever became of those before."""

    async def test_a_gateway_that_stalls_is_asked_just_as_often(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(), token=0, times=None)
        workload = Workload(
            rate=50, arrivals="constant", duration="200ms", grace="50ms", spread="0s"
        )
        async with listening(gateway) as target:
            load = await do(workload, target)
        assert [record.intended for record in load.records] == [n * 20 * MS for n in range(10)]
        assert load.outcomes() == ["unfinished"] * 10
        assert len(gateway.requests) == 10
        assert gateway.open_streams == 0

    async def test_what_is_unfinished_after_the_grace_is_as_old_as_it_is(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(), token=2, times=None)
        workload = Workload(
            rate=50, arrivals="constant", duration="100ms", grace="100ms", spread="0s"
        )
        async with listening(gateway) as target:
            load = await do(workload, target)
        for record in load.records:
            assert record.ended >= 200 * MS
            assert (record.chunks, record.error) == (2, "")
        result = load.result()
        assert (result.intended, result.unfinished, result.good_fraction) == (5, 5, 0)
        latency = result.with_failures["latency_intended"]
        assert (latency.count, latency.endless) == (5, 0)
        assert latency.least is not None
        assert latency.least >= 119

    async def test_sessions_of_several_shards_interleave_evenly(self) -> None:
        workload = Workload(rate=50, arrivals="constant", duration="200ms", spread="0s")
        async with listening(FakeGateway()) as target:
            load = await do(workload, target, shards=3)
        assert [record.intended for record in load.records] == [n * 20 * MS for n in range(10)]
        assert [record.session for record in load.records] == list(range(10))
        assert [record.shard for record in load.records] == [0, 1, 2] * 3 + [0]

    async def test_a_later_turn_waits_for_the_reply_and_thinks(self) -> None:
        workload = Workload(
            rate=20, arrivals="constant", sessions=3, turns=2, think_time="30ms", spread="0s"
        )
        async with listening(FakeGateway(token_interval=0.001)) as target:
            load = await do(workload, target)
        ends = {record.session: record.ended for record in load.records if record.turn == 0}
        assert len(ends) == 3
        for record in load.records:
            if record.turn == 0:
                assert record.intended == record.session * 50 * MS
            else:
                assert record.intended == ends[record.session] + 30 * MS

    async def test_when_the_last_request_is_sent_nobody_waits_for_the_next_arrival(self) -> None:
        workload = Workload(rate=0.001, arrivals="constant", requests=2, turns=2, spread="0s")
        async with listening(FakeGateway()) as target:
            load = await do(workload, target)
        assert [(record.session, record.turn) for record in load.records] == [(0, 0), (0, 1)]

    async def test_the_last_ones_get_their_time_though_the_window_is_over(self) -> None:
        gateway = FakeGateway(tokens=5, token_interval=0.05)
        workload = Workload(rate=50, arrivals="constant", duration="100ms", spread="0s")
        async with listening(gateway) as target:
            load = await do(workload, target)
        assert load.outcomes() == ["ok"] * 5
        assert max(record.ended for record in load.records) > 250 * MS


class TestATrace:
    def write(self, folder: Path, *lines: dict[str, object]) -> Workload:
        path = folder / "trace.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return Workload(
            prompts=str(path), prompts_format="mooncake", think_time="10ms", spread="0s"
        )

    async def test_requests_are_sent_at_its_times_and_turns_after_their_delay(
        self, tmp_path: Path
    ) -> None:
        workload = self.write(
            tmp_path,
            {"timestamp": 1000, "input_length": 5, "output_length": 3, "session_id": "a"},
            {"timestamp": 1040, "input_length": 6, "output_length": 4},
            {"timestamp": 1001, "input_length": 7, "output_length": 5, "session_id": "a"},
            {"delay": 30, "input_length": 7, "output_length": 5, "session_id": "a"},
            {"timestamp": 1090, "input_length": 7, "output_length": 5, "session_id": "a"},
        )
        async with listening(FakeGateway(token_interval=0.002)) as target:
            load = await do(workload, target)
        first, second, third, fourth = [r for r in load.records if r.session == 0]
        (alone,) = [record for record in load.records if record.session == 1]
        assert (first.intended, alone.intended) == (0, 40 * MS)
        assert second.intended == first.ended + 10 * MS  # Its time was too early.
        assert third.intended == second.ended + 30 * MS
        assert fourth.intended == max(third.ended + 10 * MS, 90 * MS)
        assert [r.asked_tokens for r in (first, alone)] == [3, 4]

    async def test_it_ends_with_the_last_request_that_is_wanted(self, tmp_path: Path) -> None:
        request: dict[str, object] = {"input_length": 5, "output_length": 3}
        hour = 3_600_000
        workload = self.write(
            tmp_path, *[request | {"timestamp": when} for when in (0, 5, hour, 2 * hour)]
        )
        for limit in ({"sessions": 2}, {"requests": 2}, {"duration": "50ms"}):
            async with listening(FakeGateway()) as target:
                load = await do(Workload.of(workload.settings | limit), target)
            assert load.outcomes() == ["ok"] * 2


class TestLimits:
    @pytest.mark.parametrize("shards", [1, 2, 3, 9])
    @pytest.mark.parametrize("loop", [{"users": 4, "spread": 0}, {"rate": 2000, "spread": 0}])
    async def test_so_many_requests_are_sent_and_no_more(
        self, shards: int, loop: dict[str, Any]
    ) -> None:
        if "users" in loop and shards == 9:
            loop = {**loop, "users": 9}
        gateway = FakeGateway()
        async with listening(gateway) as target:
            load = await do(Workload(requests=7, turns=2, **loop), target, shards=shards)
        assert load.outcomes() == ["ok"] * 7
        assert len(gateway.requests) == 7
        assert load.result().ok == 7

    @pytest.mark.parametrize("shards", [1, 2, 3])
    @pytest.mark.parametrize("loop", [{"users": 4, "spread": 0}, {"rate": 2000, "spread": 0}])
    async def test_so_many_sessions_are_begun_each_once(
        self, shards: int, loop: dict[str, Any]
    ) -> None:
        async with listening(FakeGateway()) as target:
            load = await do(Workload(sessions=5, turns=2, **loop), target, shards=shards)
        places = sorted((record.session, record.turn) for record in load.records)
        assert places == [(session, turn) for session in range(5) for turn in range(2)]

    async def test_what_begins_in_the_warm_up_is_sent_but_does_not_count(self) -> None:
        workload = Workload(
            rate=50, arrivals="constant", warm_up="100ms", duration="200ms", spread="0s"
        )
        async with listening(FakeGateway()) as target:
            load = await do(workload, target)
        assert [record.window for record in load.records] == [False] * 5 + [True] * 10
        result = load.result()
        assert (result.intended, result.figures["ttft"].count, result.seconds) == (10, 10, 0.2)


class TestWhatIsAsked:
    async def test_the_length_of_the_answer_is(self) -> None:
        gateway = FakeGateway(answer=lambda body, _: intended_tokens(body))
        workload = Workload(users=1, requests=8, output_tokens="uniform(1, 30)", spread=0)
        async with listening(gateway) as target:
            load = await do(workload, target)
        assert [body["max_tokens"] for body in bodies(gateway)] == [
            record.asked_tokens for record in load.records
        ]
        assert len({record.asked_tokens for record in load.records}) > 3
        assert all("min_tokens" not in body for body in bodies(gateway))
        result = load.result()
        assert (result.tokens_by, result.wrong_lengths) == ("usage", 0)
        assert result.tokens == sum(record.output_tokens or 0 for record in load.records)

    async def test_no_fewer_where_it_is_to_be_exact(self) -> None:
        gateway = FakeGateway()
        workload = Workload(users=1, requests=1, output_tokens=5, exact_output=True, spread=0)
        async with listening(gateway) as target:
            await do(workload, target)
        (body,) = bodies(gateway)
        assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (5, 5, True)

    async def test_an_answer_of_another_length_is_told(self) -> None:
        gateway = FakeGateway(answer=lambda _body, _attempt: ["a", "b", "c"])
        async with listening(gateway) as target:
            load = await do(Workload(users=1, requests=2, output_tokens=5, spread=0), target)
        assert load.result().wrong_lengths == 2

    async def test_models_are_asked_by_their_weights_a_session_always_the_same(self) -> None:
        gateway = FakeGateway(models=None)
        workload = Workload(users=5, sessions=80, turns=2, model=("small=3", "large"), spread=0)
        async with listening(gateway) as target:
            load = await do(workload, target)
        sessions = {(record.session, record.model) for record in load.records}
        assert len(sessions) == 80
        assert 10 <= sum(model == "large" for _, model in sessions) <= 30
        asked = Counter(str(body["model"]) for body in bodies(gateway))
        assert asked == Counter(record.model for record in load.records)


class TestUsersWhoLeave:
    async def test_they_are_counted_apart_and_hang_up(self) -> None:
        gateway = FakeGateway(tokens=1000, token_interval=0.0005)
        workload = Workload(
            users=3, requests=9, cancelled=1.0, output_tokens=100, think_time="1ms", spread=0
        )
        async with listening(gateway) as target:
            load = await do(workload, target)
            await until(lambda: not gateway.open_streams)
        assert load.outcomes() == ["cancelled"] * 9
        assert not any(seen.complete for seen in gateway.requests)
        assert all(1 <= record.chunks <= 100 for record in load.records)
        assert len({record.chunks for record in load.records}) > 3
        result = load.result()
        assert (result.intended, result.cancelled, result.ok, result.errors) == (0, 9, 0, 0)
        assert result.figures == {}

    async def test_it_is_their_share(self) -> None:
        workload = Workload(users=4, requests=200, cancelled=0.25, output_tokens=12, spread=0)
        async with listening(FakeGateway(tokens=12)) as target:
            result = (await do(workload, target)).result()
        assert 30 <= result.cancelled <= 70
        assert result.ok == result.intended == 200 - result.cancelled

    async def test_what_they_read_is_in_their_next_turn(self) -> None:
        words = [f" {number}" for number in range(1000)]
        gateway = FakeGateway(answer=lambda _body, _attempt: words, token_interval=0.0005)
        workload = Workload(users=1, sessions=1, turns=2, cancelled=1.0, output_tokens=50, spread=0)
        async with listening(gateway) as target:
            load = await do(workload, target)
        _, second = bodies(gateway)
        assert messages_of(second)[1] == {
            "role": "assistant",
            "content": "".join(words[: load.records[0].chunks]),
        }


class TestFailures:
    async def test_they_are_counted_by_kind_and_the_user_goes_on_after_a_second(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(400), request=2)
        workload = Workload(users=1, requests=3, turns=2, spread=0)
        async with listening(gateway) as target:
            load = await do(workload, target)
        assert load.outcomes() == ["ok", "error", "ok"]
        _, failed, after = load.records
        assert after.intended == failed.ended + AFTER_AN_ERROR
        assert (after.session, after.turn) == (1, 0)  # The conversation is over.
        result = load.result()
        assert result.error_kinds == {"BadRequestError 400": 1}
        assert (result.errors, result.intended) == (1, 3)
        latency = result.with_failures["latency"]
        assert (latency.count, latency.endless, latency.most) == (3, 1, None)

    async def test_a_reply_that_takes_too_long_is_a_timeout(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(), token=3)
        workload = Workload(users=1, requests=1, timeout="50ms", spread=0)
        async with listening(gateway) as target:
            load = await do(workload, target)
        (record,) = load.records
        assert (record.outcome, record.error, record.chunks) == ("timeout", "StreamTimeout", 3)
        assert load.result().timeouts == 1

    async def test_a_key_that_is_refused_in_the_middle_is_an_error(self) -> None:
        gateway = FakeGateway()
        workload = Workload(users=1, requests=1, spread=0)
        async with listening(gateway) as target:
            gateway.rotate()
            load = await do(workload, target)
        assert load.result().error_kinds == {"AuthenticationError 401": 1}
        assert load.result().rejected == 1


class TestKeys:
    @pytest.mark.parametrize(
        ("settings", "shards", "groups"),
        [
            ({"users": 10}, 1, 1),
            ({"users": 10, "key_group": 5}, 1, 2),
            ({"users": 11, "key_group": 5}, 1, 3),
            ({"users": 10, "key_group": 5}, 2, 1),
            ({"users": 10, "key_group": 100}, 3, 1),
            ({"rate": 2, "duration": "8s", "warm_up": "2s", "key_group": 5}, 1, 4),
            ({"rate": 2, "sessions": 30, "key_group": 10}, 1, 3),
            ({"rate": 2, "requests": 30, "key_group": 10}, 2, 2),
        ],
    )
    def test_sessions_are_dealt_out_to_groups(
        self, settings: dict[str, Any], shards: int, groups: int
    ) -> None:
        assert groups_of(Workload(**settings), shards) == groups

    async def test_each_group_has_a_key_of_its_own(self) -> None:
        gateway = FakeGateway()
        tokens = tuple(f"token-{number}" for number in range(4))
        for token in tokens:
            gateway.add_account(token)
        workload = Workload(users=8, requests=16, key_group=2, spread=0, think_time="10ms")
        async with gateway.listen() as base_url:
            load = await do(workload, Target(base_url=base_url, tokens=tokens), shards=2)
        assert gateway.refreshes == 4
        assert {record.group for record in load.records} == {0, 1, 2, 3}
        assert {record.group % 2 == record.shard for record in load.records} == {True}

    async def test_when_all_are_replaced_each_group_refreshes_once_and_nothing_is_lost(
        self,
    ) -> None:
        workload = Workload(
            users=6,
            key_group=3,
            duration="1500ms",
            rotations=("500ms",),
            output_tokens=20,
            fake_token_interval="10ms",
            fake_auth_latency="50ms",
        )
        result = await run(workload)
        assert (result.refreshes, result.lost, result.doubled) == (2, 0, 0)
        assert result.ok == result.intended > 0
        assert result.pauses >= 2
        assert result.paused_seconds > 0
        assert result.taken_up.keys() == {"replay"}
        assert result.figures["icl_paused"].count >= 1
        (rotation,) = result.rotations
        assert rotation >= 0.5

    async def test_of_another_gateway_that_signs_in_they_are_renewed_at_those_times(self) -> None:
        gateway = FakeGateway()
        workload = Workload(users=2, duration="800ms", rotations=("100ms",), think_time="10ms")
        async with gateway.listen() as base_url:
            load = await do(workload, Target(base_url=base_url, tokens=("a token",)))
        assert load.result().refreshes == 1
        assert gateway.refreshes == 2


class TestATargetThatCannotBe:
    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_shard, "TRY_OUT", RetryPolicy(max_retries=0))

    @pytest.mark.parametrize(
        ("how", "complaint"),
        [
            ("key", r"the first request to (\S+) failed: no connection to \S+: is the gateway up"),
            ("identity_token", "signing in failed: no connection to the gateway .* is it up"),
        ],
    )
    async def test_one_that_is_down_is_told_at_once(self, how: str, complaint: str) -> None:
        with closed_port() as port:
            workload = Workload(base_url=f"http://127.0.0.1:{port}/v1", users=2, requests=2)
            with nothing_left(), trio.fail_after(10), pytest.raises(TargetError, match=complaint):
                await run(workload, **cast("Any", {how: secret(how)}))

    async def test_a_key_that_is_refused_is_told(self) -> None:
        async with FakeGateway().listen() as base_url:
            workload = Workload(base_url=base_url, users=2, requests=2)
            with pytest.raises(TargetError, match=r"failed: Authentication failed$"):
                await run(workload, key=secret("key"))

    async def test_signing_in_that_is_refused_is_told(self) -> None:
        gateway = FakeGateway()
        gateway.refuse_refresh = True
        async with gateway.listen() as base_url:
            workload = Workload(base_url=base_url, users=2, requests=2)
            with pytest.raises(TargetError, match=r"^signing in failed: the refresh was refused"):
                await run(workload, identity_token=secret("token"))

    async def test_no_file_left_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise GatewayError("this process may open no more files")

        monkeypatch.setattr(_target, "open_gateway", full)
        workload = Workload(base_url="http://127.0.0.1:9/v1", users=1)
        complaint = r"^http://127\.0\.0\.1:9/v1 cannot be asked: this process may open no more"
        with pytest.raises(TargetError, match=complaint):
            await run(workload, key=secret("key"))

    @pytest.mark.parametrize(
        ("keys", "complaint"),
        [
            ({}, "give keys or identity tokens, one of both"),
            ({"key": "k", "identity_token": "t"}, "give keys or identity tokens, one of both"),
        ],
    )
    async def test_without_a_key_or_with_two_kinds_of_them(
        self, keys: dict[str, str], complaint: str
    ) -> None:
        with pytest.raises(ValueError, match=complaint):
            await run(Workload(base_url="http://127.0.0.1:9/v1", users=1), **cast("Any", keys))

    async def test_prompts_that_cannot_be_read(self) -> None:
        with pytest.raises(ValueError, match=r"nowhere\.jsonl cannot be read: No such file"):
            await run(Workload(users=1, prompts="nowhere.jsonl"))

    def test_its_keys_are_not_shown(self) -> None:
        target = Target(base_url="http://x", keys=(secret("a"), secret("b")))
        assert repr(target) == "<Target http://x keys=2 tokens=0>"


class TestWhatIsTold:
    """Once a second, and at the end."""

    async def test_every_second_is_told_and_the_rest_at_the_end(self) -> None:
        workload = Workload(users=2, duration="1200ms", think_time="5ms", **QUICK)
        async with listening(FakeGateway(token_interval=0.001)) as target:
            load = await do(workload, target)
        *whole, rest = load.intervals
        assert [interval.number for interval in load.intervals] == [*range(len(load.intervals))]
        assert [interval.second for interval in whole] == [*range(len(whole))]
        assert [(one.last, one.ended) for one in whole] == [(False, "")] * len(whole)
        assert (rest.last, rest.ended, rest.active) == (True, "complete", 0)
        assert rest.second >= len(whole) >= 1
        chunks = sum(interval.tokens for interval in load.intervals)
        assert chunks == sum(record.chunks for record in load.records)
        assert sum(interval.sent for interval in load.intervals) == len(load.records)
        assert 0 < rest.tokens_in_window <= chunks
        assert all(interval.cpu > 0 and interval.polls_ms > 0 for interval in whole)

    async def test_a_run_that_is_stopped_leaves_what_is_under_way_unfinished(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(), token=2, times=None)

        async def stop(load: Load, shards: list[Shard]) -> None:
            await until(lambda: gateway.open_streams == 3)
            shards[0].stop()

        async with listening(gateway) as target:
            load = await do(Workload(users=3, spread=0), target, meanwhile=stop)
            await until(lambda: not gateway.open_streams)
        assert load.outcomes() == ["unfinished"] * 3
        assert [interval.ended for interval in load.intervals][-1] == "interrupted"
        result = load.result()
        assert (result.interrupted, result.unfinished) == (True, 3)
        assert 0 < result.seconds < 60

    async def test_a_shard_that_fails_is_not_done(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_made_up: MadeUp, number: int) -> Conversation:
            raise ZeroDivisionError(number)

        monkeypatch.setattr(MadeUp, "conversation", fail)
        intervals: list[Load] = []

        async def keep(load: Load, _shards: list[Shard]) -> None:
            intervals.append(load)
            await trio.lowlevel.checkpoint()

        async with listening(FakeGateway()) as target:
            with pytest.raises(ExceptionGroup):
                await do(Workload(users=1, spread=0), target, meanwhile=keep)
        assert not any(interval.last for load in intervals for interval in load.intervals)

    async def test_the_figures_are_those_of_the_records(self) -> None:
        gateway = FakeGateway(token_interval=0.002)
        workload = Workload(users=3, requests=30, spread=0, slo=("latency=1h",))
        async with listening(gateway) as target:
            load = await do(workload, target, shards=2)
        result = load.result()
        chunks = sum(record.chunks for record in load.records)
        assert result.figures["icl"].count == chunks - 30
        assert result.figures["icl"].most == pytest.approx(
            max(record.longest_gap for record in load.records) / MS, rel=1e-3, abs=1e-3
        )
        for name in ("ttft", "ttfo", "latency"):
            values = sorted(cast("int", getattr(record, name)) / MS for record in load.records)
            of = result.figures[name]
            assert (of.count, result.with_failures[name].count) == (30, 30)
            assert of.least == pytest.approx(values[0], rel=1e-3, abs=1e-3)
            assert of.p50 == pytest.approx(values[14], rel=1e-3, abs=1e-3)
            assert of.most == pytest.approx(values[-1], rel=1e-3, abs=1e-3)
        assert result.good_fraction == 1

    async def test_whoever_runs_it_is_called_with_what_there_is(self) -> None:
        seen: list[int] = []
        workload = Workload(users=2, requests=4, fake_token_interval="1ms", **QUICK)
        result = await run(workload, on_second=lambda merge: seen.append(merge.counts["ok"]))
        assert seen[-1] == result.ok == 4
        assert (result.target, result.closed_loop, result.lost) == ("fake gateway", True, 0)


class TestNothingIsLeft:
    """However it ends: no task, no process, no descriptor."""

    WORKLOAD = Workload(users=5, think_time="10ms", fake_token_interval="5ms", **QUICK)

    async def test_of_a_run_that_is_over(self) -> None:
        with nothing_left():
            await run(Workload(users=2, requests=2, fake_token_interval="1ms", **QUICK))

    @pytest.mark.parametrize("when", ["in the middle", "before it begins"])
    async def test_of_a_run_that_is_cancelled(self, when: str) -> None:
        with nothing_left(), trio.CancelScope() as scope:
            if when == "before it begins":
                scope.deadline = trio.current_time() + 0.2

            def cancel(_: Merge) -> None:
                scope.cancel()

            await run(self.WORKLOAD, on_second=cancel)
        assert scope.cancelled_caught

    @pytest.mark.parametrize(
        ("raised", "comes_out"),
        [(KeyboardInterrupt, KeyboardInterrupt), (ZeroDivisionError, GatewayError)],
    )
    async def test_of_a_run_that_fails(
        self, raised: type[BaseException], comes_out: type[BaseException]
    ) -> None:
        def fail(_: Merge) -> None:
            raise raised

        with nothing_left(), pytest.raises(comes_out) as failed:
            await run(self.WORKLOAD, on_second=fail)
        assert raised in (type(failed.value), type(failed.value.__cause__))

    async def test_of_one_within_somebody_elses_nursery(self) -> None:
        results: list[int] = []

        async def load() -> None:
            workload = Workload(users=2, requests=2, fake_token_interval="1ms", **QUICK)
            results.append((await run(workload)).ok)

        with nothing_left():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(load)
                nursery.start_soon(load)
        assert results == [2, 2]

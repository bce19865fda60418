"""Every fault of the fake gateway, and when it strikes."""

import json
from typing import cast

import pytest
import trio

from gz_trio.testing import (
    DIALECTS,
    Comment,
    Cut,
    Dialect,
    Drip,
    EarlyDone,
    EmptyStream,
    ErrorFrame,
    FakeGateway,
    Fault,
    Insert,
    OtherText,
    Reset,
    Stall,
    Status,
    Warning_,
)
from tests.testing.fake_gateway_wire import JSON, Answer, Connect, chat, in_memory


async def ask(
    gateway: FakeGateway, connect: Connect = in_memory, body: JSON | None = None
) -> Answer:
    async with connect(gateway) as wire:
        return await wire.ask(chat() if body is None else body, gateway.key)


class TestStatus:
    """An answer of any status, with a body in anybody's shape."""

    async def test_comes_in_place_of_the_answer_with_its_headers(self, connect: Connect) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(429, headers={"Retry-After": "2", "X-RateLimit-Scope": "upstream"}))
        answer = await ask(gateway, connect)
        assert answer.status == 429
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["x-ratelimit-scope"] == "upstream"
        error = cast("JSON", answer.json["error"])
        assert error["context"] == {"retry_after": 2}
        assert (await ask(gateway, connect)).status == 200

    @pytest.mark.parametrize(
        ("dialect", "body"),
        [
            ("vllm", {"error": "No"}),
            ("message", {"message": "No"}),
            ("detail", {"detail": "No"}),
            (
                "detail_object",
                {"detail": {"message": "No", "type": "authentication_error", "code": None}},
            ),
            (
                "vllm_object",
                {
                    "object": "error",
                    "message": "No",
                    "type": "authentication_error",
                    "param": None,
                    "code": 401,
                },
            ),
            (
                "openai",
                {
                    "error": {
                        "message": "No",
                        "type": "authentication_error",
                        "param": None,
                        "code": "invalid_api_key",
                    }
                },
            ),
            (
                "litellm",
                {
                    "error": {
                        "message": "Authentication Error, No",
                        "type": "auth_error",
                        "param": "api_key",
                        "code": "401",
                    }
                },
            ),
            (
                "openrouter",
                {
                    "error": {
                        "code": 401,
                        "message": "No",
                        "metadata": {"provider_name": "Fake"},
                    }
                },
            ),
            (
                "anthropic",
                {
                    "type": "error",
                    "error": {"type": "authentication_error", "message": "No"},
                    "request_id": "req_1",
                },
            ),
            (
                "gatewayz",
                {
                    "error": {
                        "type": "authentication_error",
                        "message": "No",
                        "detail": "No",
                        "code": "AUTHENTICATION_ERROR",
                        "status": 401,
                        "request_id": "req_1",
                        "timestamp": "2026-11-01T00:00:00Z",
                        "suggestions": [],
                        "context": {},
                        "docs_url": "https://docs.gatewayz.ai/errors",
                    }
                },
            ),
        ],
    )
    async def test_speaks_json_in_every_dialect(self, dialect: Dialect, body: JSON) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(401, "No", dialect=dialect))
        answer = await ask(gateway)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json == body

    async def test_may_be_a_page_of_a_proxy_or_nothing_at_all(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(502, "Bad Gateway", dialect="html"))
        gateway.fault(Status(503, dialect="empty"))
        page, nothing = await ask(gateway), await ask(gateway)
        assert page.headers["content-type"] == "text/html"
        assert b"<h1>502 Bad Gateway</h1>" in page.body
        assert (nothing.status, nothing.body) == (503, b"")
        assert "content-type" not in nothing.headers

    @pytest.mark.parametrize("dialect", DIALECTS)
    @pytest.mark.parametrize("status", [400, 401, 402, 418, 429, 500, 529, 599])
    async def test_has_a_body_for_every_status(self, dialect: Dialect, status: int) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(status, dialect=dialect))
        answer = await ask(gateway)
        assert (answer.status, answer.end) == (status, "complete")

    @pytest.mark.parametrize(
        ("status", "key"),
        [(401, "detail"), (402, "detail"), (403, "detail"), (404, "detail")]
        + [(status, "error") for status in (400, 413, 422, 429, 500, 502, 503, 504)],
    )
    async def test_has_gatewayz_shape_by_default(self, status: int, key: str) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(status))
        assert set((await ask(gateway)).json) == {key}

    @pytest.mark.parametrize("body", [b"\xff\x00", "plain", {"api_key": None}])
    async def test_may_have_any_body(self, body: bytes | str | JSON) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(200, body=body, headers={"content-type": "x/y"}))
        answer = await ask(gateway)
        expected = json.dumps(body, separators=(",", ":")) if isinstance(body, dict) else body
        assert answer.body == (expected.encode() if isinstance(expected, str) else expected)
        assert answer.headers["content-type"] == "x/y"

    async def test_carries_type_and_code(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(401, code="GUEST_NOT_CONFIGURED"))
        gateway.fault(Status(429, dialect="openai", type="tokens", code="insufficient_quota"))
        assert (await ask(gateway)).json["code"] == "GUEST_NOT_CONFIGURED"
        error = cast("JSON", (await ask(gateway)).json["error"])
        assert (error["type"], error["code"]) == ("tokens", "insufficient_quota")

    async def test_of_401_counts_as_rejected_but_not_at_auth(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(401))
        gateway.fault(Status(401), path="/auth")
        async with in_memory(gateway) as wire:
            await wire.ask(chat(), gateway.key)
            await wire.ask({}, path="/auth")
        assert gateway.rejected == 1

    @pytest.mark.parametrize("status", [204, 304])
    async def test_without_a_body_by_nature_sends_none(self, status: int) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(status))
        async with in_memory(gateway) as wire:
            assert (await wire.ask(chat(), gateway.key)).body == b""
            assert (await wire.ask(chat(), gateway.key)).status == 200


class TestErrorFrame:
    """An error inside a stream that began well."""

    @pytest.mark.parametrize(
        ("type", "status"),
        [
            ("rate_limit_error", 429),
            ("capacity_error", 503),
            ("provider_error", 502),
            ("timeout_error", 504),
            ("not_found_error", 404),
            ("auth_error", 401),
            ("stream_error", 500),
            ("stream_timeout", 504),
            ("empty_stream_error", 502),
            ("plan_limit_exceeded", 429),
            ("unheard_of", 500),
        ],
    )
    async def test_of_gatewayz_is_followed_by_done(self, type: str, status: int) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame(type), token=3)
        answer = await ask(gateway)
        assert (answer.status, answer.end, answer.data[-1]) == (200, "complete", "[DONE]")
        assert set(answer.error) == {
            "message",
            "type",
            "code",
            "status",
            "provider",
            "model",
            "request_id",
        }
        assert (answer.error["type"], answer.error["status"]) == (type, status)
        assert answer.error["request_id"] == answer.headers["x-request-id"]
        assert gateway.intended(chat()).startswith(answer.text())
        assert (gateway.requests[0].tokens, gateway.requests[0].complete) == (3, False)
        assert gateway.auth_errors == (type == "auth_error")

    async def test_of_openrouter_is_a_chunk_with_the_finish_reason_error(self) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame(dialect="openrouter", message="Disconnected"), token=1)
        answer = await ask(gateway)
        error = answer.chunks[-1]
        assert error["object"] == "chat.completion.chunk"
        assert cast("list[JSON]", error["choices"])[0]["finish_reason"] == "error"
        assert (answer.error["code"], answer.error["message"]) == (502, "Disconnected")
        assert answer.data[-1] == "[DONE]"

    async def test_may_have_any_data_and_no_done_after_it(self) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame(data={"error": "No"}, done=False))
        gateway.fault(ErrorFrame(data=b"{broken"))
        assert (await ask(gateway)).data == ['{"error":"No"}']
        assert (await ask(gateway)).data == ["{broken", "[DONE]"]

    async def test_without_a_token_comes_first(self, connect: Connect) -> None:
        gateway = FakeGateway()
        gateway.fault(ErrorFrame("capacity_error"))
        answer = await ask(gateway, connect)
        assert [list(chunk) for chunk in answer.chunks] == [["error"]]


class TestCutAndReset:
    """Connections that end too early."""

    @pytest.mark.parametrize(("fault", "end"), [(Cut, "cut"), (Reset, "reset")])
    async def test_at_a_token_the_tokens_before_it_still_arrive(
        self, fault: type[Cut | Reset], end: str, connect: Connect
    ) -> None:
        gateway = FakeGateway(tokens=5)
        gateway.fault(fault(), token=2)
        answer = await ask(gateway, connect)
        assert (answer.status, answer.end) == (200, end)
        assert len(answer.chunks) == 3
        assert gateway.intended(chat()).startswith(answer.text())

    @pytest.mark.parametrize(("fault", "end"), [(Cut, "cut"), (Reset, "reset")])
    async def test_in_place_of_the_head_nothing_arrives(
        self, fault: type[Cut | Reset], end: str, connect: Connect
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(fault())
        answer = await ask(gateway, connect)
        assert (answer.status, answer.body, answer.end) == (None, b"", end)
        assert gateway.requests[0].status is None

    @pytest.mark.parametrize(("fault", "end"), [(Cut, "cut"), (Reset, "reset")])
    @pytest.mark.parametrize(
        ("stream", "token", "before"),
        [(False, None, 0), (True, None, 0), (True, 0, 0), (True, 1, 2)],
    )
    async def test_after_any_number_of_bytes_exactly_these_arrive(
        self,
        fault: type[Cut | Reset],
        end: str,
        stream: bool,
        token: int | None,
        before: int,
    ) -> None:
        body = chat(stream=stream)
        whole = await ask(FakeGateway(tokens=2), body=body)
        start = len("".join(f"{line}\n\n" for line in whole.lines[:before]).encode())
        for size in range(0, len(whole.body) - start, 3):
            gateway = FakeGateway(tokens=2)
            gateway.fault(fault(size), token=token)
            answer = await ask(gateway, body=body)
            assert (answer.status, answer.end, len(answer.body)) == (200, end, start + size)
            assert not gateway.requests[0].complete

    async def test_after_more_bytes_than_there_are_nothing_happens(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Cut(1_000_000))
        assert (await ask(gateway)).end == "complete"

    async def test_auth_can_be_cut_too(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Cut(10), path="/auth")
        async with in_memory(gateway) as wire:
            answer = await wire.ask({}, path="/auth")
        assert (answer.status, len(answer.body), answer.end) == (200, 10, "cut")


class TestStall:
    """Silence."""

    @pytest.mark.parametrize(("token", "head"), [(None, 5.0), (0, 0.0), (3, 0.0)])
    async def test_lasts_its_seconds_and_then_the_answer_goes_on(
        self, token: int | None, head: float, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(5), token=token)
        async with in_memory(gateway) as wire:
            await wire.send(chat(), gateway.key)
            await wire.event()
            assert trio.current_time() == head
            answer = await wire.answer()
        assert trio.current_time() == 5
        assert answer.text() == gateway.intended(chat())

    async def test_is_for_ever_by_default(self, autojump_clock: trio.testing.MockClock) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(), token=1)
        with trio.move_on_after(1e6) as scope:
            await ask(gateway)
        assert scope.cancelled_caught
        assert gateway.open_streams == 0


class TestDrip:
    """Byte by byte."""

    @pytest.mark.parametrize("token", [None, 0])
    async def test_sends_every_byte_alone(
        self, token: int | None, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(Drip(0.5), token=token)
        async with gateway.connect() as stream:
            content = json.dumps(chat()).encode()
            await stream.send_all(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b"
                % (gateway.key.encode(), len(content), content)
            )
            pieces = [bytes(piece) async for piece in stream]
        assert {len(piece) for piece in pieces} == {1}
        body = b"".join(pieces).decode()
        assert "data: [DONE]" in body
        assert trio.current_time() > 0.4 * len(body)

    async def test_loses_nothing(self, connect: Connect) -> None:
        gateway = FakeGateway()
        gateway.fault(Drip(), times=None)
        assert (await ask(gateway, connect)).text() == gateway.intended(chat())
        gateway.fault(Drip(), path="/auth")
        async with connect(gateway) as wire:
            assert (await wire.ask({}, path="/auth")).json["api_key"] == gateway.key


class TestLies:
    """Answers that look right."""

    async def test_early_done_looks_complete(self, connect: Connect) -> None:
        gateway = FakeGateway(tokens=5)
        gateway.fault(EarlyDone("stop"), token=2)
        answer = await ask(gateway, connect)
        assert (answer.end, answer.data[-1]) == ("complete", "[DONE]")
        assert cast("list[JSON]", answer.chunks[-1]["choices"])[0]["finish_reason"] == "stop"
        assert 0 < len(answer.text()) < len(gateway.intended(chat()))
        assert not gateway.requests[0].complete

    async def test_early_done_may_leave_out_the_finish_reason_and_the_done(self) -> None:
        gateway = FakeGateway(tokens=5)
        gateway.fault(EarlyDone(), token=2)
        gateway.fault(EarlyDone(done=False), token=5)
        first, second = await ask(gateway), await ask(gateway)
        assert (len(first.chunks), first.data[-1]) == (3, "[DONE]")
        assert (second.end, len(second.data), second.data[-1] != "[DONE]") == ("complete", 6, True)
        assert second.text() == gateway.intended(chat())

    async def test_an_empty_stream_is_nothing_but_done(self, connect: Connect) -> None:
        gateway = FakeGateway()
        gateway.fault(EmptyStream())
        answer = await ask(gateway, connect)
        assert (answer.status, answer.end, answer.data) == (200, "complete", ["[DONE]"])

    @pytest.mark.parametrize("stream", [True, False])
    async def test_other_text_differs_on_the_replay(self, stream: bool) -> None:
        gateway = FakeGateway()
        gateway.fault(OtherText())
        body = chat(stream=stream)
        other, own = await ask(gateway, body=body), await ask(gateway, body=body)
        assert len(other.body) > len(own.body)
        assert "≠" in other.body.decode()
        assert "≠" not in own.body.decode()
        assert gateway.requests[0].complete

    async def test_other_text_differs_from_its_token_on(self) -> None:
        gateway = FakeGateway(answer=lambda body, attempt: ["a", "b", "c"])
        gateway.fault(OtherText("X"), token=1)
        assert (await ask(gateway)).text() == "aXbXc"
        assert gateway.intended(chat()) == "abc"


class TestWhatComesInBetween:
    """Things in a stream that are no part of the answer and do not end it."""

    @pytest.mark.parametrize(
        ("fault", "line"),
        [
            (Comment(), ": OPENROUTER PROCESSING"),
            (Comment("ping"), ": ping"),
            (Insert(b"event: ping\ndata: {}\n\n"), "event: ping\ndata: {}"),
            (Insert(b"retry: 10\n\n"), "retry: 10"),
        ],
    )
    @pytest.mark.parametrize(("token", "place"), [(None, 0), (2, 3)])
    async def test_stands_before_its_token(
        self, fault: Fault, line: str, token: int | None, place: int
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(fault, token=token)
        answer = await ask(gateway)
        assert answer.lines[place] == line
        assert answer.lines[-1] == "data: [DONE]"
        assert gateway.requests[0].complete

    async def test_a_warning_looks_like_an_error_but_the_stream_goes_on(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Warning_("careful"), token=2)
        answer = await ask(gateway)
        assert answer.error["type"] == "stream_normalization_warning"
        assert answer.error["message"] == "careful"
        assert answer.text() == gateway.intended(chat())


class TestWhenFaultsStrike:
    """`FakeGateway.fault`: when all that is named comes together."""

    async def statuses(self, gateway: FakeGateway, count: int) -> list[int | None]:
        return [(await ask(gateway)).status for _ in range(count)]

    async def test_once_by_default(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(500))
        assert await self.statuses(gateway, 2) == [500, 200]

    async def test_times_or_for_ever(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(500), times=2)
        gateway.fault(Status(503), times=None)
        assert await self.statuses(gateway, 5) == [500, 500, 503, 503, 503]

    async def test_in_one_request(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(500), request=2)
        assert await self.statuses(gateway, 3) == [200, 500, 200]

    async def test_under_one_key(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(500), generation=2, times=None)
        assert await self.statuses(gateway, 2) == [200, 200]
        gateway.rotate()
        assert await self.statuses(gateway, 2) == [500, 500]
        gateway.rotate()
        assert await self.statuses(gateway, 1) == [200]

    async def test_at_one_endpoint(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(500), path="/auth")
        gateway.fault(Status(503), path="/v1/models")
        async with in_memory(gateway) as wire:
            assert (await wire.ask(chat(), gateway.key)).status == 200
            assert (await wire.ask({}, path="/auth")).status == 500
            models = await wire.ask(None, gateway.key, method="GET", path="/v1/models")
            assert models.status == 503

    async def test_before_the_key_is_looked_at(self) -> None:
        gateway = FakeGateway()
        gateway.fault(Status(429))
        async with in_memory(gateway) as wire:
            assert (await wire.ask(chat(), "wrong")).status == 429

    async def test_those_of_one_moment_in_the_order_in_which_they_were_added(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        gateway = FakeGateway()
        faults: list[Fault] = [Stall(3), Comment("a"), Comment("b"), ErrorFrame(), EarlyDone()]
        for fault in faults:
            gateway.fault(fault, token=1)
        first, second = await ask(gateway), await ask(gateway)
        assert gateway.requests[0].faults == faults[:4]
        assert gateway.requests[1].faults == faults[4:]
        assert [line for line in first.lines if line.startswith(":")] == [": a", ": b"]
        assert len(second.chunks) == 2

    async def test_only_if_their_token_is_reached(self) -> None:
        gateway = FakeGateway(tokens=3)
        gateway.fault(Cut(), token=4)
        gateway.fault(ErrorFrame(), token=3)
        assert (await ask(gateway)).error["type"] == "provider_error"
        assert (await ask(gateway)).end == "complete"
        gateway.tokens = 4
        assert (await ask(gateway)).end == "cut"

    async def test_one_that_another_request_used_up_meanwhile_does_not(
        self, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        gateway = FakeGateway()
        gateway.fault(Stall(10), request=1)
        gateway.fault(Status(500))
        statuses: list[int | None] = []

        async def one() -> None:
            statuses.append((await ask(gateway)).status)

        nursery.start_soon(one)
        await trio.sleep(5)
        await one()
        await trio.sleep(10)
        assert statuses == [500, 200]

    @pytest.mark.parametrize(
        ("fault", "where", "message"),
        [
            (Status(500), {"token": 1}, "token"),
            (EmptyStream(), {"token": 1}, "EarlyDone"),
            (Cut(), {"times": 0}, "times is 0"),
            (Cut(), {"request": 0}, "request is 0"),
            (Cut(), {"generation": 0}, "generation is 0"),
            (Cut(), {"token": -1}, "token is -1"),
        ],
    )
    def test_never_where_they_cannot(
        self, fault: Fault, where: dict[str, int], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            FakeGateway().fault(
                fault,
                token=where.get("token"),
                times=where.get("times", 1),
                request=where.get("request"),
                generation=where.get("generation"),
            )

    @pytest.mark.parametrize("fault", [ErrorFrame(), OtherText(), Comment(), EmptyStream()])
    def test_never_in_a_stream_where_there_is_none(self, fault: Fault) -> None:
        with pytest.raises(ValueError, match="/auth"):
            FakeGateway().fault(fault, path="/auth")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cut(-1), "after_bytes is -1"),
        (lambda: Reset(-1), "after_bytes is -1"),
        (lambda: Stall(-1), "seconds is -1"),
        (lambda: Stall(float("nan")), "seconds is nan"),
        (lambda: Drip(-0.1), "interval is -0.1"),
        (lambda: Status(99), "status is 99"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "fault",
    [
        Status(401, headers={"authorization": "secret"}),
        Status(200, body={"api_key": "secret"}),
        ErrorFrame(data={"message": "secret"}),
    ],
)
def test_the_repr_of_a_fault_shows_nothing_that_may_be_secret(fault: Fault) -> None:
    assert "secret" not in repr(fault)

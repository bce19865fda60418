"""What one reply does next: its 401s in a row (rule 8), its `auth_error` frames (rule 9)."""

from __future__ import annotations

import pytest

from gz_trio import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    GatewayError,
    InternalServerError,
    RateLimitError,
    RefreshTimeout,
    RetryPolicy,
)
from gz_trio._protocol.recovery import ASK_AGAIN, Recovery
from gz_trio._protocol.retry import Decision, Raise, Refresh, Wait

REJECTED = AuthenticationError("401")


class Reply:
    """A reply's failures, by name."""

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        self.recovery = Recovery(policy or RetryPolicy())

    def fails(
        self, error: GatewayError, *, key: int = 1, in_frame: bool = False, mid: bool = False
    ) -> Decision:
        return self.recovery.after(
            error, generation=key, in_frame=in_frame, mid_stream=mid, jitter=0.0
        )

    def gets_401(self, key: int) -> Decision:
        return self.fails(REJECTED, key=key)

    def gets_auth_error(self, key: int) -> Decision:
        return self.fails(REJECTED, key=key, in_frame=True, mid=True)


def test_a_401_asks_for_a_refresh() -> None:
    assert Reply().gets_401(1) == Refresh()


def test_the_third_401_in_a_row_is_raised() -> None:
    reply = Reply()
    assert [reply.gets_401(key) for key in (1, 2, 3)] == [Refresh(), Refresh(), Raise()]


def test_an_accepted_event_between_begins_the_row_anew() -> None:
    reply = Reply()
    for key in (1, 2, 3, 4, 5, 6):
        assert reply.gets_401(key) == Refresh()
        if key % 2 == 0:
            reply.recovery.accepted()


def test_an_auth_error_frame_first_asks_again_with_the_current_key() -> None:
    assert Reply().gets_auth_error(1) == ASK_AGAIN
    assert ASK_AGAIN.seconds == 0


def test_after_an_auth_error_frame_a_401_decides() -> None:
    reply = Reply()
    assert [reply.gets_auth_error(1), reply.gets_401(1)] == [ASK_AGAIN, Refresh()]


def test_a_second_auth_error_under_the_same_key_counts_as_its_401() -> None:
    reply = Reply()
    assert [reply.gets_auth_error(1), reply.gets_auth_error(1)] == [ASK_AGAIN, Refresh()]


def test_an_auth_error_under_a_new_key_asks_again_anew() -> None:
    reply = Reply()
    reply.gets_auth_error(1)
    reply.recovery.progressed()
    assert reply.gets_auth_error(2) == ASK_AGAIN


def test_auth_errors_without_new_text_come_to_an_end_though_each_began_with_an_event() -> None:
    reply = Reply()
    decisions: list[Decision] = []
    for key in range(1, 100):
        for _ in range(2):
            decisions.append(reply.gets_auth_error(key))
            reply.recovery.accepted()
    assert decisions[:5] == [ASK_AGAIN, Refresh(), ASK_AGAIN, Refresh(), ASK_AGAIN]
    assert set(map(type, decisions[5:])) == {Raise}


def test_new_text_begins_the_count_of_auth_errors_anew() -> None:
    reply = Reply()
    for key in range(1, 20):
        assert reply.gets_auth_error(key) == ASK_AGAIN
        assert reply.gets_401(key) == Refresh()
        reply.recovery.accepted()
        reply.recovery.progressed()


def test_text_after_a_restart_is_no_progress() -> None:
    """Or a gateway that fails each of its sampled answers would be asked, and paid, for ever."""
    reply = Reply()
    decisions: list[Decision] = []
    for key in range(1, 100):
        for _ in range(2):
            reply.recovery.accepted()
            reply.recovery.progressed()
            decisions.append(reply.gets_auth_error(key))
            reply.recovery.restarted()
    assert decisions[:5] == [ASK_AGAIN, Refresh(), ASK_AGAIN, Refresh(), ASK_AGAIN]
    assert set(map(type, decisions[5:])) == {Raise}


@pytest.mark.parametrize(
    "between",
    [
        APIConnectionError("down"),
        RateLimitError("slow"),
        InternalServerError("502", retryable=True),
    ],
)
def test_other_failures_between_do_not_break_a_row_of_401s(between: GatewayError) -> None:
    reply = Reply()
    decisions: list[Decision] = []
    for key in (1, 2, 3):
        decisions.append(reply.gets_401(key))
        assert isinstance(reply.fails(between, key=key), Wait)
    assert decisions == [Refresh(), Refresh(), Raise()]


def test_a_guest_is_not_asked_again_even_in_a_frame() -> None:
    guest = AuthenticationError("guests", code="GUEST_NOT_CONFIGURED")
    assert Reply().fails(guest, in_frame=True, mid=True) == Raise()


def test_refreshes_are_not_counted_as_retries() -> None:
    reply = Reply(RetryPolicy(max_retries=1))
    reply.gets_auth_error(1)
    reply.gets_401(1)
    reply.recovery.accepted()
    assert isinstance(reply.fails(APIConnectionError("cut"), mid=True), Wait)


def test_asking_again_after_an_auth_error_is_not_counted_as_a_retry() -> None:
    reply = Reply(RetryPolicy(max_retries=0))
    assert reply.gets_auth_error(1) == ASK_AGAIN
    assert reply.gets_401(1) == Refresh()


def test_retries_are_counted_over_the_whole_reply_and_progress_gives_none_back() -> None:
    reply = Reply(RetryPolicy(max_retries=3))
    decisions: list[Decision] = []
    for _ in range(4):
        decisions.append(reply.fails(APIConnectionError("cut"), mid=True))
        reply.recovery.accepted()
        reply.recovery.progressed()
    assert [type(decision) for decision in decisions] == [Wait, Wait, Wait, Raise]


@pytest.mark.parametrize(
    ("error", "decision"),
    [
        (RefreshTimeout("Auth refresh timeout"), Raise()),
        (AuthenticationError("guests", code="GUEST_NOT_CONFIGURED"), Raise()),
        (BadRequestError("no"), Raise()),
        (RateLimitError("slow"), Wait(1.5, rate_limited=True, row="rate limit")),
        (APIConnectionError("down"), Wait(2.0, rate_limited=False, row="failure")),
    ],
)
def test_everything_else_goes_by_the_table(error: GatewayError, decision: Decision) -> None:
    assert Reply().fails(error) == decision

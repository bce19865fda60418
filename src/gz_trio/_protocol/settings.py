"""The settings that a caller may change: how often to retry, how to resume, how long to wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how patiently, one reply is tried again.

    Args:
        max_retries: Attempts after the first one, over the whole reply; refreshes are not counted.
        max_retry_after: The longest wait in seconds that a server may ask for; a longer
            `Retry-After` is raised as `RateLimitError`, not waited for.

    >>> RetryPolicy(max_retries=2)
    RetryPolicy(max_retries=2, max_retry_after=120.0)
    """

    max_retries: int = 7
    max_retry_after: float = 120.0

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries is {self.max_retries}, but must be 0 or more")
        if not self.max_retry_after >= 0:
            raise ValueError(f"max_retry_after is {self.max_retry_after}, but must be 0 or more")


@dataclass(frozen=True, slots=True)
class ResumePolicy:
    """How a reply that broke after its first text is taken up again.

    Tried in this order: by the *cursor*, where the server gives its events ids (`Last-Event-ID`)
    or keeps the answer (Responses API, `background`);
    by having the model *continue*, where `continue_` says that it can; by *replay*, the same
    request again, whose repeated text is matched and swallowed. Else the reply fails.

    Args:
        continue_: How this server *and* this model go on from a partial answer, which the request
            then ends with. Never guessed: a server that starts over in other words cannot be told
            from one that continues. `"vllm"`: by `continue_final_message`, as vLLM and SGLang do;
            `"prefix"`: by `"prefix": true` on that message (DeepSeek, Mistral, and LiteLLM for
            these and Anthropic); `"prefill"`: by that message alone. `None`: it does not. Not
            used in the middle of reasoning or after a tool call has begun, nor with several
            choices, a response format or `logprobs`.
        echo: Whether the continued answer begins with the partial one, rather than after it.
        max_replay: The most characters that one reply may receive twice, over all its replays;
            0 forbids replays. A replay is paid for: `reply.attempts` tells how much.
        on_divergence: What to do when the second answer differs from the text that was already
            delivered: `"raise"` ends the reply with `StreamInterrupted`, which carries the exact
            text so far; `"restart"` gives a `Restarted` event and starts `reply.text` anew.
        background: Responses API only: whether the server may run the answer on its own and keep
            it (`"background": true, "store": true` in the request), so that a stream that broke
            is taken up where it was, and the model runs once. When the reply's block is left
            early, the answer is cancelled there. A body that has these fields itself is sent as
            it is.

    >>> ResumePolicy(on_divergence="restart").max_replay
    1000000
    """

    continue_: Literal["vllm", "prefix", "prefill"] | None = None
    echo: bool = False
    max_replay: int = 1_000_000
    on_divergence: Literal["raise", "restart"] = "raise"
    background: bool = False

    def __post_init__(self) -> None:
        if self.continue_ not in ("vllm", "prefix", "prefill", None):
            raise ValueError(
                f"continue_ is {self.continue_!r}, but must be 'vllm', 'prefix', 'prefill' or None"
            )
        if self.echo and self.continue_ is None:
            raise ValueError("echo says how a server continues: give continue_ too")
        if self.max_replay < 0:
            raise ValueError(f"max_replay is {self.max_replay}, but must be 0 or more")
        if self.on_divergence not in ("raise", "restart"):
            raise ValueError(
                f"on_divergence is {self.on_divergence!r}, but must be 'raise' or 'restart'"
            )


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a reply may be silent, in seconds; `None` means for ever.

    Any bytes from the server, comments included, count as a sign of life. The time in which a
    refresh or a rate limit pauses the reply is not counted.

    Args:
        connect: Until the connection stands.
        first_token: From the request until the first bytes of the answer's body.
        between_tokens: From any bytes of the body to the next.
        total: The whole reply.

    >>> Timeouts().first_token
    300.0
    >>> Timeouts.interactive().between_tokens
    30.0
    """

    connect: float | None = 10.0
    first_token: float | None = 300.0
    between_tokens: float | None = 120.0
    total: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "first_token", "between_tokens", "total"):
            seconds: float | None = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} is {seconds}, but must be more than 0 seconds, or None")

    @classmethod
    def interactive(cls) -> Timeouts:
        """For a person who waits: 10 seconds for the first token, 30 between tokens."""
        return cls(first_token=10.0, between_tokens=30.0)

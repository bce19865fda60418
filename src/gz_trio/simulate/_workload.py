"""The workload: what users do, as options or a TOML file say it."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import tomli_w

from ..testing import FakeGateway, add_fault
from ._values import Distribution, seconds

PromptsFormat = Literal["messages", "sharegpt", "mooncake"]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is done to a gateway: so many users or arrivals, with such prompts, for so long.

    Durations are seconds, or words like `500ms`, `2s`, `5m`. A *distribution* is a number, or
    `uniform(least, most)`, `normal(mean, deviation)`, `lognormal(median, sigma)` or
    `exponential(mean)`, of durations with units: `exponential(2s)`.

    Args:
        base_url: The gateway's URL, like `https://api.gatewayz.ai/v1`. Without one a fake gateway
            is started on this machine.
        model: The model; several by weight: `("small=3", "large=1")`.
        users: Closed loop: so many users, each of whom waits for a reply before the next request.
        think_time: From a user's reply to the next request, a distribution.
        rate: Open loop: sessions that begin a second, whatever became of those before.
        arrivals: Of the open loop: at random as of many people, or evenly.
        stages: Of the open loop, in place of `rate` for ever: `("30s:20", "0s:50")`, each with
            how long it takes and the rate that it reaches, in a straight line from the one before.
        turns: Requests a session, each with the conversation so far.
        sessions: End after so many sessions.
        requests: End after so many requests.
        duration: End after so long, the warm-up left out; by default a minute, unless `sessions`,
            `requests` or a trace say how much there is.
        warm_up: What begins in it does not count.
        grace: How long requests that were begun in time may still take.
        spread: Of the closed loop: over how long the users' first requests are spread; by default
            over the time that one request takes, which is tried out first.
        seed: Of everything random.
        input_tokens: Of a prompt, a distribution. A token is about a word.
        output_tokens: That an answer may have (`max_tokens`), a distribution.
        exact_output: Ask for no fewer, by `min_tokens` and `ignore_eos` (vLLM, SGLang).
        prompts: A file of conversations, in place of made-up ones.
        prompts_format: Of that file: JSON lines with `messages`; ShareGPT; a Mooncake trace.
        history: What the earlier replies of a conversation are: those that came, or those recorded
            in the file.
        speedup: A trace runs so many times as fast.
        cancelled: The share of replies that their user leaves in the middle, 0 to 1.
        timeout: What a reply may take in all, pauses left out; by default as long as it likes.
        key_group: So many sessions share a key; 0: all of them.
        key_lifetime: How long a key lives, a distribution; by default for ever.
        rotations: When all keys are replaced at once: durations from the start.
        slo: What a good request keeps to: `("ttft=500ms", "itl=50ms")`, of ttft, ttfo, itl, icl
            (each gap; max_icl is the same), latency.
        tokenizer: A file, or the name of a tokenizer that `tokenizers` knows, to count output
            tokens with where the server does not tell.
        fake_first_token: How long the fake gateway thinks before an answer.
        fake_token_interval: Time between two of its tokens.
        fake_auth_latency: Time that signing in takes there.
        fake_on_rotation: What becomes of its streams when their key dies: an error frame, or a
            cut connection, or nothing.
        fake_faults: What goes wrong there, in the words of `gz-trio gateway --fault`.

    Raises:
        ValueError: Something in it is impossible; the message says what, and what to give.

    >>> Workload(users=10, duration="30s", slo=("ttft=500ms",)).open_loop
    False
    """

    base_url: str | None = None
    model: tuple[str, ...] = ("fake-model",)
    users: int | None = None
    think_time: str | float = 0.0
    rate: float | None = None
    arrivals: Literal["poisson", "constant"] = "poisson"
    stages: tuple[str, ...] = ()
    turns: int = 1
    sessions: int | None = None
    requests: int | None = None
    duration: str | float | None = None
    warm_up: str | float = 0.0
    grace: str | float = "30s"
    spread: str | float | None = None
    seed: int = 0
    input_tokens: str | float = 100
    output_tokens: str | float = 50
    exact_output: bool = False
    prompts: str | None = None
    prompts_format: PromptsFormat = "messages"
    history: Literal["live", "recorded"] = "live"
    speedup: float = 1.0
    cancelled: float = 0.0
    timeout: str | float | None = None
    key_group: int = 0
    key_lifetime: str | float | None = None
    rotations: tuple[str | float, ...] = ()
    slo: tuple[str, ...] = ()
    tokenizer: str | None = None
    fake_first_token: str | float = 0.0
    fake_token_interval: str | float = "40ms"  # noqa: S105  no secret
    fake_auth_latency: str | float = "300ms"
    fake_on_rotation: Literal["frame", "cut", "ignore"] = "frame"
    fake_faults: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        trace = self.prompts is not None and self.prompts_format == "mooncake"
        ways = [
            name
            for name, given in (
                ("users", self.users is not None),
                ("rate", self.rate is not None or bool(self.stages)),
                ("a trace's own times", trace),
            )
            if given
        ]
        if not ways:
            raise ValueError(
                "nothing says when requests are sent: give users, or rate or stages, or a trace"
            )
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} say when requests are sent: give one of them")
        at_least = {"users": 1, "turns": 1, "sessions": 1, "requests": 1, "key_group": 0}
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}")
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"rate is {self.rate}, but must be more than 0 sessions a second")
        if not 0 <= self.cancelled <= 1:
            raise ValueError(f"cancelled is {self.cancelled}, but is a share, from 0 to 1")
        if not 0 < self.speedup < float("inf"):
            raise ValueError(f"speedup is {self.speedup}, but must be more than 0")
        for name in _READ_ONCE:  # So that a mistake is told now, and by its option's name.
            try:
                getattr(self, name)
            except ValueError as error:
                raise ValueError(f"{_OPTION.get(name, name)}: {error}") from None
        for words in self.fake_faults:
            try:
                add_fault(FakeGateway(), words)
            except ValueError as error:
                raise ValueError(f"fake_faults: {error}") from None

    # As numbers

    @property
    def open_loop(self) -> bool:
        """Whether requests are sent at their time, whatever became of those before."""
        return self.users is None

    @cached_property
    def weights(self) -> dict[str, float]:
        """Each model's share, not necessarily of 1."""
        weights: dict[str, float] = {}
        for words in self.model:
            name, equals, weight = words.rpartition("=")
            try:
                weights[name if equals else words] = float(weight) if equals else 1.0
            except ValueError:
                weights[words] = 1.0  # A name with an equals sign in it.
        if not weights or not all(
            name and 0 < weight < float("inf") for name, weight in weights.items()
        ):
            raise ValueError("name at least one model, and give weights above 0")
        return weights

    @cached_property
    def rate_at(self) -> list[tuple[float, float]]:
        """The rate by time: points (seconds, sessions a second) to join by straight lines."""
        points = [(0.0, self.rate or 0.0)]
        for stage in self.stages:
            took, colon, rate = stage.partition(":")
            try:
                if not colon:
                    raise ValueError
                points.append((points[-1][0] + seconds(took), float(rate)))
            except ValueError:
                raise ValueError(
                    f"{stage!r} is no stage: give how long it takes, and the rate that it reaches, "
                    "like 30s:20"
                ) from None
            if not 0 <= points[-1][1] < float("inf"):
                raise ValueError(f"{stage!r}: a rate is not negative")
        if self.stages and not any(rate for _, rate in points):
            raise ValueError("the stages never reach a rate above 0")
        return points

    @cached_property
    def duration_seconds(self) -> float | None:
        """How long requests are begun after the warm-up; `None`: until there are no more."""
        if self.duration is not None or self.stages:
            duration = self.rate_at[-1][0] - self.warm_up_seconds
            if self.duration is not None:
                duration = seconds(self.duration)
            if duration <= 0:
                raise ValueError("nothing would count: the run ends with its warm-up")
            return duration
        counted = (self.sessions, self.requests) != (None, None)
        traced = self.prompts is not None and self.prompts_format == "mooncake"
        return None if counted or traced else 60.0

    @cached_property
    def warm_up_seconds(self) -> float:
        """What does not count, at the start."""
        return seconds(self.warm_up)

    @cached_property
    def grace_seconds(self) -> float:
        """How long is waited for the last replies."""
        return seconds(self.grace)

    @cached_property
    def spread_seconds(self) -> float | None:
        """Over how long first requests are spread; `None`: to be found out."""
        return None if self.spread is None else seconds(self.spread)

    @cached_property
    def timeout_seconds(self) -> float | None:
        """What a reply may take."""
        timeout = None if self.timeout is None else seconds(self.timeout)
        if timeout == 0:
            raise ValueError("0 s is too short for any reply")
        return timeout

    @cached_property
    def think_times(self) -> Distribution:
        """In seconds."""
        return Distribution.parse(self.think_time, durations=True)

    @cached_property
    def input_lengths(self) -> Distribution:
        """In tokens."""
        return Distribution.parse(self.input_tokens)

    @cached_property
    def output_lengths(self) -> Distribution:
        """In tokens."""
        return Distribution.parse(self.output_tokens)

    @cached_property
    def key_lifetimes(self) -> Distribution | None:
        """In seconds."""
        if self.key_lifetime is None:
            return None
        lifetimes = Distribution.parse(self.key_lifetime, durations=True)
        if lifetimes.shape == "constant" and lifetimes.first == 0:
            raise ValueError("a key that lives for 0 s is never valid")
        return lifetimes

    @cached_property
    def rotation_seconds(self) -> list[float]:
        """When all keys are replaced, from the start, in order."""
        return sorted(seconds(when) for when in self.rotations)

    @cached_property
    def limits(self) -> dict[str, float]:
        """What a good request keeps to, in seconds, by figure."""
        limits: dict[str, float] = {}
        for words in self.slo:
            name, equals, limit = words.partition("=")
            name = name.strip().replace("max_icl", "icl")
            if not equals or name not in LIMITED:
                raise ValueError(
                    f"{words!r} is no limit: give one like ttft=500ms, of {', '.join(LIMITED)}"
                )
            limits[name] = seconds(limit)
        return limits

    @cached_property
    def fake_seconds(self) -> tuple[float, float, float]:
        """The fake gateway's first token, token interval and sign-in."""
        return (
            seconds(self.fake_first_token),
            seconds(self.fake_token_interval),
            seconds(self.fake_auth_latency),
        )

    # As a file

    @classmethod
    def read(cls, path: str | Path, **instead: object) -> Workload:
        """Read a TOML file, whose keys are the names above.

        Args:
            path: The file. A relative path of `prompts` in it begins at the file's own folder.
            instead: Settings in place of those in the file.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no TOML, or no workload.
        """
        path = Path(path)
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no TOML file: {error}") from None
        try:
            prompts = settings.get("prompts")
            if isinstance(prompts, str):
                settings["prompts"] = str(path.parent / prompts)
            return cls.of({**settings, **instead})
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> Workload:
        """A workload of these settings.

        Raises:
            ValueError: There is no such setting, or it is of another type.
        """
        kinds = typing.get_type_hints(cls)
        given: dict[str, typing.Any] = {}
        for name, setting in settings.items():
            if name not in kinds:
                known = ", ".join(kinds)
                raise ValueError(f"there is no setting {name!r}: there are {known}")
            value = setting
            if isinstance(setting, list):
                value = tuple(typing.cast("list[object]", setting))
            if not _fits(value, kinds[name]):
                raise ValueError(f"{name} is {value!r}, but {_in_words(kinds[name])} is meant")
            given[name] = value
        return cls(**given)

    @property
    def settings(self) -> dict[str, object]:
        """All that is not as by default, as `of` takes it."""
        given: dict[str, object] = {}
        for field in dataclasses.fields(self):
            value: object = getattr(self, field.name)
            if value != field.default:
                if isinstance(value, tuple):
                    value = list(typing.cast("tuple[object, ...]", value))
                given[field.name] = value
        return given

    def toml(self) -> str:
        """The file that `read` would make this of."""
        return tomli_w.dumps(self.settings)


LIMITED = ("ttft", "ttfo", "itl", "icl", "latency")

_READ_ONCE = (
    "weights", "rate_at", "warm_up_seconds", "duration_seconds", "grace_seconds",
    "spread_seconds", "timeout_seconds", "think_times", "input_lengths", "output_lengths",
    "key_lifetimes", "rotation_seconds", "limits", "fake_seconds",
)  # fmt: skip
_OPTION = {
    "weights": "model", "rate_at": "stages", "warm_up_seconds": "warm_up",
    "duration_seconds": "duration", "grace_seconds": "grace", "spread_seconds": "spread",
    "timeout_seconds": "timeout", "think_times": "think_time", "input_lengths": "input_tokens",
    "output_lengths": "output_tokens", "key_lifetimes": "key_lifetime",
    "rotation_seconds": "rotations", "limits": "slo",
    "fake_seconds": "fake_first_token, fake_token_interval or fake_auth_latency",
}  # fmt: skip


def _fits(value: object, kind: object) -> bool:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(kind))
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and all(
            _fits(item, typing.get_args(kind)[0]) for item in typing.cast("tuple[object]", value)
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.cast("type", kind))


def _in_words(kind: object) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    if typing.get_origin(kind) is tuple:
        return f"a list of which each is {_in_words(typing.get_args(kind)[0])}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        of = [_in_words(one) for one in typing.get_args(kind) if one is not types.NoneType]
        return " or ".join(of)
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[
        typing.cast("type", kind)
    ]

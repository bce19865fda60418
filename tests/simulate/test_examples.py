"""The scenarios in `examples/simulate`, each run shorter and faster: they do what they promise."""

import re
from pathlib import Path
from typing import Any

import pytest

from gz_trio.simulate import Result, Workload, run
from gz_trio.simulate._schedule import arrivals
from gz_trio.simulate._traces import load

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "simulate"
TOLD = {"steady-chat", "morning-rush", "rotation-storm", "slow-gateway", "flaky-network"}

SHORT: dict[str, object] = {
    "users": 10,
    "think_time": 0.1,
    "duration": "2s",
    "warm_up": 0,
    "spread": "200ms",
    "fake_token_interval": "5ms",
    "slo": ("latency=60s",),
}


async def shortened(name: str, **instead: object) -> Result:
    return await run(Workload.read(EXAMPLES / f"{name}.toml", **{**SHORT, **instead}))


def whole(result: Result) -> bool:
    """Whether every request ended well, and each character came once."""
    assert result.intended > 10
    return (result.ok, result.lost, result.doubled) == (result.intended, 0, 0)


def test_there_are_those_that_are_told_of() -> None:
    assert {path.stem for path in EXAMPLES.iterdir()} == TOLD


@pytest.mark.parametrize("name", sorted(TOLD))
def test_each_says_at_its_top_what_it_shows_and_how_it_is_run(name: str) -> None:
    text = (EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")
    first, _, rest = text.partition("\n\n")
    assert first.startswith(f"# {name.replace('-', ' ').capitalize()}: ")
    assert f"gz-trio simulate examples/simulate/{name}.toml" in first
    assert "In the report, look at" in " ".join(first.replace("#", "").split())
    assert rest


@pytest.mark.parametrize("name", sorted(TOLD))
def test_each_takes_a_minute_or_two(name: str) -> None:
    workload = Workload.read(EXAMPLES / f"{name}.toml")
    assert workload.duration_seconds is not None
    assert workload.warm_up_seconds + workload.duration_seconds <= 120


async def test_on_a_steady_day_nothing_happens_to_keys_or_replies() -> None:
    result = await shortened("steady-chat")
    assert whole(result)
    assert result.good_fraction == 1.0
    assert (result.rejected, result.refreshes, result.pauses) == (0, 0, 0)
    assert result.taken_up == {}


async def test_in_the_rush_everybody_comes_whatever_became_of_those_before() -> None:
    stages = ("500ms:10", "1s:40", "500ms:1")
    result = await shortened("morning-rush", users=None, duration=None, stages=stages, turns=1)
    assert whole(result)
    assert not result.closed_loop
    workload = Workload(stages=stages)
    rush = arrivals(workload.rate_at, 2.0, "poisson", seed=0, shard=0, shards=1)
    assert result.intended == len(list(rush))


async def test_in_a_storm_each_group_refreshes_once_and_every_reply_is_whole() -> None:
    result = await shortened(
        "rotation-storm", users=20, key_group=5, rotations=("1s",), fake_auth_latency="100ms"
    )
    assert whole(result)
    assert len(result.rotations) == 1
    assert result.refreshes == 4
    assert result.rejected >= 4
    assert result.pauses >= 4


async def test_a_slow_gateway_keeps_to_no_limit_and_those_who_wait_too_long_give_up() -> None:
    result = await shortened(
        "slow-gateway",
        slo=("ttft=99ms",), timeout="1s", cancelled=0, fake_first_token="100ms",
    )  # fmt: skip
    assert result.timeouts >= 2
    assert result.error_kinds == {"StreamTimeout": result.timeouts}
    assert result.ok == result.intended - result.timeouts
    assert result.good_fraction == 0.0
    assert (result.lost, result.doubled) == (0, 0)


async def test_those_who_leave_a_slow_gateway_are_counted_apart() -> None:
    result = await shortened("slow-gateway", cancelled=0.5, fake_first_token="10ms", fake_faults=())
    assert whole(result)
    assert result.cancelled > 0


async def test_over_a_flaky_network_every_reply_is_taken_up_again() -> None:
    result = await shortened("flaky-network")
    assert whole(result)
    assert result.taken_up["replay"] >= 3
    assert result.pauses >= 1
    assert (result.errors, result.restarts) == (0, 0)


@pytest.mark.parametrize("name", ["messages", "sharegpt", "mooncake"])
def test_a_line_of_each_format_of_prompts_is_read_as_the_page_has_it(
    name: Any, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "simulate.md").read_text(encoding="utf-8")
    (line,) = re.findall(
        rf"^`{name}`: [^`]*(?:`[^`]+`[^`]*)*?```json\n(.+)\n```", page, re.MULTILINE
    )
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{line}\n", encoding="utf-8")
    users = None if name == "mooncake" else 1
    loaded = load(Workload(users=users, prompts=str(path), prompts_format=name))
    assert (len(loaded), loaded.skipped) == (1, {})

"""Workloads: what can be said, how it is understood, and what is told of what cannot be."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio.simulate import Workload
from gz_trio.simulate._values import Distribution

USERS: dict[str, Any] = {"users": 1}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "nothing says when requests are sent: give users, or rate or stages, or a trace"),
        ({"users": 1, "rate": 1.0}, "users and rate say when requests are sent: give one of them"),
        ({"users": 1, "stages": ("1s:1",)}, "users and rate say when requests are sent: give one"),
        (
            {"rate": 1.0, "prompts": "a", "prompts_format": "mooncake"},
            "rate and a trace's own times say when requests are sent: give one of them",
        ),
        ({"users": 0}, "users is 0, but must be at least 1"),
        ({"users": -5}, "users is -5, but must be at least 1"),
        (USERS | {"turns": 0}, "turns is 0, but must be at least 1"),
        (USERS | {"sessions": 0}, "sessions is 0, but must be at least 1"),
        (USERS | {"requests": 0}, "requests is 0, but must be at least 1"),
        (USERS | {"key_group": -1}, "key_group is -1, but must be at least 0"),
        ({"rate": 0.0}, "rate is 0.0, but must be more than 0 sessions a second"),
        ({"rate": -1.0}, "rate is -1.0, but must be more than 0 sessions a second"),
        ({"rate": float("inf")}, "rate is inf, but must be more than 0 sessions a second"),
        ({"rate": float("nan")}, "rate is nan, but must be more than 0 sessions a second"),
        (USERS | {"cancelled": 1.5}, "cancelled is 1.5, but is a share, from 0 to 1"),
        (USERS | {"cancelled": -0.1}, "cancelled is -0.1, but is a share, from 0 to 1"),
        (USERS | {"speedup": 0.0}, "speedup is 0.0, but must be more than 0"),
        (USERS | {"speedup": float("inf")}, "speedup is inf, but must be more than 0"),
        (USERS | {"model": ()}, "model: name at least one model, and give weights above 0"),
        (USERS | {"model": ("a=0",)}, "model: name at least one model, and give weights above 0"),
        (USERS | {"model": ("a=-1",)}, "model: name at least one model, and give weights above 0"),
        (USERS | {"model": ("a=nan",)}, "model: name at least one model, and give weights above"),
        (USERS | {"model": ("",)}, "model: name at least one model, and give weights above 0"),
        (USERS | {"model": ("=2",)}, "model: name at least one model, and give weights above 0"),
        ({"stages": ("30s",)}, "stages: '30s' is no stage: give how long it takes, and the rate"),
        ({"stages": ("x:5",)}, "stages: 'x:5' is no stage: give how long it takes, and the rate"),
        ({"stages": ("30s:x",)}, "stages: '30s:x' is no stage: give how long it takes, and the"),
        ({"stages": ("30s:-5",)}, "stages: '30s:-5': a rate is not negative"),
        ({"stages": ("30s:nan",)}, "stages: '30s:nan': a rate is not negative"),
        ({"stages": ("30s:0", "5s:0")}, "stages: the stages never reach a rate above 0"),
        (USERS | {"duration": "soon"}, "duration: 'soon' is no duration: give seconds, or one"),
        (USERS | {"duration": -1}, "duration: -1 is no duration: give seconds, or one like"),
        (USERS | {"duration": 0}, "duration: nothing would count: the run ends with its warm-up"),
        ({"stages": ("5s:1",), "warm_up": 5}, "duration: nothing would count: the run ends with"),
        (USERS | {"warm_up": "x"}, "warm_up: 'x' is no duration: give seconds, or one like"),
        (USERS | {"grace": "x"}, "grace: 'x' is no duration: give seconds, or one like 500ms"),
        (USERS | {"spread": "x"}, "spread: 'x' is no duration: give seconds, or one like 500ms"),
        (USERS | {"timeout": "x"}, "timeout: 'x' is no duration: give seconds, or one like"),
        (USERS | {"timeout": 0}, "timeout: 0 s is too short for any reply"),
        (USERS | {"think_time": "x"}, "think_time: 'x' is no duration: give seconds, or one"),
        (USERS | {"think_time": "f(1)"}, "think_time: 'f(1)' is no distribution: give a number"),
        (USERS | {"input_tokens": "x"}, "input_tokens: 'x' is no number"),
        (USERS | {"output_tokens": "1s"}, "output_tokens: '1s' is no number"),
        (USERS | {"key_lifetime": "x"}, "key_lifetime: 'x' is no duration: give seconds, or one"),
        (USERS | {"key_lifetime": 0}, "key_lifetime: a key that lives for 0 s is never valid"),
        (USERS | {"rotations": ("x",)}, "rotations: 'x' is no duration: give seconds, or one"),
        (USERS | {"slo": ("fast",)}, "slo: 'fast' is no limit: give one like ttft=500ms, of ttft"),
        (USERS | {"slo": ("speed=1s",)}, "slo: 'speed=1s' is no limit: give one like ttft=500ms"),
        (USERS | {"slo": ("ttft=x",)}, "slo: 'x' is no duration: give seconds, or one like"),
        (
            USERS | {"fake_first_token": "x"},
            "fake_first_token, fake_token_interval or fake_auth_latency: 'x' is no duration",
        ),
        (
            USERS | {"fake_faults": ("explode",)},
            "fake_faults: fault 'explode': there is no 'explode'; there are",
        ),
    ],
)
def test_what_cannot_be_is_told_by_its_name(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}"):
        Workload(**settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"user": 1}, "there is no setting 'user': there are base_url, model, users,"),
        ({"users": "1"}, "users is '1', but a whole number is meant"),
        ({"users": 1.5}, "users is 1.5, but a whole number is meant"),
        ({"users": True}, "users is True, but a whole number is meant"),
        ({"rate": "5"}, "rate is '5', but a number is meant"),
        (USERS | {"model": "a"}, "model is 'a', but a list of which each is text is meant"),
        (USERS | {"model": [1]}, "model is (1,), but a list of which each is text is meant"),
        (USERS | {"think_time": True}, "think_time is True, but text or a number is meant"),
        (USERS | {"exact_output": 1}, "exact_output is 1, but true or false is meant"),
        (
            USERS | {"rotations": ["1s", True]},
            "rotations is ('1s', True), but a list of which each is text or a number is meant",
        ),
        (
            USERS | {"arrivals": "even"},
            "arrivals is 'even', but one of poisson, constant is meant",
        ),
        (USERS | {"arrivals": ["poisson"]}, "arrivals is ('poisson',), but one of poisson, const"),
        (USERS | {"seed": None}, "seed is None, but a whole number is meant"),
    ],
)
def test_of_a_file_types_are_told_too(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}"):
        Workload.of(settings)


class TestHowItIsUnderstood:
    def test_a_loop_is_open_unless_there_are_users(self) -> None:
        assert not Workload(users=1).open_loop
        assert Workload(rate=1).open_loop
        assert Workload(stages=("1s:1",)).open_loop
        assert Workload(prompts="trace", prompts_format="mooncake").open_loop

    def test_models_have_weights_even_if_there_is_an_equals_sign_in_their_name(self) -> None:
        models = ("small=3", "large", "lora=new", "a=b=0.5")
        assert Workload(users=1, model=models).weights == {
            "small": 3.0,
            "large": 1.0,
            "lora=new": 1.0,
            "a=b": 0.5,
        }

    def test_stages_go_on_from_one_another_and_from_the_rate(self) -> None:
        stages = ("30s:20", "0s:50", "1m:50")
        points = [(30.0, 20.0), (30.0, 50.0), (90.0, 50.0)]
        assert Workload(stages=stages).rate_at == [(0.0, 0.0), *points]
        assert Workload(rate=5, stages=stages).rate_at == [(0.0, 5.0), *points]
        assert Workload(rate=5).rate_at == [(0.0, 5.0)]

    @pytest.mark.parametrize(
        ("settings", "duration"),
        [
            ({"users": 1}, 60.0),
            ({"rate": 1.0}, 60.0),
            ({"users": 1, "prompts": "chats.jsonl"}, 60.0),
            ({"users": 1, "duration": "5s"}, 5.0),
            ({"users": 1, "requests": 5}, None),
            ({"users": 1, "sessions": 5}, None),
            ({"users": 1, "sessions": 5, "duration": 7}, 7.0),
            ({"prompts": "a", "prompts_format": "mooncake"}, None),
            ({"stages": ("30s:20", "10s:0"), "warm_up": "15s"}, 25.0),
            ({"stages": ("30s:20",), "duration": "10s"}, 10.0),
        ],
    )
    def test_it_ends_after_a_minute_unless_something_says_when(
        self, settings: dict[str, Any], duration: float | None
    ) -> None:
        assert Workload(**settings).duration_seconds == duration

    @pytest.mark.parametrize(
        "slo",
        [
            ("ttft=500ms", "itl=50ms", "max_icl=1s"),
            (" ttft =500ms", "itl=0.05", "icl=1s"),
        ],
    )
    def test_limits_are_seconds_by_figure(self, slo: tuple[str, ...]) -> None:
        assert Workload(users=1, slo=slo).limits == {"ttft": 0.5, "itl": 0.05, "icl": 1.0}

    def test_without_an_slo_there_are_no_limits(self) -> None:
        assert Workload(users=1).limits == {}

    def test_rotations_are_put_in_order(self) -> None:
        assert Workload(users=1, rotations=("1m", 5, "100ms")).rotation_seconds == [0.1, 5, 60]

    def test_keys_live_for_ever_unless_they_have_a_lifetime(self) -> None:
        assert Workload(users=1).key_lifetimes is None
        lifetimes = Workload(users=1, key_lifetime="exponential(1m)").key_lifetimes
        assert lifetimes == Distribution("exponential", 60.0)


class TestFiles:
    """The TOML file: read, with options in place of what it says, and written."""

    def write(self, folder: Path, text: str) -> Path:
        path = folder / "workload.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def test_its_keys_are_the_settings(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, 'users = 5\nmodel = ["a=2", "b"]\nthink_time = "1s"\n')
        assert Workload.read(path) == Workload(users=5, model=("a=2", "b"), think_time="1s")

    def test_options_come_first(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "users = 5\nturns = 2\n")
        assert Workload.read(path, users=7, seed=1) == Workload(users=7, turns=2, seed=1)

    def test_an_option_can_mend_the_file(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, 'users = "five"\n')
        assert Workload.read(path, users=7) == Workload(users=7)

    def test_prompts_in_it_lie_where_it_lies_those_of_an_option_do_not(
        self, tmp_path: Path
    ) -> None:
        path = self.write(tmp_path, 'users = 5\nprompts = "chats.jsonl"\n')
        assert Workload.read(path).prompts == str(tmp_path / "chats.jsonl")
        assert Workload.read(path, prompts="other.jsonl").prompts == "other.jsonl"
        path = self.write(tmp_path, 'users = 5\nprompts = "/chats.jsonl"\n')
        assert Workload.read(path).prompts == "/chats.jsonl"

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("users = ", " is no TOML file: Invalid value"),
            ("users = 0", ": users is 0, but must be at least 1"),
            ("user = 1", ": there is no setting 'user': there are"),
            ("", ": nothing says when requests are sent"),
            ("[users]\nx = 1", ": users is {'x': 1}, but a whole number is meant"),
            ("prompts = 5\nusers = 1", ": prompts is 5, but text is meant"),
        ],
    )
    def test_what_is_wrong_is_told_with_the_name_of_the_file(
        self, tmp_path: Path, text: str, complaint: str
    ) -> None:
        path = self.write(tmp_path, text)
        with pytest.raises(ValueError, match=f"^{re.escape(f'{path}{complaint}')}"):
            Workload.read(path)

    def test_other_bytes_than_text_are_told(self, tmp_path: Path) -> None:
        path = tmp_path / "workload.toml"
        path.write_bytes(b"users = 1 # \xff")
        with pytest.raises(ValueError, match="is no TOML file"):
            Workload.read(path)

    def test_a_file_that_is_not_there_is_an_error_of_the_system(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            Workload.read(tmp_path / "none.toml")

    def test_what_is_as_by_default_is_not_written(self) -> None:
        assert Workload(users=2, turns=1, warm_up=0).toml() == "users = 2\n"


DURATIONS = st.one_of(
    st.floats(0, 1e9),
    st.integers(0, 10**9),
    st.sampled_from(["0s", "500ms", "2s", "1.5m", "1h", " 7 us "]),
)
WHOLE = st.integers(1, 10**9)
COUNTS = st.one_of(
    st.floats(0, 1e6), st.integers(0, 10**6), st.sampled_from(["5", "uniform(1, 9)"])
)
THINKING = st.one_of(DURATIONS, st.sampled_from(["normal(1s, 20ms)", "lognormal(2s, 0.5)"]))
ANY: dict[str, st.SearchStrategy[object]] = {
    "base_url": st.none() | st.text(),
    "model": st.lists(st.sampled_from(["a", "b=2", "c=0.5", "d=e", "ü"]), min_size=1).map(tuple),
    "think_time": THINKING,
    "arrivals": st.sampled_from(["poisson", "constant"]),
    "turns": WHOLE,
    "sessions": st.none() | WHOLE,
    "requests": st.none() | WHOLE,
    "duration": st.none() | st.floats(1e-3, 1e9) | st.sampled_from(["1s", "5m"]),
    "warm_up": st.floats(0, 29) | st.sampled_from(["0s", "5s"]),  # stages below take longer
    "grace": DURATIONS,
    "spread": st.none() | DURATIONS,
    "seed": st.integers(-(2**63), 2**63 - 1),
    "input_tokens": COUNTS,
    "output_tokens": COUNTS,
    "exact_output": st.booleans(),
    "history": st.sampled_from(["live", "recorded"]),
    "speedup": st.floats(1e-6, 1e6),
    "cancelled": st.floats(0, 1),
    "timeout": st.none() | st.floats(1e-3, 1e9) | st.sampled_from(["1s", "5m"]),
    "key_group": st.integers(0, 10**6),
    "key_lifetime": st.none() | st.sampled_from(["5s", "exponential(1m)", 3, 2.5]),
    "rotations": st.lists(DURATIONS).map(tuple),
    "slo": st.lists(st.sampled_from(["ttft=1s", "itl=5ms", "max_icl=1", "latency=2m"])).map(tuple),
    "tokenizer": st.none() | st.text(),
    "fake_first_token": DURATIONS,
    "fake_token_interval": DURATIONS,
    "fake_auth_latency": DURATIONS,
    "fake_on_rotation": st.sampled_from(["frame", "cut", "ignore"]),
    "fake_faults": st.lists(
        st.sampled_from(["cut token=3", r"insert='data: {}\n\n' token=1"]), max_size=2
    ).map(tuple),
}
RATE: st.SearchStrategy[object] = st.floats(1e-6, 1e6) | WHOLE
STAGES: st.SearchStrategy[object] = st.just(("30s:20", "0s:50"))
TRACE: st.SearchStrategy[object] = st.just("mooncake")
PROMPTS: st.SearchStrategy[object] = st.text()


def way(
    settings: dict[str, st.SearchStrategy[object]], more: dict[str, st.SearchStrategy[object]]
) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(settings, optional=more)


WAYS = st.one_of(
    way({"users": WHOLE}, {"prompts": PROMPTS}),
    way({"rate": RATE}, {}),
    way({"stages": STAGES}, {"rate": RATE}),
    way({"prompts": PROMPTS, "prompts_format": TRACE}, {}),
)


def workload_of(way: dict[str, object], more: dict[str, object]) -> Workload:
    return Workload.of(way | more)


WORKLOADS = st.builds(workload_of, WAYS, st.fixed_dictionaries({}, optional=ANY))


@given(WORKLOADS)
def test_of_the_file_that_is_written_the_same_workload_is_made(workload: Workload) -> None:
    assert Workload.of(tomllib.loads(workload.toml())) == workload


@given(WORKLOADS)
def test_its_settings_make_it_again(workload: Workload) -> None:
    assert Workload.of(workload.settings) == workload


def test_the_workloads_above_leave_no_setting_out() -> None:
    ways = {"users", "rate", "stages", "prompts", "prompts_format"}
    assert {field.name for field in dataclasses.fields(Workload)} == ways | ANY.keys()

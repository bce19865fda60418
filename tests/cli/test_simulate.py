"""`gz-trio simulate`: what it shows and writes, how it is told what to do, and how it fails."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from gz_trio._cli import simulate as command
from gz_trio._cli.run import UsageError
from gz_trio._cli.simulate import Simulation, target_of, workloads_of
from gz_trio.simulate import ClientBound, RequestRecord, Result, Workload
from gz_trio.simulate._capacity import CapacitySearch
from gz_trio.testing import FakeGateway, Stall
from tests.cli.terminal import environment, run_piped, terminal
from tests.secrets_guard import secret

QUICK = [
    "--users", "2", "--requests", "4", "--output-tokens", "5", "--fake-token-interval", "1ms",
    "--spread", "0",
]  # fmt: skip
FILES = {"report.html", "requests.csv", "result.json", "workload.toml"}


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def plain(text: bytes) -> str:
    """In one line, without the boxes of a help page."""
    return " ".join(re.sub("[─│╭╮╰╯]", " ", text.decode()).split())


async def test_the_help_has_every_setting_of_a_workload_with_its_words() -> None:
    run = await run_piped("simulate", "--help", COLUMNS="400")
    shown = plain(run.stdout)
    assert run.returncode == 0
    for field in dataclasses.fields(Workload):
        assert f" --{field.name.replace('_', '-')} " in shown
    for words in (
        "Closed loop: so many users, each of whom waits for a reply before the next request.",
        "30s:20,0s:50, each with how long it takes and the rate that it reaches",
        "What a good request keeps to: ttft=500ms,itl=50ms, of ttft, ttfo, itl, icl (each gap;",
    ):
        assert words in shown


# What is seen


async def test_a_pipe_gets_plain_lines_and_the_summary(tmp_path: Path) -> None:
    run = await run_piped(
        "simulate", *("--users", "2", "--duration", "6s", "--spread", "0", "--rotations", "1s"),
        *("--fake-token-interval", "10ms", "--output", str(tmp_path / "run")),
    )  # fmt: skip
    text = run.stdout.decode()
    assert (run.returncode, run.stderr) == (0, b"")
    assert "\x1b" not in text
    for line in (
        r"\d+ s: \d+ under way, .* replies/s, 0 failed, 401s \d+, refreshes \d+",
        r"fake gateway: \d+ requests in 6 s, \d+ ok, 0 errors, .*, 0 left by their users",
        r"latency +[\d,.]+ .*",
        r"401s, refreshes +\d+, 1",
        r"characters lost, doubled +0, 0",
        r"A closed loop slows down with its server: .*",
        rf"written to {tmp_path}/run: report.html, result.json, requests.csv, workload.toml",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line


async def test_a_terminal_shows_how_far_the_run_has_come_and_then_the_summary(
    tmp_path: Path,
) -> None:
    async with terminal(
        "simulate", *("--users", "2", "--duration", "4s", "--fake-token-interval", "10ms"),
        *("--output", str(tmp_path / "run")), columns=110, lines=60,
    ) as t:  # fmt: skip
        await t.until_shown("signing in")
        await t.until_shown("measuring ━")
        await t.until_shown("2 requests under way, 0 paused")
        await t.until_shown("report.html, result.json")
        assert not any("measuring" in line for line in t.shown)
        assert await t.ended() == 0
        assert t.raw.rindex(b"\x1b[?25h") > t.raw.rindex(b"\x1b[?25l")  # the cursor is there again


async def test_json_is_all_that_is_printed_where_it_is_asked_for(tmp_path: Path) -> None:
    run = await run_piped("simulate", "--json", *QUICK, "--output", str(tmp_path / "run"))
    assert (run.returncode, run.stderr) == (0, b"")
    assert json.loads(run.stdout) == json.loads((tmp_path / "run" / "result.json").read_bytes())


# What is written


async def test_the_folder_holds_the_run_and_the_workload_that_repeats_it(tmp_path: Path) -> None:
    one, two = tmp_path / "deep" / "one", tmp_path / "two"
    run = await run_piped("simulate", *QUICK, "--seed", "7", "--parquet", "--output", str(one))
    assert (run.returncode, run.stderr) == (0, b"")
    assert names_in(one) == {*FILES, "requests.parquet"}
    head, *rows = (one / "requests.csv").read_text(encoding="utf-8").splitlines()
    assert tuple(head.split(",")) == RequestRecord.__struct_fields__
    assert len(rows) == 4
    assert "</html>" in (one / "report.html").read_text(encoding="utf-8")

    again = await run_piped("simulate", str(one / "workload.toml"), "--output", str(two))
    assert again.returncode == 0
    assert Result.read(two).workload == Result.read(one).workload
    assert (two / "workload.toml").read_bytes() == (one / "workload.toml").read_bytes()


async def test_without_output_it_is_a_new_folder_in_simulations(tmp_path: Path) -> None:
    run = await run_piped("simulate", *QUICK, cwd=tmp_path)
    (folder,) = (tmp_path / "simulations").iterdir()
    assert run.returncode == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-\d\d\.\d\d\.\d\d", folder.name)
    assert names_in(folder) == FILES


async def test_two_files_that_are_repeated_take_turns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(f'model = ["{name}"]\n', encoding="utf-8")
    out = tmp_path / "out"
    run = await run_piped(
        "simulate", str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), *QUICK,
        *("--repeat", "2", "--output", str(out)),
    )  # fmt: skip
    assert run.returncode == 0
    wrote = re.findall(rf"^written to {out}/(\S+):", run.stdout.decode(), re.MULTILINE)
    assert wrote == ["a/1", "b/1", "a/2", "b/2"]
    assert all(names_in(out / name) == FILES for name in wrote)
    assert Result.read(out / "b" / "2").workload["model"] == ["b"]


# What is to be done


def test_options_come_before_what_stands_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text('users = 5\nturns = 2\nslo = ["ttft=1s"]\n', encoding="utf-8")
    workloads = workloads_of([file], {"users": 7, "slo": ["itl=1s"]}, find_capacity=False)
    assert workloads == {"": Workload(users=7, turns=2, slo=("itl=1s",))}


async def test_lists_are_given_with_commas_or_again_and_again(tmp_path: Path) -> None:
    run = await run_piped(
        "simulate", *QUICK, *("--slo", "ttft=5s,itl=1s", "--slo", "max_icl=9s"),
        *("--model", "small=3,large", "--fake-faults", "status=503 request=2 message='a, b'"),
        *("--json", "--output", str(tmp_path / "run")),
    )  # fmt: skip
    workload = json.loads(run.stdout)["workload"]
    assert workload["slo"] == ["ttft=5s", "itl=1s", "max_icl=9s"]
    assert workload["model"] == ["small=3", "large"]
    assert workload["fake_faults"] == ["status=503 request=2 message='a, b'"]


def test_without_anything_it_is_a_minute_with_a_rotation_storm() -> None:
    (workload,) = workloads_of([], {}, find_capacity=False).values()
    assert workload.duration_seconds == 60
    assert workload.rotation_seconds == [35.0]
    assert workload.base_url is None
    (other,) = workloads_of([], {"seed": 3, "turns": 1}, find_capacity=False).values()
    assert (other.users, other.turns, other.seed) == (workload.users, 1, 3)


def test_the_key_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    workloads = {"": Workload(users=1, base_url="https://gateway.test/v1")}
    several = tmp_path / "keys"
    several.write_text(" one \n\ntwo\n", encoding="utf-8")

    def keys_and_tokens(
        environment: dict[str, str], keys: Path | None = None, tokens: Path | None = None
    ) -> tuple[Sequence[str], Sequence[str]]:
        target = target_of(workloads, environment, keys, tokens)
        assert target is not None
        return target.keys, target.tokens

    both = {"GZ_API_KEY": "gz", "OPENAI_API_KEY": "openai"}
    assert keys_and_tokens(both) == (("gz",), ())
    assert keys_and_tokens({"GZ_API_KEY": "", "OPENAI_API_KEY": "openai"}) == (("openai",), ())
    assert keys_and_tokens({**both, "GZ_IDENTITY_TOKEN": "me"}) == ((), ("me",))
    assert keys_and_tokens(both, keys=several) == (("one", "two"), ())
    assert keys_and_tokens(both, tokens=several) == ((), ("one", "two"))


@pytest.mark.parametrize("by", ["a key", "an identity token"])
async def test_no_key_is_in_what_is_printed_or_written(tmp_path: Path, by: str) -> None:
    gateway = FakeGateway(secret("key"), tokens=5)
    token = secret("identity")
    of_account = gateway.add_account(token)
    arguments = ["--users", "2", "--requests", "4", "--spread", "0", "--output", f"{tmp_path}/run"]
    async with gateway.listen() as base_url:
        arguments += ["--base-url", base_url]
        if by == "a key":
            run = await run_piped("simulate", *arguments, GZ_API_KEY=gateway.key)
        else:
            run = await run_piped("simulate", *arguments, GZ_IDENTITY_TOKEN=token)
    assert run.returncode == 0
    written = [path.read_bytes() for path in (tmp_path / "run").iterdir()]
    assert len(written) == len(FILES)
    for text in (run.stdout, run.stderr, *written):
        assert not any(known.encode() in text for known in (gateway.key, token, of_account))


# What goes wrong


def no_file(_folder: Path) -> list[str]:
    return ["nowhere.toml"]


def file(text: str) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        (folder / "w.toml").write_text(text, encoding="utf-8")
        return [str(folder / "w.toml")]

    return write


def options(*words: str) -> Callable[[Path], list[str]]:
    return lambda _folder: list(words)


def same_names(folder: Path) -> list[str]:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "w.toml").write_text("users = 1\n", encoding="utf-8")
    return [str(folder / "a" / "w.toml"), str(folder / "b" / "w.toml")]


def no_keys(folder: Path) -> list[str]:
    (folder / "keys").write_text("\n", encoding="utf-8")
    return [*BASE_URL, "--users", "1", "--keys", str(folder / "keys")]


BASE_URL = ["--base-url", "http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (no_file, "nowhere.toml cannot be read: No such file"),
        (file("users = "), "w.toml is no TOML file: "),
        (file("user = 3"), "w.toml: there is no setting 'user': there are base_url, model, users"),
        (file('users = "3"'), "w.toml: users is '3', but a whole number is meant"),
        (same_names, "two of the files have the same name"),
        (options("--rate", "0"), "rate is 0.0, but must be more than 0 sessions a second"),
        (options("--rate", "1e999"), "rate is inf, but must be more than 0"),
        (options("--stages", "30s"), "stages: '30s' is no stage: give how long it takes"),
        (options("--slo", "ttft<1s"), "slo: 'ttft<1s' is no limit: give one like ttft=500ms"),
        (options("--fake-faults", "explode"), "fault 'explode': there is no 'explode'"),
        (options(*BASE_URL, "--users", "1"), "no key for http://127.0.0.1:9/v1: put one into GZ_"),
        (no_keys, "keys is empty: it should hold a line for each group of sessions"),
        (options("--scheduler", "tcp://10.0.0.1:1"), "the fake gateway can be reached on this one"),
        (options("--keys", "k"), "the fake gateway needs no keys: give --base-url"),
        (options("--find-capacity", "--users", "3"), "--find-capacity sets the rate"),
        (options("--find-capacity", "--repeat", "2"), "--find-capacity is for one workload, once"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_told_in_one_line_and_ends_it_with_2(
    tmp_path: Path, arguments: Callable[[Path], list[str]], what: str
) -> None:
    run = await run_piped("simulate", *arguments(tmp_path), cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, b"")
    assert re.fullmatch(r"gz-trio: [^\n]+\n", run.stderr.decode())
    assert what in run.stderr.decode()
    assert not (tmp_path / "simulations").exists()


async def test_an_option_that_is_none_ends_it_with_2() -> None:
    run = await run_piped("simulate", "--user", "3")
    assert (run.returncode, run.stdout) == (2, b"")
    assert "--user" in run.stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (
            ["--base-url", "http://127.0.0.1:9/v1", "--users", "1"],
            "http://127.0.0.1:9/v1 failed: no connection to http://127.0.0.1:9: is the gateway up,",
        ),
        (
            ["--users", "1", "--prompts", "nowhere.jsonl"],
            "nowhere.jsonl cannot be read: No such file or directory",
        ),
    ],
    ids=["a target that is down", "no prompts"],
)
async def test_what_fails_before_the_first_request_is_told_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], what: str
) -> None:
    out = tmp_path / "out"
    run = await run_piped(
        "simulate", *arguments, "--output", str(out), cwd=tmp_path, GZ_API_KEY="k"
    )
    assert (run.returncode, run.stdout) == (1, b"")
    assert re.fullmatch(rf"gz-trio: .*{re.escape(what)}.*\n", run.stderr.decode())
    assert not out.exists()


@pytest.mark.parametrize("name", sorted(FILES))
async def test_what_is_in_the_folder_already_stays_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    run = await run_piped("simulate", *QUICK, "--output", str(tmp_path))
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.decode() == (
        f"gz-trio: {tmp_path} holds a {name} already: give another --output\n"
    )
    assert names_in(tmp_path) == {name}
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


async def test_where_the_folder_cannot_be_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")
    run = await run_piped("simulate", *QUICK, "--output", str(path))
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.decode() == f"gz-trio: {path} cannot be written: File exists\n"


async def test_a_run_in_which_no_reply_ended_well_is_written_and_ends_with_1(
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    faults = ["--fake-faults", "status=400 times=forever"]
    run = await run_piped("simulate", *QUICK, *faults, "--output", str(out))
    assert (run.returncode, run.stderr) == (1, b"")
    assert "BadRequestError 400: 4\n" in run.stdout.decode()
    assert names_in(out) == FILES
    assert (Result.read(out).errors, Result.read(out).good_fraction) == (4, 0.0)


async def test_lines_of_a_trace_that_are_broken_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        '{"timestamp": 0, "input_length": 9, "output_length": 3}\n'
        "{broken\n"
        '{"timestamp": 5, "input_length": -1, "output_length": 3}\n'
        '{"timestamp": 9, "input_length": 9, "output_length": 3}\n',
        encoding="utf-8",
    )
    mooncake = ["--prompts", str(trace), "--prompts-format", "mooncake"]
    run = await run_piped("simulate", *mooncake, "--output", str(tmp_path / "run"))
    shown = run.stdout.decode()
    assert run.returncode == 0
    assert "fake gateway: 2 requests" in shown
    assert "skipped, no JSON: 1\n" in shown
    assert re.search(r"^skipped, input_length: .*: 1$", shown, re.MULTILINE)


async def test_ctrl_c_ends_it_with_130_and_what_was_measured_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    async with terminal(
        "simulate", *("--users", "2", "--fake-token-interval", "5ms", "--output", str(out)),
        columns=110, lines=60,
    ) as t:  # fmt: skip
        await t.until(lambda: bool(re.search(r" [1-9]\d* ok ", " ".join(t.shown))))
        await t.type("\x03")
        await t.until_shown("The run was stopped before its end.")
        assert await t.ended() == 130
        assert b"Traceback" not in t.raw
    result = Result.read(out)
    assert result.interrupted
    assert result.ok > 0
    assert names_in(out) == FILES


async def test_ctrl_c_before_the_run_has_begun_ends_it_at_once(tmp_path: Path) -> None:
    asked = trio.Event()

    def answer(_body: object, _attempt: int) -> list[str]:
        asked.set()
        return ["never"]

    gateway = FakeGateway(answer=answer)
    gateway.fault(Stall(), token=0, times=None)
    async with (
        gateway.listen() as base_url,
        terminal(
            "simulate", "--base-url", base_url, "--users", "1", "--output", str(tmp_path / "run"),
            GZ_API_KEY=gateway.key,
        ) as t,
    ):  # fmt: skip
        await t.until_shown("signing in")
        with trio.fail_after(30):
            await asked.wait()
        await t.type("\x03")
        assert await t.ended() == 130
        assert b"Traceback" not in t.raw
    assert not (tmp_path / "run").exists()


MISSING = """
import sys
sys.modules[sys.argv[1]] = None
from gz_trio.cli import main
sys.exit(main(["simulate", *sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    ("package", "extra", "needed_by"),
    [
        ("hdrh", "simulate", []),
        ("tomli_w", "simulate", []),
        ("plotly", "simulate", []),
        ("jinja2", "simulate", []),
        ("distributed", "simulate", ["--processes", "2"]),
        ("pyarrow", "parquet", ["--parquet"]),
    ],
)
async def test_a_missing_extra_is_named_before_anything_is_measured(
    tmp_path: Path, package: str, extra: str, needed_by: list[str]
) -> None:
    out = tmp_path / "run"
    run = await trio.run_process(
        [sys.executable, "-c", MISSING, package, *QUICK, *needed_by, "--output", str(out)],
        capture_stdout=True, capture_stderr=True, check=False, env=environment({}),
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (1, b"")
    assert re.fullmatch(
        rf"gz-trio: .* the package {package}[.\w]*, which comes with the extra {extra}: "
        rf"pip install 'gz-trio\[{extra}\]'\n",
        run.stderr.decode(),
    )
    assert not out.exists()


async def test_a_tokenizer_needs_its_extra(tmp_path: Path) -> None:
    (tmp_path / "tokenizers.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'tokenizers'\", name='tokenizers')\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    run = await run_piped(
        "simulate", *QUICK, *("--tokenizer", "gpt2", "--output", str(tmp_path / "run")),
        PYTHONPATH=path,
    )  # fmt: skip
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr.decode() == (
        "gz-trio: --tokenizer needs the package tokenizers, which comes with the extra tokenizer: "
        "pip install 'gz-trio[tokenizer]'\n"
    )


@pytest.mark.parametrize("package", ["hdrh", "tomli_w"])
async def test_the_other_commands_do_without_the_extra(package: str) -> None:
    program = MISSING.replace('"simulate", ', "")
    run = await trio.run_process(
        [sys.executable, "-c", program, package, "--help"],
        capture_stdout=True, check=False, env=environment({}),
    )  # fmt: skip
    assert run.returncode == 0
    assert "simulate" in run.stdout.decode()


# Comparing


def write_run(folder: Path, ttft_ms: float, **changes: object) -> None:
    """A run with these figures, as one that went well would have written it."""
    folder.mkdir(parents=True)
    result = Result(
        workload={"users": 3, **changes}, target="fake gateway", began=0.0, machine={},
        closed_loop=True, warm_up=0.0, seconds=60.0, intended=100, ok=100,
        goodput=100 / ttft_ms, good_fraction=1.0, tokens_per_second=5.0, requests_per_second=1.5,
    )  # fmt: skip
    (folder / "result.json").write_bytes(result.json())


async def test_two_series_of_runs_are_put_side_by_side(tmp_path: Path) -> None:
    for number in range(1, 6):
        write_run(tmp_path / "a" / str(number), 100 + number)
        write_run(tmp_path / "b" / str(number), 50 + number)
    run = await run_piped("simulate", "compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert (run.returncode, run.stderr) == (0, b"")
    shown = run.stdout.decode()
    assert "The unit is the run: 5 of a and 5 of b, paired by their numbers.\n" in shown
    assert re.search(r"^ goodput .* better *$", shown, re.MULTILINE)
    as_json = await run_piped(
        "simulate", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json"
    )
    changes = {change["figure"]: change for change in json.loads(as_json.stdout)["changes"]}
    assert changes["goodput"]["verdict"] == "better"


async def test_what_cannot_be_compared_is_told_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 100)
    write_run(tmp_path / "other", 100, turns=9)
    (tmp_path / "empty").mkdir()
    for b, what in (
        ("other", "these runs cannot be compared: the workloads differ: turns is 1 in "),
        ("empty", f"{tmp_path}/empty holds no run: neither result.json nor 1/result.json"),
        ("nowhere", f"{tmp_path}/nowhere cannot be read: No such file or directory"),
    ):
        run = await run_piped("simulate", "compare", str(tmp_path / "a"), str(tmp_path / b))
        assert (run.returncode, run.stdout) == (1, b"")
        assert re.fullmatch(rf"gz-trio: {re.escape(what)}[^\n]*\n", run.stderr.decode())


# The search for the capacity


async def held_up_to(rate: float, bound_at: float, workload: Workload) -> Result:
    """A run against a gateway that holds so much, by a simulator that holds so much."""
    await trio.lowlevel.checkpoint()
    assert workload.rate is not None
    bound = [ClientBound(second=1, shard=0, why="cpu", value=1.0, limit=0.9)]
    return Result(
        workload=workload.settings, target="fake gateway", began=0.0, machine={},
        closed_loop=False, warm_up=workload.warm_up_seconds,
        seconds=workload.duration_seconds or 0.0, intended=1000, ok=1000,
        good_fraction=1.0 if workload.rate <= rate else 0.9,
        client_bound=bound if workload.rate > bound_at else [],
    )  # fmt: skip


async def search(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, rate: float, bound_at: float
) -> tuple[int, list[Workload]]:
    """The exit code of a search, and what it ran."""
    ran: list[Workload] = []

    async def run_in_processes(workload: Workload, *_: object, **more: object) -> Result:
        ran.append(workload)
        return await held_up_to(rate, bound_at, workload)

    monkeypatch.setattr(command, "run_in_processes", run_in_processes)
    simulation = Simulation(None, processes=1, scheduler=None, parquet=False, as_json=False)
    workload = Workload(rate=10, slo=("ttft=1s",))
    return await simulation.find_capacity(workload, folder, CapacitySearch(first_rate=10)), ran


async def test_the_capacity_is_searched_step_by_step_and_each_step_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, ran = await search(tmp_path, monkeypatch, rate=26, bound_at=1e9)
    assert code == 0
    assert [workload.rate for workload in ran[:3]] == [10.0, 20.0, 40.0]
    for workload in ran:
        assert workload.rate is not None
        assert workload.warm_up_seconds > 0
        assert workload.duration_seconds is not None
        assert workload.duration_seconds >= max(30.0, 1000 / workload.rate)
    numbers = {str(number) for number in range(1, len(ran) + 1)}
    assert names_in(tmp_path) == {*numbers, "capacity.json"}
    found = json.loads((tmp_path / "capacity.json").read_bytes())
    assert found["why"] == "found"
    assert 24 < found["rate"] <= 26
    *steps, last = capsys.readouterr().out.splitlines()
    assert steps[0] == (
        "step 1: 10 sessions a second (bracket): 1000 good of 1000, lower limit 0.9962: met"
    )
    assert last.startswith(f"The gateway holds {found['rate']:g} sessions a second with 99 % of ")


async def test_where_the_simulator_is_the_limit_the_capacity_is_at_least_so_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, ran = await search(tmp_path, monkeypatch, rate=1e9, bound_at=30)
    assert (code, len(ran)) == (1, 3)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("The gateway holds at least 20 sessions a second")
    assert "give it more processes" in last


def test_a_search_begins_at_the_rate_that_is_given_or_stands_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.toml"
    path.write_text("rate = 20\n", encoding="utf-8")
    assert workloads_of([path], {}, find_capacity=True)[""].rate == 20
    assert workloads_of([path], {"rate": 30.0}, find_capacity=True)[""].rate == 30
    path.write_text("turns = 3\n", encoding="utf-8")
    assert workloads_of([path], {}, find_capacity=True)[""] == Workload(rate=1.0, turns=3)
    for more in ("stages = ['1s:3']", "requests = 3", "sessions = 3"):
        path.write_text(f"rate = 20\n{more}\n", encoding="utf-8")
        with pytest.raises(UsageError, match="leave out users, stages, sessions, requests"):
            workloads_of([path], {}, find_capacity=True)

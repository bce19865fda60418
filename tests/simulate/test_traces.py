"""Files of conversations: what is read from each format, and why something is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio.simulate._conversations import Conversation, Loaded, Turn
from gz_trio.simulate._prompts import block_text
from gz_trio.simulate._traces import load
from gz_trio.simulate._workload import PromptsFormat, Workload

MS = 1_000_000


def workload(path: Path, form: PromptsFormat, *, speedup: float = 1.0, seed: int = 0) -> Workload:
    return Workload(
        users=None if form == "mooncake" else 1,
        prompts=str(path),
        prompts_format=form,
        speedup=speedup,
        seed=seed,
    )


class Read:
    """Writes lines to a file, and loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path / "prompts.jsonl"

    def __call__(self, form: PromptsFormat, *lines: object, speedup: float = 1.0) -> Loaded:
        """Each line is bytes, or becomes JSON."""
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        self.path.write_bytes(b"".join(line + b"\n" for line in raw))
        return load(workload(self.path, form, speedup=speedup))


@pytest.fixture
def read(tmp_path: Path) -> Read:
    return Read(tmp_path)


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


SYSTEM = message("system", "Be brief.")
HELLO, HI = message("user", "Hello?"), message("assistant", "Hi!")
MORE, OK = message("user", "Say more."), message("assistant", "OK, more.")


def asks(turn: Turn) -> list[object]:
    return [one["content"] for one in turn.messages]


def only(loaded: Loaded) -> Conversation:
    assert not loaded.skipped
    (conversation,) = loaded.conversations
    return conversation


# JSON lines of messages


def test_a_line_of_messages_is_a_conversation(read: Read) -> None:
    loaded = read("messages", {"messages": [SYSTEM, HELLO]}, {"messages": [MORE]})
    assert len(loaded) == 2
    assert loaded.conversation(0).turns == (Turn(messages=(SYSTEM, HELLO)),)
    assert loaded.conversation(1).turns == (Turn(messages=(MORE,)),)


def test_a_line_may_be_the_bare_list_of_messages(read: Read) -> None:
    assert only(read("messages", [HELLO])).turns == (Turn(messages=(HELLO,)),)


def test_an_answer_ends_a_turn(read: Read) -> None:
    conversation = only(read("messages", {"messages": [SYSTEM, HELLO, HI, MORE, OK]}))
    assert conversation.turns == (
        Turn(messages=(SYSTEM, HELLO), answer="Hi!"),
        Turn(messages=(MORE,), answer="OK, more."),
    )


def test_the_last_question_needs_no_answer(read: Read) -> None:
    conversation = only(read("messages", {"messages": [HELLO, HI, MORE]}))
    assert [turn.answer for turn in conversation.turns] == ["Hi!", None]


def test_what_follows_the_last_question_and_is_no_answer_is_left_out(read: Read) -> None:
    conversation = only(read("messages", {"messages": [HELLO, HI, OK]}))
    assert conversation.turns == (Turn(messages=(HELLO,), answer="Hi!"),)


def test_questions_without_an_answer_between_them_are_one_turn(read: Read) -> None:
    conversation = only(read("messages", {"messages": [HELLO, MORE, OK]}))
    assert conversation.turns == (Turn(messages=(HELLO, MORE), answer="OK, more."),)


def test_a_message_that_is_nobodys_question_stays_where_it_is(read: Read) -> None:
    conversation = only(read("messages", {"messages": [HI, HELLO, SYSTEM, OK]}))
    assert conversation.turns == (Turn(messages=(HI, HELLO, SYSTEM), answer="OK, more."),)


def test_a_call_of_a_tool_and_its_result_belong_to_the_prompt(read: Read) -> None:
    call: dict[str, object] = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}
    result: dict[str, object] = {"role": "tool", "tool_call_id": "c1", "content": "12"}
    conversation = only(read("messages", {"messages": [HELLO, call, result, OK, MORE, call]}))
    assert conversation.turns == (
        Turn(messages=(HELLO, call, result), answer="OK, more."),
        Turn(messages=(MORE,)),
    )


def test_the_result_of_a_tool_asks_for_an_answer_too(read: Read) -> None:
    call: dict[str, object] = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}
    result: dict[str, object] = {"role": "tool", "tool_call_id": "c1", "content": "12"}
    conversation = only(read("messages", {"messages": [HELLO, call, result]}))
    assert conversation.turns == (Turn(messages=(HELLO, call, result)),)


def test_the_text_of_an_answer_may_come_in_parts(read: Read) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "refusal"}, {"type": "text", "text": "!"}]
    conversation = only(read("messages", {"messages": [HELLO, message("assistant", parts)]}))
    assert conversation.turns[0].answer == "Hi!"


def test_messages_are_kept_as_they_are(read: Read) -> None:
    url = {"type": "image_url", "image_url": {"url": "https://pictures.test/1"}}
    picture: dict[str, object] = {"role": "user", "name": "eve", "content": [url]}
    assert only(read("messages", {"messages": [picture]})).turns[0].messages == (picture,)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"output_tokens": 8}, 8),
        ({"output_tokens": 8, "max_tokens": 7}, 8),
    ],
)
def test_a_line_may_say_how_long_its_answers_are(
    read: Read, settings: dict[str, int], tokens: int | None
) -> None:
    conversation = only(read("messages", {"messages": [HELLO, HI, MORE], **settings}))
    assert [turn.output_tokens for turn in conversation.turns] == [tokens, tokens]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON"),
        (b'[{"content": ' + b"[" * 100_000, "no JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "not UTF-8"),
        ({}, "no messages"),
        ([], "no messages"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"content": "Hello?"}]}, "a message without a role"),
        ({"messages": [SYSTEM, HI]}, "no message of a user"),
        ({"messages": "Hello?"}, "messages: Expected array, got str"),
        ({"messages": [HELLO, MORE, "Hi!"]}, "messages[]: Expected object, got str"),
        ({"messages": [HELLO, message("assistant", 5)]}, "Expected str | array | null, got int"),
        ({"messages": [HELLO], "max_tokens": 0}, "max_tokens: Expected int >= 1"),
        ("Hello?", "Expected object | array, got str"),
    ],
)
def test_a_line_without_a_conversation_is_left_out_by_its_reason(
    read: Read, line: object, reason: str
) -> None:
    loaded = read("messages", [HELLO], line, [MORE], line)
    assert [asks(one.turns[0]) for one in loaded.conversations] == [["Hello?"], ["Say more."]]
    assert loaded.skipped == {reason: 2}


# ShareGPT


def said(*values: tuple[str, str]) -> dict[str, object]:
    return {"id": "x_0", "conversations": [{"from": who, "value": what} for who, what in values]}


def test_pairs_of_human_and_gpt_are_turns(read: Read) -> None:
    conversation = only(
        read(
            "sharegpt",
            said(("human", "Hello?"), ("gpt", "Hi there, you!"), ("human", "More."), ("gpt", "No")),
        )
    )
    assert conversation.turns == (
        Turn(messages=(HELLO,), answer="Hi there, you!", output_tokens=3),
        Turn(messages=(message("user", "More."),), answer="No", output_tokens=1),
    )


@pytest.mark.parametrize("indent", [None, 2])
def test_the_file_may_be_one_json_list(read: Read, indent: int | None) -> None:
    pair = said(("human", "Hello?"), ("gpt", "Hi!"))
    whole = json.dumps([pair, 5, {"id": "x"}, pair], indent=indent).encode()
    loaded = read("sharegpt", whole)
    assert len(loaded) == 2
    assert loaded.skipped == {"Expected object, got int": 1, "no conversations": 1}


@pytest.mark.parametrize("human", ["human", "user"])
@pytest.mark.parametrize("gpt", ["gpt", "chatgpt", "bing", "bard", "assistant"])
def test_speakers_have_many_names(read: Read, human: str, gpt: str) -> None:
    conversation = only(read("sharegpt", said(("system", "Be brief."), (human, "A"), (gpt, "B"))))
    assert conversation.turns == (
        Turn(messages=(SYSTEM, message("user", "A")), answer="B", output_tokens=1),
    )


def test_an_answer_to_a_question_in_another_part_is_left_out(read: Read) -> None:
    conversation = only(read("sharegpt", said(("gpt", "Yes."), ("human", "A"), ("gpt", "B"))))
    assert [asks(turn) for turn in conversation.turns] == [["A"]]


def test_a_last_question_that_was_not_answered_is_left_out(read: Read) -> None:
    conversation = only(read("sharegpt", said(("human", "A"), ("gpt", "B"), ("human", "C"))))
    assert [asks(turn) for turn in conversation.turns] == [["A"]]


def test_an_empty_answer_says_nothing_about_its_length(read: Read) -> None:
    (turn,) = only(read("sharegpt", said(("human", "A"), ("gpt", " ")))).turns
    assert turn.output_tokens is None


def test_a_script_without_spaces_has_a_token_for_each_character(read: Read) -> None:
    (turn,) = only(read("sharegpt", said(("human", "A"), ("gpt", "Ja, 你好吗 OK")))).turns
    assert turn.output_tokens == 5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON"),
        (b'{"conversations": [{"from": "human", "value": "\xff"}]}', "not UTF-8"),
        ({"id": "x_0"}, "no conversations"),
        (said(), "no conversations"),
        (said(("human", "A"), ("observation", "B")), "a speaker whose role is not known"),
        (said(("human", "A")), "no answer"),
        (said(("gpt", "B")), "no message of a user"),
        (
            {"conversations": [{"from": "human", "value": None}]},
            "conversations[].value: Expected str, got null",
        ),
        (
            {"conversations": [{"value": "A"}]},
            "conversations[]: Object missing required field from",
        ),
    ],
)
def test_an_entry_without_a_pair_is_left_out_by_its_reason(
    read: Read, line: object, reason: str
) -> None:
    loaded = read("sharegpt", said(("human", "A"), ("gpt", "B")), line, line)
    assert len(loaded) == 1
    assert loaded.skipped == {reason: 2}


# Mooncake traces


def request(
    timestamp: float | None = 0, input_length: int = 5, output_length: int = 7, **more: object
) -> dict[str, object]:
    line = {"input_length": input_length, "output_length": output_length, **more}
    return line if timestamp is None else {"timestamp": timestamp, **line}


def prompt(turn: Turn) -> str:
    (one,) = turn.messages
    assert one["role"] == "user"
    return str(one["content"])


def test_a_request_is_made_of_its_blocks_of_which_the_last_is_cut(read: Read) -> None:
    (turn,) = only(read("mooncake", request(27482, 1100, 52, hash_ids=[46, 47, 2353]))).turns
    assert prompt(turn) == " ".join([block_text(46), block_text(47), block_text(2353, 76)])
    assert turn == Turn(
        messages=turn.messages, whole=True, input_tokens=1100, output_tokens=52, due=0
    )


def test_equal_ids_are_an_equal_prefix_and_nothing_more(read: Read) -> None:
    loaded = read(
        "mooncake",
        request(0, 1500, hash_ids=[1, 2, 3]),
        request(1, 1400, hash_ids=[1, 2, 4]),
    )
    one, other = (prompt(loaded.conversation(number).turns[0]).split() for number in range(2))
    assert one[:1024] == other[:1024]
    assert one[1024] != other[1024]


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 2, 3, 4]])
def test_the_length_counts_where_the_ids_do_not_fit_it(read: Read, ids: list[int]) -> None:
    loaded = read("mooncake", request(0, 600, hash_ids=ids), request(0, 600, hash_ids=ids))
    one, other = (prompt(loaded.conversation(number).turns[0]).split() for number in range(2))
    assert len(one) == len(other) == 600
    assert one[:512] == other[:512] == block_text(1).split()
    assert (one == other) == (len(ids) > 1)  # What no block covers is nobody else's.


@pytest.mark.parametrize("more", [{}, {"hash_ids": None}, {"hash_ids": []}])
def test_without_ids_the_text_is_made_up_and_adds_to_the_conversation(
    read: Read, more: dict[str, object]
) -> None:
    loaded = read("mooncake", request(0, 9) | more, request(1, 9) | more)
    one, other = (loaded.conversation(number).turns[0] for number in range(2))
    assert not one.whole
    assert one.input_tokens == len(prompt(one).split()) == 9
    assert prompt(one).split()[0] != prompt(other).split()[0]


def test_times_count_from_the_first_of_the_file_wherever_it_is(read: Read) -> None:
    loaded = read("mooncake", request(2500.5), request(1000), request(1001))
    dues = [conversation.turns[0].due for conversation in loaded.conversations]
    assert dues == [0, 1 * MS, 1500 * MS + MS // 2]


def test_a_line_that_is_left_out_is_not_the_first(read: Read) -> None:
    loaded = read("mooncake", request(0, 0), request(500))
    assert [conversation.turns[0].due for conversation in loaded.conversations] == [0]


def test_requests_of_the_same_time_stay_in_order(read: Read) -> None:
    loaded = read("mooncake", *(request(0, length) for length in (30, 20, 10)))
    assert [one.turns[0].input_tokens for one in loaded.conversations] == [30, 20, 10]


def test_a_faster_trace_has_shorter_times_and_delays(read: Read) -> None:
    session = [
        request(0, session_id="a"),
        request(100, session_id="a"),
        request(None, session_id="a", delay=50),
    ]
    turns = only(read("mooncake", *session, speedup=4)).turns
    assert [turn.due for turn in turns] == [0, 25 * MS, None]
    assert [turn.delay for turn in turns] == [None, None, 12.5 * MS]


def test_requests_of_one_session_are_turns_in_order_of_time(read: Read) -> None:
    loaded = read(
        "mooncake",
        request(30, 3, session_id="a"),
        request(20, 2, session_id=7),
        request(40, 4, session_id=7),
        request(10, 1, session_id="a"),
        request(25, 9),
    )
    lengths = [[turn.input_tokens for turn in one.turns] for one in loaded.conversations]
    assert lengths == [[1, 3], [2, 4], [9]]


def test_a_turn_without_a_time_stays_behind_the_one_before_it(read: Read) -> None:
    session = [
        request(20, 3, session_id="a"),
        request(None, 4, session_id="a", delay=5),
        request(0, 1, session_id="a"),
        request(None, 2, session_id="a"),
    ]
    turns = only(read("mooncake", *session)).turns
    assert [turn.input_tokens for turn in turns] == [1, 2, 3, 4]
    assert [turn.due for turn in turns] == [0, None, 20 * MS, None]


def test_a_trace_needs_no_times(read: Read) -> None:
    loaded = read("mooncake", request(None), request(None))
    assert [one.turns[0].due for one in loaded.conversations] == [None, None]


def test_an_answer_is_as_long_as_the_workload_says_where_the_trace_does_not(read: Read) -> None:
    assert only(read("mooncake", {"input_length": 5})).turns[0].output_tokens is None


def test_a_part_of_a_trace_is_a_list(read: Read) -> None:
    loaded = read("mooncake", request(0), request(1), request(2))
    assert loaded.conversations[1:] == [loaded.conversation(1), loaded.conversation(2)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "no JSON"),
        (b'{"input_length": 5, "session_id": "\xff"}', "not UTF-8"),
        ({"timestamp": 0}, "Object missing required field input_length"),
        (request(input_length=-5), "input_length: Expected int >= 1"),
        (request(input_length=10**9), "input_length: Expected int <= 10000000"),
        (request(output_length=0), "output_length: Expected int >= 1"),
        (request(-1), "timestamp: Expected float >= 0.0"),
        (request(0, delay=-1), "delay: Expected float >= 0.0"),
        (request(0, hash_ids=[1, "2"]), "hash_ids[]: Expected int, got str"),
        (request(0, hash_ids="1"), "hash_ids: Expected array | null, got str"),
    ],
)
def test_a_line_that_is_no_request_is_left_out_by_its_reason(
    read: Read, line: object, reason: str
) -> None:
    loaded = read("mooncake", line, request(0), line)
    assert len(loaded) == 1
    assert loaded.skipped == {reason: 2}


# Files


FORMATS: tuple[PromptsFormat, ...] = get_args(PromptsFormat)
USABLE: dict[PromptsFormat, object] = {
    "messages": {"messages": [HELLO, HI]},
    "sharegpt": said(("human", "A"), ("gpt", "B")),
    "mooncake": request(0, 600, hash_ids=[1, 2]),
}


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_file_is_the_same_conversations(tmp_path: Path, form: PromptsFormat) -> None:
    path = tmp_path / "prompts"
    path.write_text("".join(json.dumps(USABLE[form]) + "\n" for _ in range(3)))
    first, second = (load(workload(path, form)) for _ in range(2))
    assert [first.conversation(n) for n in range(3)] == [second.conversation(n) for n in range(3)]


def test_made_up_text_of_a_trace_is_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(json.dumps(request()))
    one, same, other = (load(workload(path, "mooncake", seed=n)).conversation(0) for n in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize("form", FORMATS)
def test_blank_lines_a_byte_order_mark_and_ends_of_lines_of_windows_do_not_matter(
    tmp_path: Path, form: PromptsFormat
) -> None:
    path = tmp_path / "prompts"
    line = json.dumps(USABLE[form]).encode()
    path.write_bytes(b"\xef\xbb\xbf\r\n" + line + b"\r\n  \r\n" + line)
    loaded = load(workload(path, form))
    assert len(loaded) == 2
    assert not loaded.skipped


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_of_another_format_says_how_many_lines_there_are_and_what_is_wrong(
    tmp_path: Path, form: PromptsFormat
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "Hello?"}\n{"text": "Hi!"}\nHello?\n')
    reasons = {
        "messages": "2 x no messages, 1 x no JSON",
        "sharegpt": "2 x no conversations, 1 x no JSON",
        "mooncake": "2 x Object missing required field input_length, 1 x no JSON",
    }
    told = (
        f"{path}: none of its 3 entries can be used as {form}: {reasons[form]}. "
        "Is prompts_format right?"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
        load(workload(path, form))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("content", [b"", b"\n  \n"])
def test_an_empty_file_is_told(tmp_path: Path, form: PromptsFormat, content: bytes) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is empty$"):
        load(workload(path, form))


def test_a_list_of_nothing_is_empty(read: Read) -> None:
    with pytest.raises(ValueError, match="is empty"):
        read("sharegpt", [])


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_is_not_utf_8_is_told(tmp_path: Path, form: PromptsFormat) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(json.dumps(USABLE[form]).encode("utf-16"))
    with pytest.raises(ValueError, match=f"^{path}: none of its 1 entries .* 1 x not UTF-8"):
        load(workload(path, form))


@pytest.mark.parametrize("form", FORMATS)
def test_a_missing_file_is_told(tmp_path: Path, form: PromptsFormat) -> None:
    path = tmp_path / "nowhere"
    with pytest.raises(ValueError, match=f"^{path} cannot be read: No such file or directory$"):
        load(workload(path, form))


@pytest.mark.parametrize("content", [b"[{},", b"[" * 100_000, b"[] []"])
def test_a_list_that_is_cut_is_told(read: Read, content: bytes) -> None:
    with pytest.raises(ValueError, match=f"^{read.path} is no list of conversations: "):
        read("sharegpt", content)


def test_a_workload_without_a_file_is_told() -> None:
    with pytest.raises(ValueError, match="names no file"):
        load(Workload(users=1))


# Whatever is in the file

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
names = st.sampled_from(
    [
        "messages", "role", "content", "tool_calls", "max_tokens", "output_tokens", "text",
        "conversations", "from", "value",
        "input_length", "output_length", "hash_ids", "timestamp", "session_id", "delay",
    ]
)  # fmt: skip
roles = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt"])
nearly = st.recursive(
    scalars | roles,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=15,
)
real_messages = st.fixed_dictionaries({"role": roles, "content": scalars})
real_said = st.fixed_dictionaries({"from": roles, "value": st.text()})
requests = st.fixed_dictionaries(
    {"input_length": st.integers(-1, 2000)},
    optional={
        "output_length": st.integers(-1, 50),
        "hash_ids": st.lists(st.integers(), max_size=4),
        "timestamp": st.floats(-1, 1e15) | st.integers(0, 1000),
        "session_id": st.sampled_from(["a", "b", 1]),
        "delay": st.floats(-1, 1e15),
    },
)
objects = (
    st.fixed_dictionaries({"messages": st.lists(real_messages, max_size=5)})
    | st.fixed_dictionaries({"conversations": st.lists(real_said, max_size=5)})
    | requests
    | nearly
)
lines_of_json = objects.map(lambda value: json.dumps(value).encode())
any_bytes = st.binary().map(lambda data: data.replace(b"\n", b""))
files = st.lists(lines_of_json | any_bytes, max_size=8)


def everything_is_accounted_for(loaded: Loaded, form: PromptsFormat, content: bytes) -> None:
    conversations = loaded.conversations[:]
    turns = [turn for conversation in conversations for turn in conversation.turns]
    used = len(turns) if form == "mooncake" else len(conversations)
    content = content.removeprefix(b"\xef\xbb\xbf")
    if form == "sharegpt" and content.lstrip().startswith(b"["):
        there = len(msgspec.json.decode(content, type=list[msgspec.Raw]))
    else:
        there = sum(bool(line.strip()) for line in content.split(b"\n"))
    assert used + loaded.skipped.total() == there
    assert all(conversation.turns for conversation in conversations)
    for turn in turns:
        assert any(one["role"] in {"user", "tool"} for one in turn.messages)
        assert turn.due is None or turn.due >= 0
        assert form != "mooncake" or len(prompt(turn).split()) == turn.input_tokens
    starts = [one.turns[0].due or 0 for one in conversations]
    assert starts == sorted(starts)


@given(files, st.sampled_from(FORMATS), st.sampled_from([0.5, 1, 1000]))
def test_every_line_of_whatever_file_is_used_or_counted(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    form: PromptsFormat,
    speedup: float,
) -> None:
    path = tmp_path_factory.getbasetemp() / "whatever"
    path.write_bytes(b"\n".join(lines))
    try:
        loaded = load(workload(path, form, speedup=speedup))
    except ValueError as error:
        told = str(error)
    else:
        told = ""
        everything_is_accounted_for(loaded, form, path.read_bytes())
    assert not told or told.startswith(str(path))

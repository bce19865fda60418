"""Made-up prompts: as long as the workload has them, the same every time, and no two alike."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gz_trio.simulate._prompts import BLOCK_TOKENS, MadeUp, block_text
from gz_trio.simulate._workload import Workload


def prompts(number: int, **settings: object) -> list[str]:
    """What one session says, turn by turn."""
    conversation = MadeUp(Workload.of({"users": 1, **settings})).conversation(number)
    texts: list[str] = []
    for turn in conversation.turns:
        (message,) = turn.messages
        assert message["role"] == "user"
        texts.append(str(message["content"]))
    return texts


def words(text: str) -> int:
    return len(text.split())


def test_there_is_no_end_of_them() -> None:
    assert len(MadeUp(Workload(users=1))) == 0
    assert prompts(10**9)


def test_a_session_has_as_many_turns_as_the_workload_says() -> None:
    assert len(prompts(0)) == 1
    assert len(prompts(0, turns=5)) == 5


def test_the_same_number_says_the_same_every_time() -> None:
    workload = Workload(users=1, turns=3, input_tokens="normal(50, 20)", output_tokens="1")
    assert MadeUp(workload).conversation(3) == MadeUp(workload).conversation(3)


def test_another_seed_says_something_else() -> None:
    assert prompts(3, seed=1) != prompts(3, seed=2)


def test_each_turn_says_something_else() -> None:
    assert len(set(prompts(3, turns=4))) == 4


def test_what_one_session_says_does_not_depend_on_the_others() -> None:
    made_up = MadeUp(Workload(users=1))
    alone = made_up.conversation(8)
    for number in range(8):
        made_up.conversation(number)
    assert made_up.conversation(8) == alone


@pytest.mark.parametrize("tokens", [1, 2, 100, 200_000])
def test_a_prompt_has_a_word_for_each_token(tokens: int) -> None:
    (text,) = prompts(12, input_tokens=tokens)
    assert words(text) == tokens
    assert text == " ".join(text.split())


def test_a_very_long_prompt_repeats_itself_but_seldom() -> None:
    (text,) = prompts(12, input_tokens=200_000)
    opening = " ".join(text.split()[1:101])
    assert text.count(opening) == 4


@given(st.integers(0, 10_000), st.integers(0, 3))
def test_lengths_are_those_of_the_distributions(number: int, seed: int) -> None:
    workload = Workload(
        users=1,
        turns=4,
        seed=seed,
        input_tokens="uniform(3, 9)",
        output_tokens="uniform(20, 30)",
    )
    for turn in MadeUp(workload).conversation(number).turns:
        assert turn.input_tokens == words(str(turn.messages[0]["content"]))
        assert turn.input_tokens in range(3, 10)
        assert turn.output_tokens in range(20, 31)
    lengths = {MadeUp(workload).conversation(n).turns[0].input_tokens for n in range(200)}
    assert lengths == set(range(3, 10))


def test_no_two_sessions_begin_with_the_same_word() -> None:
    openings = [prompts(number)[0].split() for number in range(150)]
    for one, other in combinations(openings, 2):
        assert one[0] != other[0]
        assert one[1:] != other[1:]


def test_nothing_has_a_time_of_its_own() -> None:
    for turn in MadeUp(Workload(users=1, turns=2)).conversation(0).turns:
        assert (turn.due, turn.delay, turn.answer, turn.whole) == (None, None, None, False)


# Blocks of a trace


@given(st.integers(-(2**70), 2**70), st.integers(1, BLOCK_TOKENS))
def test_a_cut_block_is_the_start_of_the_whole_one(hash_id: int, tokens: int) -> None:
    cut, whole = block_text(hash_id, tokens), block_text(hash_id)
    assert words(cut) == tokens
    assert words(whole) == BLOCK_TOKENS
    assert (whole + " ").startswith(cut + " ")


@given(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70))
def test_blocks_differ_from_the_first_word_on_unless_their_ids_are_the_same(
    one: int, other: int
) -> None:
    firsts = {block_text(hash_id).split()[0] for hash_id in (one, other)}
    assert len(firsts) == (1 if one == other else 2)


def test_neighbours_are_no_shifted_copies_of_each_other() -> None:
    for hash_id in range(100):
        one, other = (block_text(n).split()[1:] for n in (hash_id, hash_id + 1))
        assert " ".join(one[:20]) not in " ".join(other)
        assert " ".join(other[:20]) not in " ".join(one)

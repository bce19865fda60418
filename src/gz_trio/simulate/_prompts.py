"""Made-up prompts: words without sense, as many as there are to be tokens.

Each is a slice of one long text, because a word drawn at a time would cost more than sending it.
Its first word is a number, so that no two prompts begin alike: a server that keeps prefixes
finds only those again that are meant to be the same.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import overload

from ._conversations import Conversation, Turn
from ._workload import Workload

BLOCK_TOKENS = 512
"""Tokens in a block of a Mooncake trace."""

_LONG = 1 << 16
"""Words of the long text. A power of two: `block_text` relies on it."""

# Each is one token, with the space before it, in the vocabularies of GPT, Llama, Qwen and Mistral.
_WORDS = """
    a about after again air all also always am an and any are around as ask at away back be because
    been before began being best big black blue book both boy bring but by call came can car care
    case change child city close cold come could country cut dark day did do does done door down
    each early earth eat end even every eye face fact fall family far father few field find fire
    first five follow food for form found four free friend from full gave get girl give go gold good
    got great green group grow had half hand hard has have he head hear heart help her here high him
    his hold home horse hot hour house how idea if in into is it its just keep kind king knew know
    land large last late lead learn leave left less let letter life light like line list little live
    long look love low made make man many map mark may me mean men might mind money month moon more
    morning most mother move much must my name near need never new next night no north not note
    nothing now number of off often old on once one only open or order other our out over own page
    paper part pass people place plan plant play point power put question quick rain ran read real
    red rest right river road rock room round rule run said same saw say school sea second see seem
    set she short should show side since sit six sleep slow small snow so some song soon sound south
    space stand star start state stay step still stop story street strong such sun sure table take
    talk tell ten than that the their them then there these they thing think this those three time
    to today together told too took top town tree true try turn two under until up us use very voice
    walk wall want war warm was watch water way we week well went were west what wheel when where
    which while white who why wild will wind with wood word work world would write year yes you
    young your
"""


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Conversations without end, of prompts and answers as long as the workload has them.

    Args:
        workload: Its `seed`, `turns`, `input_lengths` and `output_lengths` count.

    >>> MadeUp(Workload(users=1, input_tokens=4)).conversation(7).turns[0].messages
    ({'role': 'user', 'content': '7 found wind he'},)
    """

    workload: Workload

    def __len__(self) -> int:
        """0: they have no end."""
        return 0

    def conversation(self, number: int) -> Conversation:
        """See `Conversations`."""
        return Conversation(_MadeUpTurns(self.workload, number))


@dataclass(frozen=True, slots=True)
class _MadeUpTurns(Sequence[Turn]):
    """The turns of a session, each made when it is asked for: very many sessions go on at once."""

    workload: Workload
    number: int

    def __len__(self) -> int:
        return self.workload.turns

    @overload
    def __getitem__(self, place: int) -> Turn: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Turn]: ...

    def __getitem__(self, place: int | slice) -> Turn | Sequence[Turn]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        dice = dice_of(self.workload, self.number, place)
        tokens = self.workload.input_lengths.draw_count(dice)
        return Turn(
            messages=(user_message(made_up_text(self.number, tokens, dice)),),
            input_tokens=tokens,
            output_tokens=self.workload.output_lengths.draw_count(dice),
        )


def dice_of(workload: Workload, number: int, turn: int = 0) -> random.Random:
    """What is random in a turn: of the same seed, session and turn always the same."""
    return random.Random(f"{workload.seed}.{number}.{turn}")


def user_message(text: str) -> dict[str, object]:
    """What a user says, as a message of the API."""
    return {"role": "user", "content": text}


def made_up_text(number: int, tokens: int, dice: random.Random) -> str:
    """So many words, at least one, of which the first is the number."""
    return _text(number, dice.randrange(_LONG), tokens)


def block_text(hash_id: int, tokens: int = BLOCK_TOKENS) -> str:
    """The text of a block of a Mooncake trace, cut to so many tokens, at least one.

    Equal ids give equal text, other ids another one from the first word on.

    >>> block_text(46, 3), block_text(46, 5), block_text(47, 3)
    ('46 country am', '46 country am road more', '47 under end')
    """
    # Times an odd number, modulo a power of two: ids that are near each other begin far apart.
    return _text(hash_id, hash_id * 0x9E3779B1 % _LONG, tokens)


def _text(first: int, start: int, tokens: int) -> str:
    text, starts = _long_text()
    pieces = [str(first)]
    left = tokens - 1
    while left > 0:
        end = min(start + left, _LONG)
        pieces.append(text[starts[start] : starts[end] - 1])
        left -= end - start
        start = 0
    return " ".join(pieces)


@cache
def _long_text() -> tuple[str, array[int]]:
    """The text, a space behind every word, and where each word starts in it."""
    words = random.Random(0).choices(_WORDS.split(), k=_LONG)
    starts = accumulate((len(word) + 1 for word in words), initial=0)
    return " ".join(words) + " ", array("I", starts)

"""How servers go on from a partial answer that a request ends with: asked by flags, or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from .._protocol.events import Delta
from ._chunks import text_of
from ._faults import Status

Continues: TypeAlias = Literal["vllm", "prefix", "prefill"]
"""By what a server is asked to go on from a partial answer; `FakeGateway` says what each is."""


@dataclass(frozen=True, slots=True)
class Partial:
    """A partial answer that the model goes on from.

    Args:
        text: What there is of it, without the whitespace at its end.
        body: The request's body without it: the one that it answers.
    """

    text: str
    body: dict[str, object]

    def rest(
        self, answer: Sequence[str | Delta], other: Sequence[str | Delta]
    ) -> list[str | Delta]:
        """What comes after the partial answer.

        Args:
            answer: The whole answer to `body`.
            other: What a choice goes on with that does not begin with the partial answer.
        """
        deltas = _deltas(answer)
        choices = {delta.choice for delta in deltas} | {0}
        left = {
            choice: self.text for choice in choices if text_of(deltas, choice).startswith(self.text)
        }
        rest: list[str | Delta] = []
        for delta in deltas:
            if not (behind := left.get(delta.choice)):
                if behind is not None:
                    rest.append(delta)
                continue
            left[delta.choice] = behind[len(delta.text) :]
            text = delta.text[len(behind) :]
            if text or delta.finish_reason:
                rest.append(
                    msgspec.structs.replace(
                        delta, text=text, reasoning="", reasoning_details=(), tool_calls=(), raw=b""
                    )
                )
        return rest + [delta for delta in _deltas(other) if delta.choice not in left]

    def echo(self, tokens: Sequence[Delta], endings: Sequence[Delta]) -> list[Delta]:
        """The partial answer itself, for each choice."""
        choices = sorted({delta.choice for delta in (*tokens, *endings)})
        return [Delta(text=self.text, choice=choice) for choice in choices if self.text]


def partial_answer(body: Mapping[str, object], continues: Continues | None) -> Partial | None:
    """The partial answer that this server goes on from; `None` if it begins a new one."""
    *before, last = _messages(body) or [{}]
    match continues:
        case None:
            asked = False
        case "vllm":
            asked = body.get("continue_final_message") is True
        case "prefix":
            asked = last.get("prefix") is True
        case "prefill":
            asked = True
    text = _text(last.get("content"))
    if not asked or last.get("role") != "assistant" or text is None:
        return None
    flags = ("add_generation_prompt", "continue_final_message")
    rest = {name: value for name, value in body.items() if name not in flags}
    # Chat templates trim it; a server of the kind "prefill" has refused it.
    return Partial(text.rstrip(), {**rest, "messages": before})


def refusal(body: Mapping[str, object], continues: Continues | None) -> Status | None:
    """What this server answers to a body that asks in a way it rejects."""
    messages = _messages(body)
    last = messages[-1] if messages else {}
    is_partial = last.get("role") == "assistant"
    match continues:
        case "vllm" if body.get("continue_final_message") is True and (
            # It is true unless the request says otherwise.
            body.get("add_generation_prompt") is not False
        ):
            reason = (
                "continue_final_message and add_generation_prompt cannot both be true: "
                "the first goes on with a message, the second begins one"
            )
            return Status(400, reason, dialect="vllm_object", type="BadRequestError")
        case "prefix" if is_partial is not (last.get("prefix") is True) or any(
            message.get("prefix") is True for message in messages[:-1]
        ):
            reason = (
                "The last message must be of the user or a tool, or of the assistant with "
                '"prefix": true, which no other message may have'
            )
            return Status(400, reason, dialect="openai", code="invalid_request_error")
        case "prefill" if (
            is_partial and (text := _text(last.get("content")) or "").rstrip() != text
        ):
            reason = "messages: final assistant content cannot end with trailing whitespace"
            return Status(400, reason, dialect="anthropic")
        case _:
            return None


def _messages(body: Mapping[str, object]) -> list[dict[str, object]]:
    messages = body.get("messages")
    if not isinstance(messages, list):
        return []
    return [
        msgspec.convert(message, dict[str, object]) if isinstance(message, dict) else {}
        for message in msgspec.convert(messages, list[object])
    ]


def _text(content: object) -> str | None:
    """The text of a message's content: a string, or parts; `None` if that is not all it is."""
    if isinstance(content, str):
        return content
    try:
        parts = msgspec.convert(content, list[_TextPart])
    except msgspec.ValidationError:
        return None
    return "".join(part.text for part in parts)


class _TextPart(msgspec.Struct, tag_field="type", tag="text"):
    text: str


def _deltas(answer: Sequence[str | Delta]) -> list[Delta]:
    return [Delta(text=piece) if isinstance(piece, str) else piece for piece in answer]

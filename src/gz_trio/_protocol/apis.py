"""The APIs that a gateway may speak: where each is found, and what it wants to be asked.

What the servers' events mean is in a module for each: `chat`, `responses`, `messages`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from . import lenient_json, messages, relaying, responses
from .chat import ChatDecoder
from .cursor import Cursor, EventCursor, SequenceCursor
from .decoding import Decoder, text_of
from .messages import MessagesDecoder
from .relaying import Mark, Retell
from .responses import ResponsesDecoder
from .sse import ServerSentEvent

ApiName = Literal["chat", "responses", "messages"]
"""OpenAI's chat completions and Responses APIs, and Anthropic's Messages API."""

MAX_TOKENS = 4096
"""Of a session's answer by the Messages API, which wants to be told: what every model can."""

Message = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Api:
    """One API.

    Args:
        name: Its name.
        path: Where its requests go, behind the base URL.
        make_decoder: For the answer to one request.
        turn_body: The body of a session's next turn, from the model and the whole conversation.
        answer: What a turn adds to the conversation, from the decoder's `output` and the message
            that the deltas make.
        retell: An event that says what a delta does, from the one that it is a part of.
        mark: Stands for an event that an answer has once, `None` for others; `None` itself where
            there are none such. See `relaying`.
        make_cursor: For the place in one answer.
        identified: An event with its id, where the server gives it in another place than SSE has.
        headers: Beside the usual ones, where the caller has not given them.
    """

    name: ApiName
    path: str
    make_decoder: Callable[[], Decoder]
    turn_body: Callable[[str, Sequence[Message]], dict[str, object]]
    answer: Callable[[list[dict[str, object]] | None, dict[str, object]], list[dict[str, object]]]
    retell: Retell
    mark: Mark | None = None
    make_cursor: Callable[[], Cursor] = EventCursor
    identified: Callable[[ServerSentEvent], ServerSentEvent] | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def _chat_body(model: str, conversation: Sequence[Message]) -> dict[str, object]:
    return {
        "model": model,
        "messages": [*conversation],
        "stream_options": {"include_usage": True},
    }


def _chat_answer(
    _output: list[dict[str, object]] | None, message: dict[str, object]
) -> list[dict[str, object]]:
    return [message]


def _responses_body(model: str, conversation: Sequence[Message]) -> dict[str, object]:
    return {"model": model, "input": [*conversation]}


def _responses_answer(
    output: list[dict[str, object]] | None, message: dict[str, object]
) -> list[dict[str, object]]:
    if not output:
        return [{"role": "assistant", "content": message["content"] or ""}]
    return _with_call_ids(output, responses.CALLS, "call_id", message)


def _messages_body(model: str, conversation: Sequence[Message]) -> dict[str, object]:
    """The API has no system messages: what they say has a field of its own."""
    system = [_content(message) for message in conversation if message.get("role") == "system"]
    return {
        "model": model,
        "max_tokens": MAX_TOKENS,
        "messages": [message for message in conversation if message.get("role") != "system"],
        **({"system": [part for parts in system for part in parts]} if system else {}),
    }


def _content(message: Message) -> list[dict[str, object]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return lenient_json.objects(content)


def _messages_answer(
    output: list[dict[str, object]] | None, message: dict[str, object]
) -> list[dict[str, object]]:
    blocks = _with_call_ids(output or [], messages.CALLS, "id", message)
    text = "".join(str(block.get("text")) for block in blocks if block.get("type") == "text")
    whole = message["content"] or ""
    # A model that went on from half an answer has sent the other half alone.
    content: object = blocks if blocks and text == whole else whole
    return [{"role": "assistant", "content": content}]


def _with_call_ids(
    output: list[dict[str, object]], kinds: Mapping[str, str], field: str, message: Message
) -> list[dict[str, object]]:
    """`output` with the ids under which its calls were handed out: a second answer has others."""
    ids = [call.get("id") for call in lenient_json.objects(message.get("tool_calls"))]
    is_call = [text_of(part.get("type")) in kinds for part in output]
    if len(ids) != sum(is_call):
        return output
    left = iter(ids)
    return [
        {**part, field: next(left)} if call else part
        for part, call in zip(output, is_call, strict=True)
    ]


CHAT = Api("chat", "/chat/completions", ChatDecoder, _chat_body, _chat_answer, relaying.chat_retold)

RESPONSES = Api(
    "responses",
    "/responses",
    ResponsesDecoder,
    _responses_body,
    _responses_answer,
    relaying.responses_retold,
    relaying.responses_mark,
    make_cursor=SequenceCursor,
    identified=responses.identified,
)

MESSAGES = Api(
    "messages",
    "/messages",
    MessagesDecoder,
    _messages_body,
    _messages_answer,
    relaying.messages_retold,
    relaying.messages_mark,
    headers={"anthropic-version": "2023-06-01"},
)

APIS: Mapping[str, Api] = {api.name: api for api in (CHAT, RESPONSES, MESSAGES)}


def api_named(name: str) -> Api:
    """The API of this name.

    Raises:
        ValueError: There is none.
    """
    api = APIS.get(name)
    if api is None:
        raise ValueError(f"api is {name!r}, but must be 'chat', 'responses' or 'messages'")
    return api

"""A failure in the shape of the API that was asked, as an answer's body or as a frame of a stream.

Its words are ours or the gateway's; they hold no secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

ApiName = Literal["chat", "responses", "messages"]

APIS: dict[str, ApiName] = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
"""The APIs whose streams are taken up again, by the path that is asked by POST."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong.

    Args:
        message: For the user.
        type: As the API has it: `"rate_limit_error"`.
        code: For programs.
    """

    message: str
    type: str = "api_error"
    code: str | None = None

    @classmethod
    def of_answer(cls, status: int, body: bytes) -> Failure:
        """What a gateway says in an answer that is an error.

        >>> Failure.of_answer(429, b'{"error":{"message":"Slow down","type":"rate_limit_error"}}')
        Failure(message='Slow down', type='rate_limit_error', code='429')
        >>> Failure.of_answer(502, b"<html>")
        Failure(message='the gateway answered 502', type='api_error', code='502')
        """
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except msgspec.DecodeError:
            return cls(f"the gateway answered {status}", code=str(status))
        error = answer.error
        return cls(
            error.message or f"the gateway answered {status}",
            error.type or "api_error",
            str(status) if error.code is None else str(error.code),
        )

    def body(self, api: ApiName | None) -> bytes:
        """As the body of an answer; of no API: as OpenAI writes it."""
        return msgspec.json.encode(self._anthropic if api == "messages" else self._openai)

    def frame(self, api: ApiName) -> bytes:
        """As a frame in a stream that began well."""
        match api:
            case "chat":
                return b"data: %b\n\n" % msgspec.json.encode(self._openai)
            case "messages":
                return b"event: error\ndata: %b\n\n" % msgspec.json.encode(self._anthropic)
            case "responses":
                flat = {
                    "type": "error", "code": self.code, "message": self.message, "param": None,
                }  # fmt: skip
                return b"event: error\ndata: %b\n\n" % msgspec.json.encode(flat)

    @property
    def _openai(self) -> dict[str, object]:
        return {
            "error": {
                "message": self.message, "type": self.type, "param": None, "code": self.code,
            }
        }  # fmt: skip

    @property
    def _anthropic(self) -> dict[str, object]:
        return {"type": "error", "error": {"type": self.type, "message": self.message}}


class _Error(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | int | None = None


class _Answer(msgspec.Struct):
    error: _Error

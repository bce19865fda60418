"""The history that the fake gateway keeps of chats, and its routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import count
from typing import cast
from urllib.parse import parse_qs

import msgspec

from ._call import Call
from ._faults import Status
from ._plan import pattern_of

_METHODS: dict[str, tuple[str, ...]] = {
    "/v1/chat/sessions": ("GET", "POST"),
    "/v1/chat/sessions/{id}": ("GET", "PUT", "DELETE"),
    "/v1/chat/sessions/{id}/messages": ("POST",),
    "/v1/chat/sessions/{id}/messages/batch": ("POST",),
    "/v1/chat/search": ("POST",),
    "/v1/chat/stats": ("GET",),
    "/v1/chat/feedback": ("GET", "POST"),
}

_Object = dict[str, object]


class FakeHistory:
    """The chats that a `FakeGateway` keeps, for all its accounts. `FakeGateway.history`.

    Attributes:
        bare: Whether a session, a message or a list comes as it is, and statistics as `data`;
            else they come in the envelope `{"success", "data", "message", "count"}`, statistics as
            `stats`.
        keeps_created_at: Whether a message keeps the `created_at` that came with it, rather than
            getting the time at which it was stored.
        refuse: Called with each message that is to be stored; where it says `True` that message is
            not: a batch fails in part, a single message is answered 500.
        sessions: By id, in the order in which they were begun; without their messages.
        feedback: All that was given.
    """

    def __init__(self) -> None:
        self.bare = False
        self.keeps_created_at = True
        self.refuse: Callable[[Mapping[str, object]], bool] = lambda _: False
        self.sessions: dict[int, _Object] = {}
        self.feedback: list[_Object] = []
        self._messages: dict[int, list[_Object]] = {}
        self._ids = count(1)

    def __repr__(self) -> str:
        messages = sum(map(len, self._messages.values()))
        return f"<FakeHistory sessions={len(self.sessions)} messages={messages}>"

    def messages(self, session_id: int | str) -> list[dict[str, object]]:
        """The messages of a session, as it is read: by their time, then as they were stored.

        Raises:
            KeyError: There is no such session.
        """
        return sorted(self._messages[int(session_id)], key=lambda m: _when(m["created_at"]))

    # The routes

    async def respond(self, call: Call) -> None:
        """Answer a request whose key is accepted: do what it asks, then see what goes wrong."""
        try:
            answer = self._carry_out(call)
        except _Refused as refusal:
            await call.send_status(refusal.status)
            return
        fault = await call.strike(0)
        if isinstance(fault, Status):
            await call.send_status(fault)
            return
        await call.send(200, "application/json", answer)
        call.seen.complete = True

    def _carry_out(self, call: Call) -> bytes:
        method, route, body = call.seen.method, pattern_of(call.seen.path), call.seen.body
        if method not in _METHODS[route]:
            raise _Refused(405, "Method Not Allowed")
        if method in ("POST", "PUT") and body is None:
            raise _Refused(422, "The body is no JSON object")
        body = body or {}
        target = call.exchange.target
        query = {name: values[-1] for name, values in parse_qs(target.partition("?")[2]).items()}
        match method, route.removeprefix("/v1/chat"):
            case "POST", "/sessions":
                return self._one(self._begin(body), "Chat session created successfully")
            case "GET", "/sessions":
                return self._page(self._newest(), query, "sessions")
            case "POST", "/search":
                found = [s for s in self._newest() if self._matches(s, str(body.get("query")))]
                return self._page(found, {"limit": str(body.get("limit") or 20)}, "sessions")
            case "GET", "/stats":
                return self._stats()
            case "POST", "/feedback":
                return self._one(self._take_feedback(body), "Feedback submitted successfully")
            case "GET", "/feedback":
                return self._page(self.feedback[::-1], query, "feedback records")
            case _:
                return self._respond_in_session(method, call.seen.path.split("/")[4:], body)

    def _respond_in_session(self, method: str, path: list[str], body: _Object) -> bytes:
        name = path[0]
        if not name.isdecimal():
            raise _Refused(422, "The id of a session is a number")
        session = self.sessions.get(int(name))
        if session is None:
            raise _Refused(404, "Chat session not found")
        match method, path[1:]:
            case "PUT", _:
                session |= {k: body[k] for k in ("title", "model") if body.get(k)}
                session["updated_at"] = _now()
                return self._one(self._whole(session), "Chat session updated successfully")
            case "DELETE", _:
                del self.sessions[int(name)], self._messages[int(name)]
                return _json({"success": True, "message": "Chat session deleted successfully"})
            case _, ["messages"]:
                stored = self._store(session, body)
                if stored is None:
                    raise _Refused(500, "Failed to save message: it was refused")
                return self._one(stored, "Message saved successfully")
            case _, ["messages", "batch"]:
                return self._store_batch(session, body)
            case _:
                return self._one(self._whole(session), "Chat session retrieved successfully")

    # What is kept

    def _begin(self, body: _Object) -> _Object:
        number = next(self._ids)
        now = _now()
        session: _Object = {
            "id": number,
            "user_id": 1,
            "title": body.get("title") or f"Chat {now[:16]}",
            "model": body.get("model") or "openai/gpt-3.5-turbo",
            "created_at": now,
            "updated_at": now,
            "is_active": True,
        }
        self.sessions[number] = session
        self._messages[number] = []
        return session

    def _store(self, session: _Object, body: _Object) -> _Object | None:
        role, content = body.get("role"), body.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise _Refused(422, "A message has a role and a content")
        if self.refuse(body):
            return None
        sent = body.get("created_at") if self.keeps_created_at else None
        now = _now()
        message: _Object = {
            "id": next(self._ids),
            "session_id": session["id"],
            "role": role,
            "content": content,
            "model": body.get("model"),
            "tokens": body.get("tokens") or 0,
            "created_at": sent or now,
        }
        self._messages[cast("int", session["id"])].append(message)
        session["updated_at"] = now
        if body.get("model"):
            session["model"] = body["model"]
        return message

    def _store_batch(self, session: _Object, body: _Object) -> bytes:
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise _Refused(422, "A batch has messages")
        saved: list[_Object] = []
        failed: list[_Object] = []
        for message in cast("list[_Object]", messages):
            stored = self._store(session, message)
            if stored is None:
                preview = str(message["content"])[:50]
                failed.append({"success": False, "error": "refused", "content_preview": preview})
            else:
                saved.append({"success": True, "message_id": stored["id"], "data": stored})
        data = {
            "saved": saved,
            "failed": failed,
            "total": len(saved) + len(failed),
            "success_count": len(saved),
            "failure_count": len(failed),
        }
        told = f"Saved {len(saved)}/{data['total']} messages successfully"
        return _json({"success": not failed, "data": data, "message": told})

    def _take_feedback(self, body: _Object) -> _Object:
        if body.get("feedback_type") not in ("thumbs_up", "thumbs_down", "regenerate"):
            raise _Refused(422, "The type of a feedback is thumbs_up, thumbs_down or regenerate")
        session_id = body.get("session_id")
        if session_id is not None and int(str(session_id)) not in self.sessions:
            raise _Refused(404, "Chat session not found")
        given = {"id": next(self._ids), "user_id": 1, **body, "created_at": _now()}
        self.feedback.append(given)
        return given

    def _newest(self) -> list[_Object]:
        sessions = list(self.sessions.values())
        return sorted(sessions, key=lambda s: (str(s["updated_at"]), s["id"]), reverse=True)

    def _matches(self, session: _Object, query: str) -> bool:
        messages = self._messages[cast("int", session["id"])]
        texts = [session["title"], *(message["content"] for message in messages)]
        return any(query.lower() in str(text).lower() for text in texts)

    def _whole(self, session: _Object) -> _Object:
        return {**session, "messages": self.messages(cast("int", session["id"]))}

    # Answers

    def _one(self, value: _Object, message: str) -> bytes:
        return _json(value if self.bare else {"success": True, "data": value, "message": message})

    def _page(self, values: list[_Object], query: Mapping[str, str], what: str) -> bytes:
        try:
            limit, offset = int(query.get("limit", 50)), int(query.get("offset", 0))
        except ValueError:
            limit, offset = 0, 0
        if not 1 <= limit <= 100 or offset < 0:
            raise _Refused(422, "limit is from 1 to 100, offset 0 or more")
        page = values[offset : offset + limit]
        message = f"Retrieved {len(page)} {what}"
        envelope = {"success": True, "data": page, "message": message, "count": len(page)}
        return _json(page if self.bare else envelope)

    def _stats(self) -> bytes:
        messages = [message for each in self._messages.values() for message in each]
        stats = {
            "total_sessions": len(self.sessions),
            "total_messages": len(messages),
            "total_tokens": sum(cast("int", message["tokens"]) for message in messages),
        }
        message = "Chat statistics retrieved successfully"
        name = "data" if self.bare else "stats"
        return _json({"success": True, name: stats, "message": message})


class _Refused(Exception):
    """The request is not carried out."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = Status(status, detail, "detail")


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _when(created_at: object) -> datetime:
    time = datetime.fromisoformat(str(created_at))
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time

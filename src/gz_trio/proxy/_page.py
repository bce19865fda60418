"""The chat page: what it is served, what it asks, and what it is told.

A turn is answered by a stream of JSON lines to the tab that asked, and belongs to that request: a
tab that hangs up ends the reply, and with it the request to the gateway. The other tabs are told of
it by their event stream, as they are of the signed-in state and of sessions that changed.

What a gateway refuses is told with the status 200 and an `error`: with any other a browser would
write into its console that the page has failed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import httpx
import msgspec
import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from .. import AuthenticationError, Gateway, GatewayError, NotFoundError, SaveError, Session
from .._background import Background
from ._page_board import Board, Reader
from ._page_files import HEADERS, Files
from ._page_streams import NewsStream, Tell
from ._page_turns import Asked, Complete, Failed, Seen, Turn

_PAGE_OF_SESSIONS = 50

_BodyT = TypeVar("_BodyT")


@asynccontextmanager
async def open_page(gateway: Gateway, *, model: str | None) -> AsyncGenerator[list[BaseRoute]]:
    """The page's routes, `/` and all below `/page`.

    They answer whoever asks, and read whatever he sends: it is others who guard them.

    Leaving the block ends the event streams, which would go on for ever, and no turn.

    Args:
        gateway: Whose models are chatted with.
        model: The one that a new chat begins with; `None`: the one that was used last.
    """
    board = Board(gateway.authenticator)
    page = _Page(gateway, board, model)
    files = Files()
    async with Background("page") as nursery:
        nursery.start_soon(_tell_of_account, gateway, board)
        try:
            yield [
                Route("/", files.index),
                Route("/page/events", page.events),
                Route("/page/models", page.models),
                Route("/page/sessions", page.sessions),
                Route("/page/sessions/{id}", page.session),
                Route("/page/sessions/{id}", page.rename, methods=["PUT"]),
                Route("/page/sessions/{id}", page.delete, methods=["DELETE"]),
                Route("/page/turns", page.ask, methods=["POST"]),
                Route("/page/sign-in", page.sign_in, methods=["POST"]),
                Route("/page/sign-out", page.sign_out, methods=["POST"]),
                Route("/page/{name}", files.file),
            ]
        finally:
            board.close()


async def _tell_of_account(gateway: Gateway, board: Board) -> None:
    async with gateway.authenticator.subscribe() as states:
        async for _ in states:
            board.tell()


# What the page sends


class _Message(msgspec.Struct, forbid_unknown_fields=True):
    role: str
    content: str


class _Question(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A turn to be had.

    `session` is the one to go on with. Without one, `remember` begins one, after `messages`; which
    are the conversation so far where the gateway keeps no history.
    """

    turn: str
    tab: str
    model: str
    question: str
    session: str | None
    remember: bool
    messages: list[_Message]


class _Title(msgspec.Struct, forbid_unknown_fields=True):
    title: str


class _SignIn(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    same_account: bool


# What it gets


class _Trouble(msgspec.Struct):
    error: str
    sign_in: bool = False


class _Models(msgspec.Struct):
    models: list[str]
    default: str | None


class _SessionInList(msgspec.Struct):
    id: str
    title: str
    model: str | None


class _Sessions(msgspec.Struct):
    """`history` is whether the gateway keeps one, `more` whether there are older sessions."""

    history: bool
    sessions: list[_SessionInList]
    more: bool


class _WholeSession(msgspec.Struct):
    id: str
    title: str
    model: str | None
    messages: list[_Message]


class _Page:
    """The page's endpoints."""

    def __init__(self, gateway: Gateway, board: Board, model: str | None) -> None:
        self._gateway = gateway
        self._board = board
        self._model = model

    # Turns

    async def ask(self, request: Request) -> Response:
        """`POST /page/turns`: the news of one turn, a JSON object a line."""
        question = await _body(request, _Question)
        return NewsStream("application/x-ndjson", partial(self._answer, question))

    async def _answer(self, question: _Question, tell: Tell) -> None:
        asked = Asked(question.turn, question.session, question.model, question.question)
        with self._board.open_turn(asked, tab=question.tab) as turn:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._have, turn, question)
                seen = Seen()
                while seen.end is None:
                    more = self._board.next_news
                    await tell(turn.news(seen))
                    if seen.end is None:
                        await more.wait()

    async def _have(self, turn: Turn, question: _Question) -> None:
        """Read an answer to its end and have it saved, or tell why not."""
        await self._board.wait_for(turn)
        name = question.turn
        history_id = question.session
        finish_reason: str | None = None
        unsaved: str | None = None
        complete: Session | None = None
        try:
            async with self._gateway.open_session(
                question.model,
                messages=[msgspec.to_builtins(message) for message in question.messages],
                remember=question.session or question.remember,
            ) as session:
                resume = replace(self._gateway.resume, on_divergence="restart")
                async with session.stream(question.question, resume=resume) as reply:
                    async for event in reply.events():
                        turn.add(event)
                        self._board.tell()
                finish_reason = reply.finish_reason
                complete = session
        except SaveError as error:
            unsaved = str(error)
        except GatewayError as error:
            turn.end = Failed(name, str(error), sign_in=isinstance(error, AuthenticationError))
        except ValueError as error:
            turn.end = Failed(name, str(error), sign_in=False)
        finally:
            if complete is not None:  # Then it is saved even if whoever asked has left meanwhile.
                if complete.history_id is not None:
                    history_id = str(complete.history_id)
                    self._board.tell_change(history_id)
                saved_in = history_id if unsaved is None else None
                turn.end = Complete(name, saved_in, finish_reason, unsaved)
            self._board.tell()

    async def events(self, request: Request) -> Response:
        """`GET /page/events?tab=`: an event stream for as long as the tab is looked at."""
        reader = Reader(request.query_params.get("tab", ""))
        return NewsStream("text/event-stream", partial(self._tell_all, reader))

    async def _tell_all(self, reader: Reader, tell: Tell) -> None:
        while not self._board.closed:
            more = self._board.next_news
            await tell(self._board.news(reader))
            await more.wait()

    # The history

    async def sessions(self, request: Request) -> Response:
        """`GET /page/sessions?offset=`: some sessions, the last used one first."""
        offset = request.query_params.get("offset", "0")
        if not offset.isdecimal():
            raise HTTPException(400, "offset is a number", HEADERS)
        return await _answer(partial(self._sessions, int(offset)))

    async def _sessions(self, offset: int) -> _Sessions:
        try:
            found = await self._gateway.history.sessions(limit=_PAGE_OF_SESSIONS, offset=offset)
        except NotFoundError:
            return _Sessions(history=False, sessions=[], more=False)
        return _Sessions(
            history=True,
            sessions=[_SessionInList(str(each.id), each.title, each.model) for each in found],
            more=len(found) == _PAGE_OF_SESSIONS,
        )

    async def session(self, request: Request) -> Response:
        """`GET /page/sessions/{id}`: what was said in it."""
        return await _answer(partial(self._session, request.path_params["id"]))

    async def _session(self, session_id: str) -> _WholeSession:
        found = await self._gateway.history.get(session_id)
        return _WholeSession(
            str(found.id),
            found.title,
            found.model,
            [_Message(message.role, message.content) for message in found.messages],
        )

    async def rename(self, request: Request) -> Response:
        """`PUT /page/sessions/{id}`."""
        title = (await _body(request, _Title)).title
        return await _answer(partial(self._rename, request.path_params["id"], title))

    async def _rename(self, session_id: str, title: str) -> None:
        await self._gateway.history.update(session_id, title=title)
        self._board.tell_change(session_id)

    async def delete(self, request: Request) -> Response:
        """`DELETE /page/sessions/{id}`."""
        return await _answer(partial(self._delete, request.path_params["id"]))

    async def _delete(self, session_id: str) -> None:
        await self._gateway.history.delete(session_id)
        self._board.tell_change(session_id)

    # The account

    async def sign_in(self, request: Request) -> Response:
        """`POST /page/sign-in`: take the key that the user has pasted."""
        return await _answer(partial(self._sign_in, await _body(request, _SignIn)))

    async def _sign_in(self, pasted: _SignIn) -> None:
        key = pasted.key.strip()
        await self._gateway.authenticator.sign_in(key, same_account=pasted.same_account)

    async def sign_out(self, _request: Request) -> Response:
        """`POST /page/sign-out`."""
        return await _answer(self._gateway.authenticator.sign_out)

    async def models(self, _request: Request) -> Response:
        """`GET /page/models`: those that the gateway names, if it does."""
        return await _answer(self._models)

    async def _models(self) -> _Models:
        names: list[str] = []
        try:
            answer = await self._gateway.http_client().get("/models")
            if answer.is_success:
                listed = msgspec.json.decode(answer.content, type=_ListedModels).data
                names = sorted({each.id for each in listed})
        except (httpx.HTTPError, msgspec.MsgspecError):
            pass  # Then a model is named by hand.
        return _Models(names, self._model)


class _ListedModel(msgspec.Struct):
    id: str


class _ListedModels(msgspec.Struct):
    data: list[_ListedModel]


async def _body(request: Request, kind: type[_BodyT]) -> _BodyT:
    # A form of another site cannot send this type without asking first.
    if request.headers.get("content-type") != "application/json":
        raise HTTPException(415, "send application/json", HEADERS)
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.MsgspecError:  # Its words may quote a key.
        raise HTTPException(400, "this is nothing that the page sends", HEADERS) from None


async def _answer(work: Callable[[], Awaitable[object]]) -> Response:
    """What comes of `work` as JSON, or its error."""
    try:
        answer = await work()
    except GatewayError as error:
        answer = _Trouble(str(error), isinstance(error, AuthenticationError))
    except ValueError as error:
        answer = _Trouble(str(error))
    headers = {**HEADERS, "Cache-Control": "no-store"}
    return Response(msgspec.json.encode(answer), headers=headers, media_type="application/json")

"""The commands and their options, as `--help` shows them."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from ..testing import Continues, FakeGateway, Framing, Shape, add_fault
from . import auth as auth_commands
from . import demo_screen
from . import gateway as gateway_server
from .auth import NextSource, Place, Source
from .chat import ApiName, Chat, TransportName
from .run import INTERRUPTED, UsageError, complain
from .run import run as run_command

app = App(
    name="gz-trio",
    version=version("gz-trio"),
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    help="""
Chat with an OpenAI-compatible LLM gateway, over keys that expire in the middle of an answer.
""",
)

EXTRA = "pip install 'gz-trio["
"""Stands in what is said of a package that comes with an extra."""

PROXY_HELP = "Serve a gateway to the programs of this machine, over keys that expire."
SIMULATE_HELP = "Run a load against a gateway, and tell how it stood it."

Flag = Parameter(negative="")
Repeated = Parameter(negative="")
NotNegative = Parameter(validator=Number(gte=0))

DEFAULT_PLACE, NO_SOURCE, NO_NEXT_SOURCE = Place(), Source(), NextSource()


@app.command
def demo(
    *,
    sessions: Annotated[int, Parameter(validator=Number(gte=1))] = 50,
    rotations: Annotated[int, Parameter(validator=Number(gte=0))] = 3,
    api: ApiName = "chat",
    transport: TransportName = "http",
    json: Annotated[bool, Flag] = False,
) -> int:
    """Rotate a key under many streams, and see each of them go on.

    Starts a fake gateway on a free port of this machine, opens chats that share one key, streams
    replies in all of them, and rotates the key while they stream. Each rotation waits until all
    chats have got over the one before. Needs no network, no account and no key.

    What the chats were handed is compared with what the gateway meant to send. The exit code is
    1 if a character was lost or doubled, if a stream was interrupted, or if there was more than
    one refresh for one rotation.

    Args:
        sessions: How many chats.
        rotations: How often the key is rotated.
        api: Which API the chats speak. Over `responses` the gateway keeps the answers, so that
            each goes on where it stopped; over the others it is asked for again.
        transport: `websocket` for the WebSocket mode of `responses`.
        json: Print only the figures, as one JSON object: sessions, streams, tokens, rejected
            (401s met), refreshes, interrupted (streams), lost and doubled (characters),
            paused_ms_p50 and paused_ms_max (milliseconds), seconds.
    """
    return run_command(
        partial(demo_screen.demo, sessions, rotations, api=api, transport=transport, as_json=json)
    )


@app.command
def chat(
    *,
    base_url: str,
    model: str,
    place: Place = DEFAULT_PLACE,
    refresh_command: str | None = None,
    system: str | None = None,
    api: ApiName = "chat",
    transport: TransportName = "http",
    max_retries: Annotated[int, Parameter(validator=Number(gte=0))] = 7,
) -> int:
    """Chat with a model, over any OpenAI-compatible server.

    On a terminal, type a line and read the answer: Ctrl-C stops an answer, and at the prompt it
    ends the chat, as Ctrl-D does. From a pipe or a file, each line is a turn of one conversation,
    and the exit code is 1 if a turn failed: `echo hi | gz-trio chat ...`.

    The key comes from where `--store`, `--key-file` or `--profile` say, else from the environment
    variable `GZ_API_KEY`, else from `OPENAI_API_KEY`, else it is the one that `gz-trio auth login`
    has stored in its own file. When the gateway rejects it, in the middle of an answer or before,
    the answer waits for `--refresh-command` (without one: for somebody to sign in again, or to
    write another key into the key file) and goes on in the same line. If the gateway gives another
    answer when it is asked again, the new one is shown in place of the old.

    Control characters in what the model says, but for newline and tab, are shown by symbols
    (ESC as ␛): a model cannot steer your terminal. Carriage returns are left out.

    Args:
        base_url: The gateway's URL, like `https://api.gatewayz.ai/v1`.
        model: The model's name, as the gateway knows it.
        place: Where the key is. A file of one bare key is never rewritten.
        refresh_command: A program that prints a new key, with its arguments; no shell runs it.
        system: A system message, with which the conversation begins.
        api: Which of the gateway's APIs is asked: chat completions, OpenAI's Responses or
            Anthropic's Messages.
        transport: `websocket` for the WebSocket mode of `responses`.
        max_retries: How often an answer is tried again after a lost connection, a rate limit or
            a failure of the gateway.
    """

    async def command() -> int:
        return await Chat(
            base_url,
            model,
            place=place,
            refresh_command=refresh_command,
            system=system,
            max_retries=max_retries,
            api=api,
            transport=transport,
            environment=os.environ,
        ).run()

    return run_command(command)


auth = App(
    name="auth",
    help="""
Sign in and out, in a key store that any number of programs share.

The key is shown by `token` alone. A sign-in and a sign-out are seen at once by every program that
uses the store, and of all that want another key one refreshes for all.
""",
)
app.command(auth)


@auth.command
def login(
    *,
    place: Place = DEFAULT_PLACE,
    source: Source = NO_SOURCE,
    same_account: Annotated[bool, Flag] = False,
) -> int:
    """Store a key, in place of whatever is there.

    The key is typed at the prompt, where it is not shown, or is the first line of standard input:
    `printenv MY_KEY | gz-trio auth login`. With `--refresh-command` or `--base-url` it is fetched.
    To have a refresh token stored with it, let the program print JSON, with `access_token`,
    `refresh_token` and `expires_in`.

    Answers that are under way under the old key end, since this may be another account.

    Args:
        place: Where the key is.
        source: Where it comes from.
        same_account: It is the same one: answers that wait for a key go on.
    """
    given = source.refresh(os.environ) or auth_commands.type_key()
    return run_command(
        partial(auth_commands.login, place.open(os.environ), given, same_account=same_account)
    )


@auth.command
def status(*, place: Place = DEFAULT_PLACE, json: Annotated[bool, Flag] = False) -> int:
    """Tell whether there is a key, and until when, without showing it.

    The exit code is 1 where there is none, or where the gateway has refused to refresh it.

    Args:
        place: Where the key is.
        json: As one JSON object: store, profile, signed_in, refused, version, epoch, generation,
            expires_at (seconds of Unix time), refresh_token (whether there is one).
    """
    return run_command(partial(auth_commands.status, place.open(os.environ), as_json=json))


@auth.command
def refresh(*, place: Place = DEFAULT_PLACE, source: NextSource = NO_NEXT_SOURCE) -> int:
    """Replace the key by a new one, now.

    If another program is doing so already, that is waited for, and its key is taken.

    Args:
        place: Where the key is.
        source: Where the new one comes from.
    """
    return run_command(
        partial(auth_commands.refresh, place.open(os.environ), source.refresh(os.environ))
    )


@auth.command
def logout(*, place: Place = DEFAULT_PLACE) -> int:
    """Forget the key, in every program that uses the store.

    Answers that are under way end. A refresh that is under way is thrown away.

    Args:
        place: Where the key is.
    """
    return run_command(partial(auth_commands.logout, place.open(os.environ)))


@auth.command
def token(*, place: Place = DEFAULT_PLACE, source: NextSource = NO_NEXT_SOURCE) -> int:
    """Print the key, and nothing else: for other programs, as their key command.

    If the key has ended, and an option says where a new one comes from, that one is printed.

    Args:
        place: Where the key is.
        source: Where a new one comes from.
    """
    return run_command(
        partial(auth_commands.token, place.open(os.environ), source.refresh(os.environ))
    )


@app.command
def gateway(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65_535))] = 8080,
    key: str = "gw_test_1",
    tokens: Annotated[int, Parameter(validator=Number(gte=0))] = 60,
    token_interval: Annotated[float, NotNegative] = 0.05,
    rotate_every: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    on_rotation: Literal["frame", "cut", "ignore"] = "frame",
    auth_latency: Annotated[float, NotNegative] = 0.0,
    model: Annotated[list[str] | None, Repeated] = None,
    shape: Shape = "openai",
    framing: Framing = "chunked",
    event_ids: Annotated[bool, Flag] = False,
    continues: Continues | None = None,
    echo: Annotated[bool, Flag] = False,
    fault: Annotated[list[str] | None, Repeated] = None,
) -> int:
    r"""Serve a fake gateway, to test a client against expiring keys and other faults.

    It speaks OpenAI's chat completions (`POST /v1/chat/completions`, streamed or whole, and
    `GET /v1/models`) and gives out the valid key by `POST /auth`. The same messages get the same
    text. Prints the base URL, the key and how to call it, then a line for each request. It is for
    tests: the key is no secret, and who can reach the port can get it.

    A fault is written as `NAME=VALUE PARAMETER=VALUE ...` in one argument; `--fault` may be given
    many times. The names, with what their value is, and their parameters:

    - `status=429` in place of the answer; `message`, `dialect` (gatewayz, detail, detail_object,
      openai, litellm, openrouter, anthropic, vllm, vllm_object, message, html, empty), `type`,
      `code`, `header.NAME`, `body`
    - `error-frame=provider_error` in the stream, then its end; `message`, `status`, `code`,
      `dialect` (gatewayz, openrouter), `done`, `data`
    - `cut`, or `cut=100`: close the connection, after so many bytes more of the body
    - `reset`, or `reset=100`: break it
    - `stall`, or `stall=90`: silence, for ever or for so many seconds
    - `drip`, or `drip=0.1`: byte by byte, with so many seconds between two
    - `early-done`, or `early-done=stop`: end as if the text were over, with that finish reason;
      `done`
    - `empty-stream`: nothing but `[DONE]`
    - `other-text`, or `other-text=MARK`: other text from here on, each token after the mark
    - `insert='data: {}\n\n'`: these bytes in between
    - `comment`, or `comment=TEXT`: a comment line in between
    - `warning`, or `warning=TEXT`: a `stream_normalization_warning` in between

    When it strikes is said in the same way, and all that is said must come together:
    `request=1` (only in the first request), `generation=2` (only under the second key), `token=3`
    (before that token, counted from 0; without it, in place of the whole answer), `times=1` (how
    often; `forever`), `path=/auth` (or `/v1/models`). By default once, in a chat completion.

    `--fault "status=429 header.retry-after=2 request=1" --fault "cut token=3 times=forever"`

    Args:
        host: The address to listen at.
        port: The port; 0 takes any that is free.
        key: The first valid key.
        tokens: Tokens in each answer.
        token_interval: Seconds between tokens.
        rotate_every: Seconds after which the key is rotated, again and again; by default never.
        on_rotation: What becomes of streams whose key dies: an auth_error frame, a cut
            connection, or nothing.
        auth_latency: Seconds that `POST /auth` takes.
        model: A model that there is, any other is answered 404; may be given many times. By
            default any model is there.
        shape: Whose shape the chunks have.
        framing: How bodies travel: in chunked coding, plain to the end of the connection, or
            compressed by gzip for who accepts it.
        event_ids: Give events ids, and take streams up by `Last-Event-ID`.
        continues: Go on from an assistant's last message where the request asks for it as it
            asks vLLM, by `"prefix": true` (DeepSeek, Mistral), or by that message alone.
        echo: Begin a continued answer with what it continues.
        fault: What goes wrong, and when; see above.
    """
    try:
        fake = FakeGateway(
            key,
            tokens=tokens,
            token_interval=token_interval,
            on_rotation=on_rotation,
            auth_latency=auth_latency,
            models=model,
            shape=shape,
            framing=framing,
            event_ids=event_ids,
            continues=continues,
            echo=echo,
            ledger=False,
            on_request=gateway_server.log,
        )
        for words in fault or ():
            add_fault(fake, words)
    except ValueError as error:
        complain(str(error))
        return 2
    return run_command(
        partial(
            gateway_server.serve,
            fake,
            host,
            port,
            model=(model or ["any-model"])[0],
            rotate_every=rotate_every,
        )
    )


# Loaded when they are asked for: the others neither need their packages nor wait for them.
app.command("gz_trio._cli.simulate_app:simulate", name="simulate", help=SIMULATE_HELP)
app.command("gz_trio._cli.proxy_app:proxy", name="proxy", help=PROXY_HELP)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; gives the exit code."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal cannot show or send becomes "?" or U+FFFD: no reason to end.
            stream.reconfigure(errors="replace")
    warnings.formatwarning = _one_line
    try:
        code = app(arguments, exit_on_error=False, result_action="return_value")
    except CycloptsError:  # it has been printed
        return 2
    except UsageError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:  # at a prompt
        return INTERRUPTED
    except ImportError as error:  # of a command that is loaded when it is asked for
        if EXTRA not in str(error.__cause__):
            raise
        complain(str(error.__cause__))
        return 1
    return code if isinstance(code, int) else 0


def _one_line(message: Warning | str, *_where: object, **_line: object) -> str:
    return f"gz-trio: {message}\n"

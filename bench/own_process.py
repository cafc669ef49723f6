"""A function called in a fresh process of its own, which ends with whoever waits for it."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

import psutil

from bench.measure import CellError

Given = ParamSpec("Given")
Result = TypeVar("Result")


def call_apart(what: str, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """Call a function in a spawned process and return what it returns.

    Whatever ends the wait, Ctrl-C included, ends the process and all that it has started.

    Args:
        what: what to call it in messages.
        function: can be pickled, as its arguments and its result can.
        args, kwargs: for it.

    Raises:
        CellError: the process ended before it had an answer, as one does that is killed for its memory.
        Exception: what the function raised.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_answer, args=(theirs, function, args, kwargs))
    process.start()
    theirs.close()
    try:
        is_result, answer = ours.recv()
        process.join()
    except EOFError:
        process.join()
        raise CellError(f"{what}: its process ended with code {process.exitcode}") from None
    finally:
        _kill(process.pid)
        process.join()
        ours.close()
    if not is_result:
        raise answer
    return answer  # type: ignore[no-any-return]


def _answer(
    connection: Connection, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Run in the process: send whether there is a result, and it or the exception."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who waits
    try:
        answer: tuple[bool, Any] = True, function(*args, **kwargs)
    except Exception as error:
        error.add_note(traceback.format_exc())
        answer = False, error
    connection.send(answer)


def _kill(number: int | None) -> None:
    """End a process and its descendants, if it still runs."""
    try:
        process = psutil.Process(number)
        for one in (process, *process.children(recursive=True)):
            one.kill()
    except psutil.NoSuchProcess:
        pass

"""Processes that die, forked from the tests' own: all modules are loaded already."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch


def start(call: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Begin to call a function in a forked process, on one thread.

    The threads that torch computes on do not survive a fork, so the child must not ask for them.
    """
    process = multiprocessing.get_context("fork").Process(target=_child, args=(call, arguments))
    process.start()
    return process


def run(call: Callable[..., Any], *arguments: Any) -> int:
    """Call a function in a forked process and return how that ended: ``-9`` if it was killed."""
    process = start(call, *arguments)
    process.join(100)
    assert process.exitcode is not None
    return process.exitcode


def _child(call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    call(*arguments)

"""What the commands that fill an output folder share: the claim on it, and what they print."""

import json
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track

from pgnn_geo.errors import InputError, InputNote
from pgnn_geo.io.files import first_difference, remove_unfinished, write_json
from pgnn_geo.ranks import Ranks, join_ranks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

console = Console(markup=False, emoji=False)  # names of files and classes are no markup

#: Seconds between two lines of progress where there is no terminal.
LINE_EVERY = 30.0


_record: ContextVar[Path | None] = ContextVar("cost", default=None)


def join() -> Ranks:
    """Return this process' place among those of the command; only the first one prints.

    Raises:
        InputError: If the others cannot be met.
    """
    ranks = join_ranks()
    console.quiet = not ranks.is_first
    return ranks


def claim_folder(out: Path, config: "DataclassInstance") -> None:
    """Record :obj:`config` in :obj:`out`, or check that it is the one recorded there.

    Args:
        out (Path): The folder; made if it is missing.
        config (dataclass): Everything that decides what will be in it.

    Raises:
        InputError: If another configuration is recorded there, or it cannot be written.
    """
    wanted = json.loads(json.dumps(asdict(config)))
    path = out / "config.json"
    try:
        if path.is_file():
            remove_unfinished(out)
            if difference := first_difference(json.loads(path.read_text()), wanted):
                raise InputError(
                    f"{out} holds a run of another configuration ({difference}). "
                    "Choose another --out, or repeat the first command to resume that run."
                )
        else:
            write_json(path, wanted)
    except OSError as error:
        raise InputError(f"Output folder {out} cannot be written: {error}") from error


def progress(iterable: Iterable[Any], title: str, total: int) -> Iterable[Any]:
    """Show a progress bar where somebody watches, a line every half minute where nobody does."""
    if console.is_terminal:
        return track(iterable, title, total, console=console, transient=True)
    return _lines(iterable, title, total)


def _lines(iterable: Iterable[Any], title: str, total: int) -> Iterator[Any]:
    start = last = time.perf_counter()
    for done, item in enumerate(iterable):
        now = time.perf_counter()
        if now - last >= LINE_EVERY and done:
            left = (now - start) / done * (total - done)
            console.print(f"{title}: {done} of {total}, {left:.0f} s left", highlight=False)
            last = now
        yield item


@contextmanager
def notes_as_lines() -> Iterator[None]:
    """Print each :class:`~pgnn_geo.errors.InputNote` once, as a line of its own."""
    said: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def line(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if not issubclass(category, InputNote):
                show(message, category, *rest, **named)
            elif str(message) not in said:
                said.add(str(message))
                console.print(f"note: {message}", highlight=False, soft_wrap=True)

        warnings.simplefilter("always", InputNote)
        warnings.showwarning = line
        yield


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """Write what the stages cost that are :func:`timed` meanwhile; a resumed run goes on.

    Args:
        path (Path): A JSON file, a list with one entry for each stage: :obj:`stage`,
            :obj:`seconds` on the clock, :obj:`processor_seconds` of all its processes that ended,
            :obj:`peak_memory`, the most that the process has held since it began, in bytes, and
            :obj:`disk`, bytes in the file's folder at the stage's end.
    """
    token = _record.set(path)
    try:
        yield
    finally:
        _record.reset(token)


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Print how long something took; write what it cost, if a file is :func:`recording`."""
    start, processor = time.perf_counter(), processor_seconds()
    yield
    seconds = time.perf_counter() - start
    console.print(f"{title}: {seconds:.0f} s", highlight=False)
    if (path := _record.get()) is None:
        return
    entry = {
        "stage": title.replace(f"{path.parent}{os.sep}", ""),
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor_seconds() - processor, 2),
        "peak_memory": peak_memory(),
        "disk": sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()),
    }
    stages = json.loads(path.read_text()) if path.is_file() else []
    write_json(path, [*stages, entry])


def processor_seconds() -> float:
    """Seconds of processor that this process has taken, and its children that ended."""
    return time.process_time() + sum(os.times()[2:4])  # the former is finer than its ticks


def peak_memory() -> int | None:
    """The most bytes that the process has held; :obj:`None` where the system does not say."""
    with suppress(OSError, IndexError):  # of Linux, where `ru_maxrss` is the parent's if larger
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)

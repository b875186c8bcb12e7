"""The processes that share one job, and what they tell each other.

They are started by ``torchrun`` or SLURM, on one machine or several that share a folder; each takes
a share of the photos. What they add up is cut into the same blocks whatever their number, and
added in the order of the photos: many write what one would, byte for byte.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pgnn_geo.errors import InputError

T = TypeVar("T")

#: Into how many blocks a data set is cut at most; more processes than that have nothing to do.
BLOCKS = 64


def blocks(count: int, unit: int = 1) -> list[range]:
    """Cut :obj:`count` photos into at most :data:`BLOCKS` runs of whole units, all but the last.

    Args:
        count (int): Number of photos.
        unit (int): Photos that are worked on at a time. (default: :obj:`1`)
    """
    units = -(-count // unit)
    size = max(1, -(-units // BLOCKS)) * unit
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class Ranks:
    """One process among those that share a job.

    Args:
        rank (int): Its number. (default: :obj:`0`)
        size (int): How many there are. (default: :obj:`1`)
        local_size (int): How many of them are on its machine. (default: :obj:`1`)
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process' part of a sequence, a run of it as long as the others'."""
        count = len(items)
        return items[self.rank * count // self.size : (self.rank + 1) * count // self.size]

    def first(self, make: Callable[[], T]) -> T:
        """Let the first process do something; all return what it returned.

        Args:
            make (callable): What it does. Its result goes to the others as a pickle, and must be
                on the CPU.

        Raises:
            InputError: In all processes, if it raised one; or if a process has ended.
        """
        if self.size == 1:
            return make()
        answer: list[Any] = [None, None]
        if self.is_first:
            try:
                answer[0] = make()
            except InputError as error:
                answer[1] = error
        _talk(lambda: dist.broadcast_object_list(answer))
        if answer[1] is not None:
            raise answer[1] if self.is_first else OtherRankError(str(answer[1]))
        result: T = answer[0]
        return result

    def gather(self, values: T) -> list[T]:
        """Return what every process has, in their order.

        Raises:
            InputError: If a process has ended.
        """
        if self.size == 1:
            return [values]
        found: list[Any] = [None] * self.size
        _talk(lambda: dist.all_gather_object(found, values))
        return found

    def cat(self, rows: Tensor) -> Tensor:
        """Return the rows of every process, in their order, on the CPU.

        Raises:
            InputError: If a process has ended.
        """
        if self.size == 1:
            return rows.cpu()
        counts = self.gather(len(rows))
        parts = [rows.new_empty(count, *rows.shape[1:], device="cpu") for count in counts]
        parts[self.rank].copy_(rows)
        for source, part in enumerate(parts):
            _talk(partial(dist.broadcast, part, source))
        return torch.cat(parts)

    def average(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, without gradient."""
        value = value.detach().clone().float()
        if self.size > 1:
            dist.all_reduce(value)
        return value / self.size

    def wait(self) -> None:
        """Wait until every process is here."""
        self.first(lambda: None)

    def check_shared(self, path: Path) -> None:
        """Check that all processes see a file that the first one has written.

        Raises:
            InputError: In all of them, if one does not.
        """
        if self.size == 1:
            return
        blind = [rank for rank, there in enumerate(self.gather(path.exists())) if not there]
        if blind:
            kind = InputError if self.is_first else OtherRankError
            raise kind(
                f"processes {blind} of {self.size} do not see {path}: those of one job must see "
                "the same folder, on whichever machines they are; choose one on a shared disk"
            )

    def dissolve(self) -> bool:
        """End the group; return whether this is the first process, which goes on alone."""
        if self.size > 1:
            self.wait()
            dist.destroy_process_group()
            for name in [each for each in os.environ if each.startswith(_PREFIXES)]:
                del os.environ[name]
        return self.is_first


#: A process on its own.
ALONE = Ranks()

#: What tells a process that it is one of several.
_PREFIXES = ("TORCHELASTIC_", "LOCAL_", "GROUP_", "ROLE_", "RANK", "WORLD_SIZE", "MASTER_")


class OtherRankError(InputError):
    """What the first process has found wrong, and says, in the others."""


def join_ranks() -> Ranks:
    """Return this process' place, by the variables that ``torchrun`` has set, and meet the others.

    Raises:
        InputError: If they cannot be met.
    """
    size, rank = (
        int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0))
    )
    if size == 1:
        return ALONE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    try:
        # By gloo, as all that is said is on the CPU. Whoever is late has had more to do: a process
        # that has died is noticed at once.
        dist.init_process_group("gloo", timeout=timedelta(days=30))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the other processes cannot be met: {error}") from error
    return Ranks(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextmanager
def ended_as_line() -> Iterator[None]:
    """Say in one line that another process has ended, where others than ours talk to them.

    Raises:
        InputError: If it has.
    """
    try:
        yield
    except RuntimeError as error:
        if "gloo" not in str(error).lower():
            raise
        raise InputError(_ENDED) from error


_ENDED = (
    "another process of this job has ended; what is done stands, and the same command goes on "
    "from there"
)


def _talk(say: Callable[[], Any]) -> None:
    try:
        say()
    except RuntimeError as error:  # gloo's, whatever the reason
        raise InputError(_ENDED) from error

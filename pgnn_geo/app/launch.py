"""Commands in several processes, started by ``torchrun`` or by SLURM's ``srun``."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from pgnn_geo.errors import InputError
from pgnn_geo.ranks import OtherRankError

#: What a folder answers that cannot be written for now, or where a file has its name.
DISK_ERRORS = tuple(
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EROFS EACCES EPERM EIO EFBIG ESTALE ENOTDIR EEXIST".split()
)

#: Commands whose work is shared; the others are for one process, which may start its own.
SHARED = tuple("run train label segment predict evaluate detect adjuster".split())


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """End the program with status 2 and one line on an error that people can do something about."""
    try:
        yield
    except OtherRankError:  # which the first process says
        sys.exit(2)
    except InputError as error:
        print(f"pgnn-geo: error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(
            f"pgnn-geo: error: {error}. What is there is kept; once it can be written again, the "
            "same command goes on.",
            file=sys.stderr,
        )
        sys.exit(2)


def check_alone(command: str) -> None:
    """Check that a command that is for one process is in one.

    Raises:
        InputError: If it is in several.
    """
    _read_slurm()
    if command not in SHARED and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(
            f"'{command}' is for one process: start it without torchrun, or in SLURM with one "
            f"task; only {', '.join(SHARED)} are started in several"
        )


def _read_slurm() -> None:
    """Set what ``torchrun`` would have set, in a step of SLURM with several tasks."""
    if "WORLD_SIZE" in os.environ or not SLURMEnvironment.detect():
        return
    slurm = SLURMEnvironment()
    os.environ |= {
        "WORLD_SIZE": str(slurm.world_size()),
        "RANK": str(slurm.global_rank()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "LOCAL_WORLD_SIZE": os.environ.get("SLURM_NTASKS_PER_NODE", "1"),
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
    }

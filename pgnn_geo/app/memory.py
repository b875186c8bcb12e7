"""How a process keeps the memory that tensors of one photo after the other need."""

import ctypes

#: Parameters of ``mallopt``, see ``man mallopt``.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 2**30


def keep_freed_memory() -> bool:
    """Let the C library keep freed arrays of up to 1 GiB for those to come.

    By default glibc gives arrays of 32 MiB and more back to the system, which fills every page of
    the next one with zeros: 15 % of the time in which a VGG-16 computes features
    (``benchmarks/winograd.py`` with and without ``--keep-memory``). It concerns the whole process,
    so the command line calls it, and importing the package does not. With another C library nothing
    happens.

    Returns:
        Whether it was done.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl; macOS; Windows
        return False
    return all(mallopt(name, _LARGE) == 1 for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))

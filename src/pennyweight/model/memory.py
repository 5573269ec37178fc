"""Memory of this process: how much it took at most, and giving back what it no longer uses."""

import ctypes
import resource

LARGE_BYTES = 8 * 2**20  # larger than a sample's activations, smaller than matrices and their parts
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h


def peak_bytes() -> int:
    """The most memory this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def give_back() -> None:
    """Return freed memory to the system.

    glibc keeps freed blocks of up to 32 MB in the arena of the thread that asked for them. A run
    that allocates matrices in several threads grows with every block of the model unless it is told
    to let go. Where the C library has no such call there is nothing to do.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_little() -> None:
    """Have memory that is freed in large pieces returned at once, for the rest of this process.

    glibc raises the size from which it does so to up to 32 MB as it sees such pieces freed, and
    gives every thread an arena of its own to keep them in. Taking a large piece from the system
    each time costs less than what is done with it.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(M_MMAP_THRESHOLD, LARGE_BYTES)
        set_option(M_ARENA_MAX, 2)

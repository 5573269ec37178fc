"""Memory of this process: how much it took at most, and giving back what it no longer uses."""

import ctypes
import resource


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

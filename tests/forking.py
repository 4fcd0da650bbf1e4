"""Child processes by fork, for tests that kill them."""

import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import tqdm.auto
import tqdm.std


def forked(work: Callable[[], object], log: Path) -> int:
    """Runs ``work`` in a forked child, whose output is appended to ``log``; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        # tqdm's lock is a semaphore that forks share: a child killed while it holds it would block all others for ever.
        for kind in (tqdm.std.tqdm, tqdm.auto.tqdm):
            kind.set_lock(threading.RLock())
        written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.stdout = sys.stderr = os.fdopen(written, "w", buffering=1)  # pytest's own write into its capture
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

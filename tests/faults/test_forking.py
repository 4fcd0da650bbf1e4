"""A child that a test kills blocks none of those that come after it."""

import os
import signal
import time

import tqdm.auto
from forking import forked


def test_a_child_killed_while_it_draws_a_progress_bar_blocks_no_other(tmp_path):
    list(tqdm.auto.tqdm(range(2)))  # from here on this process has tqdm's lock

    def holding():
        tqdm.auto.tqdm.get_lock().acquire()
        (tmp_path / "held").touch()
        time.sleep(60)

    first = forked(holding, tmp_path / "log")
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    second = forked(lambda: list(tqdm.auto.tqdm(range(2))), tmp_path / "log")
    until = time.monotonic() + 30
    while not (ended := os.waitpid(second, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.01)
    if not ended[0]:
        os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)
    assert ended == (second, 0)

"""Asking a run to stop: which signals do, and which are somebody else's."""

import os
import signal
import subprocess
import sys
import time

import pytest

from chordflow.interruption import on_request

# Once asked to stop, a second signal ends the process: in one of its own.
STOPPING = """
import os, signal, time
from chordflow.interruption import on_request
signal.signal(signal.SIGTERM, signal.default_int_handler)
signal.signal(signal.SIGWINCH, lambda *_: None)
with on_request(lambda line: print(line, flush=True)) as request:
    os.kill(os.getpid(), signal.SIGTERM)
    while not request:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGWINCH)
    time.sleep(0.2)
print("went on", flush=True)
"""


def waited(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture
def heard():
    """Signals of the user's own program, here those of other numbers than the two that stop."""
    seen, numbers = [], (signal.SIGUSR1, signal.SIGWINCH, signal.SIGALRM)
    before = {number: signal.signal(number, lambda number, _: seen.append(number)) for number in numbers}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_of_the_users_own_do_not_stop_a_run(heard):
    with on_request(lambda line: None) as request:
        for number in (signal.SIGUSR1, signal.SIGWINCH, signal.SIGALRM):
            os.kill(os.getpid(), number)
        assert waited(lambda: len(heard) == 3)
        assert not waited(lambda: bool(request), 0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        assert waited(lambda: bool(request))
    assert request.signal_number == signal.SIGTERM


def test_a_signal_of_the_users_own_does_not_end_a_run_that_is_stopping():
    done = subprocess.run([sys.executable, "-c", STOPPING], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done
    assert done.stdout.splitlines()[-1] == "went on"


def test_a_request_is_heard_where_nobody_can_be_told():
    def say(line):
        raise BrokenPipeError

    with on_request(say) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert waited(lambda: bool(request))

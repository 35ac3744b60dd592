"""Ctrl-C and SIGTERM that wait for a good moment."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop and did, at a moment from which it goes on."""

    def __init__(self, signal_number: int, message: str):
        super().__init__(message)
        self.signal_number = signal_number


class Request:
    """Whether somebody asked to stop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None


@contextlib.contextmanager
def on_request(say: Callable[[str], None]) -> Iterator[Request]:
    """While the block runs, a first SIGINT or SIGTERM is kept in what is yielded, and a second ends the process.

    A thread is told by the interpreter's own handler, in C: a compiled program that runs for seconds is not waited
    for. Outside the main thread, where Python lets nobody handle signals, nothing is changed.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    inlet, outlet = socket.socketpair()
    outlet.setblocking(False)
    # Who ignores one of them, as a shell does for what it runs in the background, goes on doing so.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) not in (signal.SIG_IGN, None)]

    def listen() -> None:
        while received := inlet.recv(1):
            if received[0] not in numbers:  # every signal that Python handles comes here
                continue
            if request:
                if sys.stdout.isatty():  # a live table hides the cursor
                    os.write(sys.stdout.fileno(), b"\x1b[?25h\n")
                os._exit(128 + received[0])
            request.signal_number = received[0]
            with contextlib.suppress(OSError):  # nobody may be reading any more
                say("stopping at the next good moment; once more stops at once")

    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    wakeup = signal.set_wakeup_fd(outlet.fileno(), warn_on_full_buffer=False)
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        outlet.close()  # ends the thread
        listener.join()
        inlet.close()

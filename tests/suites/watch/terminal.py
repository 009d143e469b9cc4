"""Looks at a run in pseudo-terminals: python3 terminal.py PROGRAM RUN. Fails by an assertion."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time

program, run = sys.argv[1:]
ENTER, LEAVE, SHOW = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"


class Terminal:
    """`dynalora watch` on a terminal of its own."""

    def __init__(self, columns, lines, environment=()):
        self.master, self.slave = pty.openpty()
        self.size(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.child = os.fork()
        if self.child == 0:
            os.login_tty(self.slave) if hasattr(os, "login_tty") else self.log_in()
            os.environ.update(environment)
            os.execv(program, [program, "watch", run])

    def log_in(self):
        os.setsid()
        fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
        for number in range(3):
            os.dup2(self.slave, number)

    def size(self, columns, lines):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, what, seconds=30):
        """Reads until a pattern is seen in what is new; what was read."""
        began, new = time.monotonic(), b""
        while not re.search(what, new):
            assert time.monotonic() < began + seconds, (what, new[-2000:])
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    read = os.read(self.master, 65536)
                except OSError:
                    break
                new += read
        self.seen += new
        return new

    def quiet(self):
        """Reads what has been drawn already."""
        while select.select([self.master], [], [], 0.3)[0]:
            os.read(self.master, 65536)

    def press(self, keys):
        os.write(self.master, keys)

    def ended(self, code):
        """Whether it ended so and left the terminal as it was."""
        # They may come one after the other.
        self.until(b"(?s)" + re.escape(LEAVE) + b".*" + re.escape(SHOW))
        began = time.monotonic()
        while True:
            found, status = os.waitpid(self.child, os.WNOHANG)
            if found:
                break
            assert time.monotonic() < began + 30, "it does not end"
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(status) == code, status
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is not as it was"


def columns_of(drawn):
    """The rightmost column and the lowest line that were drawn at."""
    places = [(int(x), int(y)) for y, x in re.findall(rb"\x1b\[(\d+);(\d+)H", drawn)]
    return max(x for x, _ in places), max(y for _, y in places)


# Drawn, and drawn anew when the terminal changes its size.
terminal = Terminal(80, 24)
first = terminal.until(rb"q leave")
assert ENTER in first and b"running" in first, first
assert re.search(rb"\x1b\[[\d;]*3[0-7]m|\x1b\[38;5;", first), "no colours"
assert max(columns_of(first)) <= 80
terminal.size(140, 40)
wider = terminal.until(rb"q leave")
across, down = columns_of(wider)
assert 80 < across <= 140 and 24 < down <= 40, (across, down)
# It goes on while it is looked at, and keys change what is seen.
terminal.press(b"r")
terminal.until(rb"modules")
terminal.quiet()
assert terminal.until(rb"\d"), "nothing new is drawn"
terminal.press(b"q")
terminal.ended(0)

# Without colours.
terminal = Terminal(80, 24, {"NO_COLOR": "1"})
plain = terminal.until(rb"q leave")
assert not re.search(rb"\x1b\[[\d;]*3[1-7]m|\x1b\[38;", plain), plain
terminal.press(b"\x03")
terminal.ended(0)

# Killed.
for asked in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    terminal = Terminal(80, 24)
    terminal.until(rb"q leave")
    os.kill(terminal.child, asked)
    terminal.ended(128 + asked)

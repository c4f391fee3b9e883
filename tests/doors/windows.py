"""Programs that measure window by window beside an attack, and how whoever runs them tells them where a window ends.

Such a program reads lines from standard input. Each one ends the window under way: the program answers with one line of JSON about it, and
begins the next. The first line that it writes says that it is ready; the end of the input ends it.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Helper:
    """A program of this directory in a process of its own, which answers with lines of JSON."""

    def __init__(self, script: str, *args: str) -> None:
        self.script = script
        command = [sys.executable, str(HERE / script), *args]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdin and self.child.stdout
        self.to, self.out = self.child.stdin, self.child.stdout

    def read(self) -> dict[str, Any]:
        """The next line that it says."""
        line = self.out.readline()
        if not line:
            raise RuntimeError(f"{self.script} ended with {self.child.wait()}")
        return json.loads(line)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.child.poll() is None

    def end(self) -> None:
        """Ends its input, and waits for its end."""
        self.to.close()
        self.child.wait(30)


class Measured(Helper):
    """Such a program, from outside."""

    def __init__(self, script: str, config: dict[str, Any]) -> None:
        super().__init__(script, json.dumps(config))
        self.first: bool = self.read()["first"]

    def window(self) -> dict[str, Any]:
        """Ends a window: what was in it."""
        self.to.write("next\n")
        self.to.flush()
        return self.read()


def go_first() -> bool:
    """Lets this process run before all others whenever it has something to do: it stands for machines of its own, which neither the broker
    nor its attackers slow down. Answers whether the system allows it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    return True


async def serve(cut: Callable[[], dict[str, Any]], run: Callable[[], Awaitable[None]]) -> None:
    """The other end: `run` gets ready and returns, `cut` ends a window."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await run()
    # Only now: to connect takes long, and nobody is measured meanwhile.
    print(json.dumps({"ready": True, "first": go_first()}), flush=True)
    cut()
    while await reader.readline():
        print(json.dumps(cut()), flush=True)

"""Programs that measure window by window beside an attack, and how whoever runs them tells them where a window ends.

Such a program reads lines from standard input. Each one ends the window under way: the program answers with one line of JSON about it, and
begins the next. The first line that it writes says that it is ready; the end of the input ends it.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Measured:
    """Such a program, from outside."""

    def __init__(self, script: str, config: dict[str, Any]) -> None:
        command = [sys.executable, str(HERE / script), json.dumps(config)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self) -> dict[str, Any]:
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.child.args[1]} ended with {self.child.wait()}")
        return json.loads(line)

    def window(self) -> dict[str, Any]:
        """Ends a window: what was in it."""
        self.child.stdin.write("next\n")
        self.child.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """Ends it."""
        self.child.stdin.close()
        self.child.wait(30)


async def serve(cut: Callable[[], dict[str, Any]], run: Callable[[], Awaitable[None]]) -> None:
    """The other end: `run` gets ready and returns, `cut` ends a window."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await run()
    print(json.dumps({"ready": True}), flush=True)
    cut()
    while await reader.readline():
        print(json.dumps(cut()), flush=True)

"""What a run has found: tables for people, bounds that hold or do not, and JSON for programs."""

import json
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Characters of what was found that a table shows; JSON has all.
FOUND_MAX = 220


@dataclass
class Bound:
    """Something that has to hold, and what was found."""

    what: str
    holds: bool
    found: str


@dataclass
class Report:
    """All of one run."""

    title: str
    notes: list[str] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Prints a line at once."""
        print(text, flush=True)

    def note(self, text: str) -> None:
        """Prints a line and keeps it."""
        self.notes.append(text)
        self.say(text)

    def bound(self, what: str, holds: bool, found: str) -> None:
        """Keeps whether something holds."""
        self.bounds.append(Bound(what, holds, found))
        if not holds:
            self.say(f"DOES NOT HOLD: {what}: {found}")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Prints a table."""
        cells = [[str(c) for c in head], *([shown(c) for c in row] for row in rows)]
        widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
        self.say("")
        for n, row in enumerate(cells):
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
            if n == 0:
                self.say("  ".join("-" * width for width in widths))
        self.say("")

    def finish(self, out: Path | None) -> int:
        """Prints the bounds and writes JSON; the exit code."""
        rows = [(b.what, "holds" if b.holds else "DOES NOT HOLD", textwrap.shorten(b.found, FOUND_MAX)) for b in self.bounds]
        self.table(["bound", "", "found"], rows)
        if out:
            out.write_text(json.dumps(asdict(self), indent=1) + "\n")
            self.say(f"written: {out}")
        return 0 if all(b.holds for b in self.bounds) else 1


def shown(value: object) -> str:
    """A value in a table."""
    if isinstance(value, float):
        if abs(value) >= 1000:
            return f"{value:,.0f}"
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percentile(values: Sequence[float], part: float) -> float:
    """The value that `part` (0 to 1) of all are not above; 0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)

"""Processes that gpu.py starts: time limits that hold, logs, and going on after one that died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def run(
    command: Sequence[str | Path],
    log: Path,
    seconds: float,
    *,
    environment: dict[str, str] | None = None,
    watched: Path | None = None,
    stall: float = 0.0,
    live: bool = False,
) -> str:
    """Run to the end and say how it ended: "" is well.

    Output is added to `log`; `live` leaves standard output to the terminal. Stopped, with all that it
    started, after `seconds`, or where `watched` has not been written for `stall` seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=None if live else sink,
            stderr=sink,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(timeout=0.2)
                    return f"ended with {code}" if code else ""
                now = time.time()
                if now - begun > seconds:
                    return f"stopped after {seconds:.0f} s"
                if watched:
                    written = watched.stat().st_mtime if watched.exists() else begun
                    if now - max(written, begun) > stall:
                        return f"no progress in {stall:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@dataclass
class Supervised:
    """A worker that writes {"running": [row, step] or null, "rows": [...]} after each step. Where it dies,
    the step that it was at is left out of that row and the worker started again."""

    script: Path
    """Called with a job and the name of what it writes."""
    job: Record
    out: Path
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    stall: float = 90.0
    rows: list[Record] = field(default_factory=list)

    def until(self, deadline: float) -> str:
        """Run to the last row, or to the deadline (of time.time()). Says what else ended it early."""
        stopped: dict[str, dict[str, str]] = {}
        while True:
            self.out.unlink(missing_ok=True)
            done = [row["name"] for row in self.rows]
            job = {**self.job, "done": done, "stopped": stopped, "until": deadline}
            command: list[str | Path] = [
                sys.executable,
                "-X",
                "faulthandler",
                self.script,
                json.dumps(job),
                self.out,
            ]
            # The worker ends by itself at the deadline; a little later it is ended.
            left = max(1.0, deadline + 10 - time.time())
            ended = run(
                command,
                self.log,
                left,
                environment=self.environment,
                watched=self.out,
                stall=self.stall,
                live=True,
            )
            found = json.loads(self.out.read_text()) if self.out.exists() else {"running": None, "rows": []}
            self.rows += found["rows"]
            if not ended or time.time() > deadline:
                return ""
            if found["running"] is None:
                return ended
            row, step = found["running"]
            if step in stopped.get(row, {}):
                return f"{row}, {step}: {ended}, twice"
            stopped.setdefault(row, {})[step] = ended

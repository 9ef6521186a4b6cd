"""What the commands share: progress, tables and run folders."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["Progress", "check_writable", "progress_bar", "set_threads"]

# Called with (done, total, what is being done).
Progress = Callable[[int, int, str], None]

# Seconds between two lines where there is no terminal for a bar.
LINE_EVERY = 30.0


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on standard error; a line now and then where that is no terminal or rich is missing."""
    if quiet:
        yield lambda done, total, text: None
        return
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield _lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.fields[title]}"), BarColumn(), MofNCompleteColumn()
    with Bar(
        *columns, TimeRemainingColumn(), TextColumn("{task.description}"), console=Console(stderr=True)
    ) as bar:
        item = bar.add_task("", title=title, total=None)
        yield lambda done, total, text: bar.update(item, completed=done, total=total, description=text)


def _lines(title: str) -> Progress:
    last = time.monotonic()

    def show(done: int, total: int, text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY:
            last = time.monotonic()
            print(f"{title}: {done} of {total}, {text}", file=sys.stderr, flush=True)

    return show


def check_writable(folder: Path) -> None:
    """Raise the operating system's error where `folder` (or its nearest parent) takes no new files."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise NotADirectoryError(20, "Not a folder", str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(13, "Folder is not writable", str(existing))


def set_threads(count: int | None) -> None:
    """Threads of torch and of decoct's ops; None leaves them as they are."""
    if count is not None:
        if count < 1:
            raise ValueError(f"--threads must be positive, got {count}")
        torch.set_num_threads(count)

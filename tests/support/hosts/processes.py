"""Processes of this machine, and waiting for what they do."""

import threading
import time
from pathlib import Path

PATIENCE = 40  # seconds, of every wait
LOOK_AGAIN = threading.Event()  # never set


def until(condition, what, patience=PATIENCE):
    """Waits until it holds; its value."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{patience} s passed without {what}")
        LOOK_AGAIN.wait(0.02)


def environment_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def state_of(pid):
    """Its letter, as ps shows it; empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return ""


def is_running(pid):
    return state_of(pid) not in ("", "Z", "X")


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def all_pids():
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]

"""Processes and what they leave behind, as the kernel shows them."""

import os
import signal
from pathlib import Path

MARK = "REGROUP_CHAOS_MARK"  # in the environment of each process of a job


def read_bytes(path):
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError):
        return b""


class Mark:
    """What tells the processes of one job from all others: launcher and ranks carry our mark in
    their environment, what the launcher starts for itself carries the job's name."""

    def __init__(self, text):
        self.text = text
        self.job = ""

    def is_on(self, pid):
        words = read_bytes(f"/proc/{pid}/environ").split(b"\0")
        if f"{MARK}={self.text}".encode() in words:
            return True
        return bool(self.job) and f"REGROUP_JOB_ID={self.job}".encode() in words


def marked(mark):
    """Pids of the living processes of a job."""
    return sorted(int(e) for e in os.listdir("/proc") if e.isdigit() and mark.is_on(int(e)))


def children(pid):
    words = read_bytes(f"/proc/{pid}/task/{pid}/children").split()
    return [int(word) for word in words]


def command_of(pid):
    return read_bytes(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace").strip()


def coordinator_of(launcher_pid):
    """The pid of the coordinator; None while there is none."""
    for pid in children(launcher_pid):
        if " coordinator" in command_of(pid):
            return pid
    return None


def send_signal(pid, number, mark):
    """To this process, if it still is one of ours. Returns whether it was sent."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Looked at after the handle is there: it cannot become another process now.
        if not mark.is_on(pid):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)


def end_all(mark):
    """SIGKILL to whatever remains of a job that went wrong."""
    for pid in marked(mark):
        send_signal(pid, signal.SIGKILL, mark)


def shared_names():
    try:
        return set(os.listdir("/dev/shm"))
    except OSError:
        return set()


def sockets_of(job):
    """Names in the abstract namespace that belong to this job."""
    lines = read_bytes("/proc/net/unix").decode(errors="replace").splitlines()
    return [line.split()[-1] for line in lines if job and f"/{job}" in line and "@regroup" in line]


def memory_files_of(mark):
    """Memory files of the runtime that are still open somewhere, with the processes."""
    found = []
    for pid in marked(mark):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("/memfd:"):
                    found.append(f"pid {pid} fd {fd} {target}")
        except OSError:
            continue
    return found


def available_mib():
    for line in read_bytes("/proc/meminfo").decode().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0


def explain(pid):
    """One line: what this process is doing."""
    fields = read_bytes(f"/proc/{pid}/stat").rsplit(b")", 1)
    state = fields[1].split()[0].decode() if len(fields) == 2 and fields[1].split() else "gone"
    wchan = read_bytes(f"/proc/{pid}/wchan").decode(errors="replace") or "-"
    return f"pid {pid} state {state} in {wchan}: {command_of(pid)[:120]}"

"""Where the demo's job runs: on this machine, or on hosts made of namespaces."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support" / "hosts"))
import namespaces  # noqa: E402

SLOTS = 2  # of each host
HOSTS_MIN = 3  # a quorum outlives the loss of one


def parent_and_start(pid):
    """(parent's pid, start time) of a process; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[1]), int(fields[19])


def send_kill(pid, is_right):
    """SIGKILLs a process for which this holds. Whether it was there."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_right():
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


class Here:
    """This machine."""

    arguments = ()
    environment = {}

    def enter(self, _directory):
        return []

    def pid(self, pid, _host):
        return pid

    def kill(self, launcher, pid, _host):
        """A process, if it is the launcher's own child and still that process."""
        return send_kill(pid, lambda: (parent_and_start(pid) or [None])[0] == launcher)

    def left(self, pids, program):
        """Those of these processes that still run the program."""
        found = []
        for pid, _ in pids:
            try:
                if program in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
            except (FileNotFoundError, ProcessLookupError):
                pass
        return found

    def close(self):
        pass


class Hosts:
    """Each with its own network, process numbers, name and monotonic clock; the launcher runs on
    the first."""

    environment = {"UCX_TLS": "tcp"}

    def __init__(self, count, directory):
        self.names = [chr(ord("a") + number) for number in range(count)]
        self.network = namespaces.Network(self.names)
        starter = self.network.starter(directory)
        hosts = ",".join(f"{name}:{SLOTS}" for name in self.names)
        self.arguments = ("--hosts", hosts, "--interface", "eth0", "--starter", starter)

    def enter(self, directory):
        return self.network[self.names[0]].enter(directory)

    def pid(self, pid, host):
        """What we call the process that is called so on its host; None when there is none."""
        host = host or self.names[0]
        for outer in self.network[host].pids():
            try:
                status = Path(f"/proc/{outer}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            names = status.split("\nNSpid:", 1)[1].split("\n", 1)[0].split()
            if int(names[-1]) == pid:
                return outer
        return None

    def kill(self, _launcher, pid, host):
        outer = self.pid(pid, host)
        return outer is not None and send_kill(outer, lambda: self.pid(pid, host) == outer)

    def cut(self, host):
        self.network.cut(host)

    def heal(self, host):
        self.network.heal(host)

    def left(self, _pids, _program):
        """Whatever still runs on the hosts."""
        return [pid for name in self.names for pid in self.network[name].pids()]

    def close(self):
        self.network.close()


def why_no_hosts(count):
    """Why the demo cannot run on so many hosts here; empty: it can."""
    if count == 1:
        return ""
    if count < HOSTS_MIN:
        return f"--hosts needs {HOSTS_MIN} at least: of 2, the one without the launcher may not " \
               "be lost with half of the ranks"
    return namespaces.why_not()

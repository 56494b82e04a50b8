"""Hosts made of namespaces: each has its own network, process numbers, name and monotonic clock,
and is joined to the others by a virtual wire into one bridge."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from processes import is_running, until

ALL_NEW = ["unshare", "--net", "--pid", "--uts", "--mount", "--time"]


def why_not():
    """Why such hosts cannot be made here; empty: they can."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [tool for tool in ("ip", "bridge", "pgrep", "unshare", "nsenter")
               if shutil.which(tool) is None]
    if lacking:
        return f"needs {' '.join(lacking)} (iproute2, procps, util-linux)"
    tried = subprocess.run([*ALL_NEW, "--fork", "sh", "-c", "ip link add br0 type bridge && "
                            "ip link add wire0 type veth peer name wire1"],
                           capture_output=True, text=True, check=False)
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


class Host:
    """Its first process waits for the end of the test; when it ends or is killed, the kernel kills
    all others, as a power cut would."""

    def __init__(self, name, clock_ahead=0):
        self.name = name
        self.outer = subprocess.Popen(
            [*ALL_NEW, "--monotonic", str(clock_ahead), "--boottime", str(clock_ahead), "--fork",
             "--mount-proc", "--kill-child", "sh", "-c",
             f"hostname {name}; ip link set lo up; exec cat"], stdin=subprocess.PIPE)
        self.first = until(self._first, f"the first process of {name}")
        until(lambda: self.run("hostname").stdout.strip() == name, f"the name of {name}")

    def _first(self):
        found = subprocess.run(["pgrep", "-P", str(self.outer.pid)], capture_output=True, text=True)
        return int(found.stdout) if found.stdout else None

    def enter(self, directory="/"):
        """Words in front of a command that is to run there."""
        return ["nsenter", "-t", str(self.first), "-n", "-p", "-u", "-m", "-T",
                f"--wdns={directory}"]

    def run(self, *words):
        return subprocess.run([*self.enter(), *words], capture_output=True, text=True, check=False)

    def pids(self):
        """Of all that runs there, but for the first process."""
        mine = os.readlink(f"/proc/{self.first}/ns/pid")
        found = []
        for path in Path("/proc").iterdir():
            if not path.name.isdigit() or int(path.name) == self.first:
                continue
            try:
                same = os.readlink(path / "ns/pid") == mine
            except OSError:
                continue
            if same and is_running(int(path.name)):
                found.append(int(path.name))
        return found

    def power_off(self):
        self.outer.kill()
        os.kill(self.first, signal.SIGKILL)
        self.outer.stdin.close()
        self.outer.wait()

    def close(self):
        if self.outer.poll() is None:
            self.power_off()


class Network:
    """A bridge, and one wire from it to each host, 10.77.0.N and fd77::N."""

    def __init__(self, names, families=None, clock_ahead=None):
        self.switch = Host("switch")
        self.hosts = {}
        self.door = None
        try:
            self._join(names, families, clock_ahead)
        except BaseException:
            self.close()
            raise

    def _join(self, names, families, clock_ahead):
        self._in_switch("ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        self._in_switch("ip", "link", "set", "br0", "up")
        for number, name in enumerate(names, 1):
            host = Host(name, (clock_ahead or {}).get(name, 0))
            self.hosts[name] = host
            wire = f"to-{name}"
            self._in_switch("ip", "link", "add", wire, "type", "veth", "peer", "name", "eth0",
                            "netns", str(host.first))
            self._in_switch("ip", "link", "set", wire, "master", "br0", "up")
            for family in (families or {}).get(name, "46"):
                address = f"10.77.0.{number}/24" if family == "4" else f"fd77::{number}/64"
                self._do(host, "ip", "addr", "add", address, "dev", "eth0",
                         *(["nodad"] if family == "6" else []))
            self._do(host, "ip", "link", "set", "eth0", "up")

    def __getitem__(self, name):
        return self.hosts[name]

    def run_on(self, name, *words, fails=False):
        """A command about the network of a host, or of the switch between them."""
        self._do(self.switch if name == "switch" else self[name], *words, fails=fails)

    def _do(self, host, *words, fails=False):
        # Its network only: processes keep the numbers that they have here.
        done = subprocess.run(["nsenter", "-t", str(host.first), "-n", *words],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0 and not fails:
            raise RuntimeError(f"{host.name}: {' '.join(words)}: {done.stderr}")

    def _in_switch(self, *words):
        self._do(self.switch, *words)

    def know_each_other(self, directory):
        """From now on hosts find each other by name."""
        table = Path(directory) / "hosts"
        table.write_text("127.0.0.1 localhost\n" + "".join(
            f"10.77.0.{number} {name}\n" for number, name in enumerate(self.hosts, 1)))
        for host in self.hosts.values():
            done = host.run("mount", "--bind", str(table), "/etc/hosts")
            if done.returncode != 0:
                raise RuntimeError(f"{host.name}: {done.stderr}")

    def limit(self, name, rate_mbit):
        """What this host sends takes as long as over a wire of that rate."""
        self._do(self[name], "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate",
                 f"{rate_mbit}mbit", "burst", "256kb", "latency", "100ms")

    def cut(self, name):
        """From now on nothing passes between this host and the others, and nobody is told: the wire
        stays up, the bridge forwards nothing. Returns when, in seconds since 1970."""
        self._in_switch("bridge", "link", "set", "dev", f"to-{name}", "state", "0")
        return time.time()

    def heal(self, name):
        self._in_switch("bridge", "link", "set", "dev", f"to-{name}", "state", "3")

    def starter(self, directory):
        """A command that runs what follows on {host}; it works from any of the hosts."""
        path = Path(directory) / "on-host"
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(str(path))
        self.door.listen()
        threading.Thread(target=self._serve, daemon=True).start()
        return f"{sys.executable} {Path(__file__).parent / 'on_host.py'} {path} {{host}}"

    def _serve(self):
        while True:
            try:
                caller = self.door.accept()[0]
            except OSError:
                return  # closed
            threading.Thread(target=self._run_for, args=(caller,), daemon=True).start()

    def _run_for(self, caller):
        with caller:
            size, streams, _, _ = socket.recv_fds(caller, 4, 3)
            wanted = json.loads(caller.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
            host, *words = wanted["words"]
            try:
                code = self._run_on(host, words, wanted["environment"], streams)
            finally:
                for stream in streams:
                    os.close(stream)
            with contextlib.suppress(OSError):  # the launcher has killed its starter
                caller.send(bytes([code if 0 <= code < 256 else 255]))

    def _run_on(self, host, words, environment, streams):
        if host not in self.hosts:
            os.write(streams[2], f"no route to host {host}\n".encode())
            return 255
        process = subprocess.Popen([*self.hosts[host].enter(), *words], env=environment,
                                   stdin=streams[0], stdout=streams[1], stderr=streams[2])
        for stream in streams:
            os.close(stream)
        streams.clear()
        return process.wait()

    def close(self):
        if self.door is not None:
            self.door.shutdown(socket.SHUT_RDWR)
            self.door.close()
        for host in [*self.hosts.values(), self.switch]:
            host.close()

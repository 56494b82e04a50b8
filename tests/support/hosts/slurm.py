"""A Slurm cluster of a test's own: munged, slurmctld and slurmd in a folder that goes away."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from processes import all_pids, environment_of, is_running

START_S = 60
CONFIGURATION = """
ClusterName=regroup
SlurmctldHost={first}({first_address})
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=2
SlurmdParameters=config_overrides
{hosts}
PartitionName=main Nodes=ALL Default=YES State=UP  # tidy-allow(glossary): Slurm's word
"""


def why_not():
    """Why there can be none here; empty: there can."""
    if os.geteuid() != 0:
        return "slurmd starts tasks as their user, so this needs root"
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    for program in ("munged", "slurmctld", "slurmd", "srun"):
        if shutil.which(program, path=path) is None:
            return f"{program} is not installed; ./dev setup --all installs it"
    os.environ["PATH"] = path
    return ""


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Slurm:
    """Sets SLURM_CONF of this process. Raises RuntimeError when the cluster does not come up."""

    def __init__(self, folder, hosts, enter=lambda host: []):
        """`hosts`: their addresses by name; slurmctld is on the first. `enter`: the words in front
        of a command that is to run on a host."""
        self.folder = Path(folder)
        self.folder.chmod(0o755)  # munged refuses a folder that its clients cannot enter
        self.hosts = hosts
        self.enter = enter
        self.daemons = []
        self.marker = f"REGROUP_SLURM={folder}"
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        for name in ("state", *(f"spool-{host}" for host in hosts)):
            (self.folder / name).mkdir()
        self.first = next(iter(hosts))
        configuration = self.folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(
            first=self.first, first_address=hosts[self.first], folder=folder, ports=free_ports(2),
            hosts="\n".join(f"NodeName={name} NodeAddr={address} CPUs=8 State=UNKNOWN"
                            for name, address in hosts.items())))
        os.environ["SLURM_CONF"] = str(configuration)

    def start(self):
        until = time.monotonic() + START_S
        place = f"{self.folder}/munge"
        self._daemon(self.first, "munged", "--foreground", "--force", f"--key-file={place}.key",
                     f"--socket={place}.socket", f"--pid-file={place}.pid",
                     f"--log-file={place}.log", f"--seed-file={place}.seed")
        self._until_true(["munge", "-n", "-S", f"{place}.socket"], until)
        self._daemon(self.first, "slurmctld", "-D", "-c")
        for host in self.hosts:
            self._daemon(host, "slurmd", "-D")
        count = str(len(self.hosts))
        self._until_true(["srun", "-Q", "-N", count, "-n", count, "true"], until)

    def _daemon(self, host, name, *words):
        key, value = self.marker.split("=")
        with open(self.folder / f"{name}-{host}.out", "wb") as log:
            self.daemons.append(subprocess.Popen(
                [*self.enter(host), name, *words], env={**os.environ, key: value}, stdout=log,
                stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT))

    def _until_true(self, command, until):
        command = [*self.enter(self.first), *command]
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise RuntimeError(f"{command} did not work within {START_S} s\n{self.said()}")
            for one in self.daemons:
                if one.poll() is not None:
                    raise RuntimeError(f"{one.args} ended\n{self.said()}")
            try:
                if subprocess.run(command, capture_output=True, timeout=left).returncode == 0:
                    return
            except subprocess.TimeoutExpired:
                pass

    def said(self):
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}"
                         for path in sorted(self.folder.glob("*.out")))

    def end(self):
        for one in reversed(self.daemons):
            one.terminate()
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
        for pid in all_pids():
            if self.marker.encode() in environment_of(pid) and is_running(pid):
                os.kill(pid, signal.SIGKILL)

"""The history of a job, read from its events.jsonl while it is written."""

import json
from dataclasses import dataclass, field


class EventTail:
    """Gives each complete line of a growing file once, as an object."""

    def __init__(self, path):
        self._path = path
        self._file = None
        self._rest = b""

    def close(self):
        if self._file is not None:
            self._file.close()

    def read(self):
        if self._file is None:
            try:
                self._file = open(self._path, "rb")
            except FileNotFoundError:
                return []
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [json.loads(line) for line in lines if line.strip()]


class Progress:
    """How much of the training is done: from its own lines, and between them from its pace."""

    STEP_MAX = 0.1  # never further ahead of the last line

    def __init__(self, epochs, expected_s):
        self._epochs = epochs
        self._pace = 1 / expected_s
        self._share = 0.0
        self._at_s = 0.0

    def line(self, epoch, now_s):
        """The training said that this epoch is done."""
        share = epoch / self._epochs
        if share <= self._share:
            return
        self._pace = (share - self._share) / max(now_s - self._at_s, 1e-3)
        self._share, self._at_s = share, now_s

    def share(self, now_s):
        return self._share + min((now_s - self._at_s) * self._pace, self.STEP_MAX)


@dataclass
class Loss:
    """One lost life of a seat and how the job got over it. Offsets are nanoseconds of job time."""

    rank: int
    incarnation: int
    epoch: int
    lost_ns: int
    detect_ns: int
    where: str
    seat_view: list = field(default_factory=list)
    decided_ns: int = None
    installed_ns: int = None
    entered_ns: int = None
    resumed_ns: int = None

    @property
    def total_ns(self):
        return self.resumed_ns - self.lost_ns + self.detect_ns

    def phases(self):
        """(name, nanoseconds) of each phase, in order."""
        return [
            ("detect", self.detect_ns),
            ("agree", self.decided_ns - self.lost_ns),
            ("install", self.installed_ns - self.decided_ns),
            ("enter and heal", self.entered_ns - self.installed_ns),
            ("first operation", self.resumed_ns - self.entered_ns),
        ]


def percentile(values, share):
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def where_of(event):
    """What the lost rank was doing."""
    operation = event.get("operation")
    if operation in (None, "", "none"):
        return "in the program's own code"
    words = f"in {operation}"
    if event.get("seq"):
        words += f" seq {event['seq']}"
    if event.get("step") is not None:
        words += f" of step {event['step']}"
    if event.get("phase"):
        words += f", phase {event['phase']}"
    return words


class Story:
    """Folds events into who is who, what was lost and when it was whole again."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.job = None
        self.launcher_pid = None
        self.epoch = 0
        self.view = []  # incarnation by seat, 0: vacant
        self.members = set()  # every incarnation that ever stood in a view
        self.pids = {}  # by incarnation
        self.hosts = {}  # by incarnation; "": the launcher's
        self.entered = {}  # epoch -> {rank: incarnation}
        self.losses = []
        self.killed_ns = {}  # job time of kills from outside, by incarnation
        self.wedged_ns = self.decided_ns = 0  # when it was so the last time
        self.coordinator_losses = 0
        self.coordinator_restarts = 0
        self.ended = None

    def pid(self, rank):
        """Of the process in this seat now; None while it is vacant or not known."""
        if rank >= len(self.view):
            return None
        return self.pids.get(self.view[rank])

    def host(self, rank):
        """Of the process in this seat now."""
        return self.hosts.get(self.view[rank], "")

    def note_kill(self, rank, job_ns):
        """To be told before the signal is sent."""
        self.killed_ns[self.view[rank]] = job_ns

    def is_whole(self):
        """Every seat taken, and its member in the newest epoch."""
        entered = self.entered.get(self.epoch, {})
        return len(entered) == self.ranks and all(
            entered.get(rank) == incarnation for rank, incarnation in enumerate(self.view)
        )

    def recovered(self):
        return [loss for loss in self.losses if loss.resumed_ns is not None]

    def feed(self, event):
        """Takes one event; returns (kind, text) of each line that a person should see."""
        handler = getattr(self, "_on_" + event["kind"], None)
        return (handler(event) or []) if handler else []

    def _open_losses(self, epoch):
        """Losses of epochs before this one that are not over yet."""
        return [loss for loss in self.losses if loss.resumed_ns is None and loss.epoch < epoch]

    def _on_job_started(self, event):
        self.job = event["job"]
        self.launcher_pid = event["pid"]
        spares = event.get("spares", 0)
        return [("info", f"job {self.job}: {event['ranks']} ranks, {spares} spare(s)")]

    def _on_process_started(self, event):
        self.pids[event["incarnation"]] = event["pid"]
        self.hosts[event["incarnation"]] = event.get("host", "")

    _on_attached = _on_process_started

    def _on_view_installed(self, event):
        told = self._lost_with_their_hosts(event)
        self.epoch = event["epoch"]
        self.view = event["seats"]
        self.members.update(self.view)
        for loss in self._open_losses(self.epoch):
            # A recovery that started over is counted to its last view.
            loss.installed_ns = event["offset_ns"]
            loss.entered_ns = None
            if loss.decided_ns is None:
                loss.decided_ns = event["offset_ns"]
        seats = " ".join(f"{rank}:{life or '-'}" for rank, life in enumerate(self.view))
        return [*told, ("view", f"epoch {self.epoch}: members {seats}")]

    def _lost_with_their_hosts(self, event):
        """Members that the new view is without, though nobody has seen them end."""
        told = []
        known = {loss.incarnation for loss in self.losses}
        for rank, (old, new) in enumerate(zip(self.view, event["seats"])):
            if old in (0, new) or old in known:
                continue
            detect_ns = max(0, self.wedged_ns - self.killed_ns.get(old, self.wedged_ns))
            self.losses.append(
                Loss(rank, old, self.epoch, self.wedged_ns, detect_ns, "with its host",
                     list(self.view), decided_ns=self.decided_ns)
            )
            told.append(("lost", f"rank {rank} (incarnation {old}) lost with its host"))
        return told

    def _on_wedged(self, event):
        self.wedged_ns = event["offset_ns"]

    def _on_lost(self, event):
        rank = event.get("rank")
        if rank is None or event["incarnation"] not in self.members:
            return [("info", f"a process without a seat is gone: {event.get('text', '')}")]
        if any(loss.incarnation == event["incarnation"] for loss in self.losses):
            return []  # its host is back, and what was lost with it is ended there
        where = where_of(event)
        # The log counts from the last proof of life; whoever killed knows better.
        detect_ns = event.get("detect_ns") or 0
        if event["incarnation"] in self.killed_ns:
            detect_ns = max(0, event["offset_ns"] - self.killed_ns[event["incarnation"]])
        self.losses.append(
            Loss(
                rank=rank,
                incarnation=event["incarnation"],
                epoch=event.get("epoch", self.epoch),
                lost_ns=event["offset_ns"],
                detect_ns=detect_ns,
                where=where,
                seat_view=list(self.view),
            )
        )
        pid = self.pids.get(event["incarnation"], "?")
        life = event["incarnation"]
        return [("lost", f"rank {rank} (incarnation {life}, pid {pid}) lost {where}")]

    def _on_decided(self, event):
        self.decided_ns = event["offset_ns"]
        for loss in self.losses:
            if loss.resumed_ns is None and loss.epoch == event["epoch"]:
                loss.decided_ns = event["offset_ns"]
        step = event.get("committed_step")
        return [("info", f"epoch {event['epoch']} decided: steps up to {step} are committed")]

    def _on_replaced(self, event):
        origin = "the spare" if event.get("how") == "spare" else "a new process"
        pid = self.pids.get(event["incarnation"], "?")
        return [("back", f"rank {event['rank']}: {origin} (pid {pid}) takes the seat")]

    def _on_entered(self, event):
        epoch, rank = event["epoch"], event["rank"]
        self.entered.setdefault(epoch, {})[rank] = event["incarnation"]
        for loss in self._open_losses(epoch):
            if loss.rank == rank and loss.installed_ns is not None:
                loss.entered_ns = event["offset_ns"]
        donors = event.get("bytes_from") or []
        if not donors:
            return []
        size = sum(donor["bytes"] for donor in donors) / 1e6
        names = ", ".join(str(donor["donor"]) for donor in donors)
        time_ms = event.get("heal_ns", 0) / 1e6
        return [("back", f"rank {rank} healed: {size:.2f} MB from {names} in {time_ms:.1f} ms")]

    def _on_first_operation(self, event):
        if event["epoch"] != self.epoch or 0 in self.view:
            return []
        lines = []
        for loss in self._open_losses(self.epoch):
            loss.resumed_ns = event["offset_ns"]
            # The newcomer may have reported its entry after the others' operation was seen.
            loss.entered_ns = min(loss.entered_ns or loss.resumed_ns, loss.resumed_ns)
            text = f"rank {loss.rank}'s loss is over after {loss.total_ns / 1e6:.1f} ms"
            lines.append(("whole", f"{text}, epoch {self.epoch}"))
        return lines

    def _on_coordinator_lost(self, event):
        self.coordinator_losses += 1
        return [("lost", f"coordinator (pid {event.get('pid')}) lost; the ranks go on")]

    def _on_coordinator_restarted(self, event):
        self.coordinator_restarts += 1
        return [("back", f"coordinator is back (pid {event.get('pid')})")]

    def _on_warning(self, event):
        return [("info", f"{event.get('code')}: {event.get('text')}")]

    def _on_job_ended(self, event):
        self.ended = event
        return [("info", f"job ended with {event['exit_code']}: {event.get('reason', '')}")]


def phase_table(losses):
    """Lines of a table: p50 and p99 in milliseconds of each phase over these losses."""
    rows = ["  phase              p50 ms   p99 ms"]
    by_phase = {}
    for loss in losses:
        for name, duration in [*loss.phases(), ("kill to result", loss.total_ns)]:
            by_phase.setdefault(name, []).append(duration / 1e6)
    for name, values in by_phase.items():
        rows.append(f"  {name:<16} {percentile(values, 50):8.2f} {percentile(values, 99):8.2f}")
    return rows

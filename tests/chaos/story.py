"""A chaos job's history, folded from its events.jsonl while it is written."""

import json


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


class Story:
    """Who sits where, who was lost by which evidence, and whether all are in the newest view."""

    def __init__(self):
        self.job = ""
        self.launcher_pid = None
        self.epoch = 0
        self.resume_step = 0
        self.seats = []  # incarnation by seat; 0: vacant
        self.seat_of = {}  # by incarnation, where it has one
        self.pids = {}  # by incarnation
        self.entered = {}  # epoch -> set of incarnations
        self.lost = {}  # by incarnation: the event
        self.finished = set()
        self.attached = set()
        self.coordinator_losses = 0
        self.coordinator_restarts = 0
        self.ended = None
        self.warnings = []

    def feed(self, event):
        handler = getattr(self, "_on_" + event["kind"], None)
        if handler:
            handler(event)

    def alive(self):
        """Incarnations that were started and are neither lost nor finished."""
        return [i for i in self.pids if i not in self.lost and i not in self.finished]

    def members(self):
        return [i for i in self.seats if i]

    def spares(self):
        return [i for i in self.alive() if i not in self.seat_of and i in self.attached]

    def is_whole(self, vacancies_allowed):
        """Everybody of the newest view is in it, alive, and nobody is missing who should come."""
        members = self.members()
        if not members or (len(members) < len(self.seats) and not vacancies_allowed):
            return False
        inside = self.entered.get(self.epoch, set())
        return all(i in inside and i not in self.lost for i in members)

    def _on_job_started(self, event):
        self.job = event["job"]
        self.launcher_pid = event["pid"]

    def _on_process_started(self, event):
        self.pids[event["incarnation"]] = event["pid"]
        if "rank" in event:
            self.seat_of[event["incarnation"]] = event["rank"]

    def _on_attached(self, event):
        self.attached.add(event["incarnation"])

    def _on_view_installed(self, event):
        self.epoch = event["epoch"]
        self.seats = event["seats"]
        self.resume_step = event["resume_step"]

    def _on_lost(self, event):
        self.lost[event["incarnation"]] = event

    def _on_replaced(self, event):
        self.seat_of[event["incarnation"]] = event["rank"]

    def _on_entered(self, event):
        self.entered.setdefault(event["epoch"], set()).add(event["incarnation"])

    def _on_coordinator_lost(self, event):
        self.coordinator_losses += 1

    def _on_coordinator_restarted(self, event):
        self.coordinator_restarts += 1

    def _on_finished(self, event):
        self.finished.add(event["incarnation"])

    def _on_warning(self, event):
        self.warnings.append(f"{event['code']} {event['text']}")

    def _on_job_ended(self, event):
        self.ended = event

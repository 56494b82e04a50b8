#!/usr/bin/env python3
"""Trains a classifier twice, once undisturbed and once while ranks are killed, and compares.

The last line is `demo: ... ok`, or `demo: FAILED why` with an exit code that is not 0.
"""

import argparse
import calendar
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import places
import plan as plans
from story import EventTail, Progress, Story, percentile, phase_table

PROGRAM = "example_04_digits"
RANKS = 4
STEPS_PER_EPOCH = 5
ACCURACY_MIN = 0.95
KILLS_MIN = 6
POLL_S = 0.01
CALIBRATION_EPOCHS = 20
EPOCHS_MIN = 60
EPOCHS_MAX = 600
UNDISTURBED_S = 10  # aimed at; the disturbed run takes about as long
COLOURS = {
    "kill": "31;1",
    "lost": "31",
    "back": "33",
    "whole": "32",
    "view": "36",
    "info": "2",
    "train": "2",
}


class Failed(Exception):
    """The demo did not show what it is there to show."""


class Screen:
    """The timeline: one line an event, in colour on a terminal."""

    def __init__(self):
        self._colour = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def line(self, text):
        print(text, flush=True)

    def event(self, seconds, kind, text):
        stamp = f"[{seconds:7.3f}s] {kind:<5} "
        if self._colour:
            text = f"\x1b[{COLOURS.get(kind, '0')}m{text}\x1b[0m"
        self.line(stamp + text)


def utc_seconds(text):
    """Seconds since 1970 of "2026-01-31T12:00:00.000000001Z"."""
    whole, fraction = text.rstrip("Z").split(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) + float("0." + fraction)


class Job:
    """One `regroup run` as a child process. Always leave it through close()."""

    def __init__(self, place, bin_dir, log_dir, arguments, program, environment):
        self.place = place
        self.bin_dir = bin_dir
        self.log_dir = log_dir
        self.story = Story(RANKS)
        self.output = []
        self._events = EventTail(log_dir / "events.jsonl")
        self._lines = queue.Queue()
        self.began = time.monotonic()
        log_dir.mkdir(parents=True, exist_ok=True)
        self._stderr = open(log_dir / "launcher.err", "w+b")
        command = [bin_dir / "regroup", "run", *place.arguments, *arguments, "--log-dir", log_dir,
                   "--", *program]
        self._enter = place.enter(log_dir)
        self.process = subprocess.Popen(
            [*self._enter, *(str(word) for word in command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            errors="replace",
            env={**environment, **place.environment},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def seconds(self):
        """Job time: what the events' offsets count."""
        return time.monotonic() - self.began

    def take_zero(self, event):
        """Moves the start of job time to where the event says it is."""
        age_s = time.time() - utc_seconds(event["time"])
        self.began = time.monotonic() - age_s - event["offset_ns"] / 1e9

    def poll(self, wait_s):
        """Waits at most that long for output. Returns (new lines, new events, ended)."""
        lines = []
        ended = False
        try:
            while True:
                line = self._lines.get(timeout=wait_s)
                wait_s = 0
                if line is None:
                    ended = True
                    break
                lines.append(line)
        except queue.Empty:
            pass
        self.output += lines
        if ended:
            self.process.wait(timeout=20)
        return lines, self._events.read(), ended

    def kill(self, pid, host=""):
        return self.place.kill(self.process.pid, pid, host)

    def start_of(self, incarnation):
        """(pid, start time) of a member's process as the kernel says; None when there is none."""
        pid = self.story.pids.get(incarnation)
        pid = pid and self.place.pid(pid, self.story.hosts[incarnation])
        found = pid and places.parent_and_start(pid)
        return (pid, found[1]) if found else None

    def ask(self, *words):
        """What `regroup WORDS --json` answers."""
        command = [*self._enter, self.bin_dir / "regroup", *words, "--json"]
        answer = subprocess.run(
            [str(word) for word in command], capture_output=True, timeout=5, check=True
        )
        return json.loads(answer.stdout)

    def status(self):
        """What the job says of itself; empty when it does not answer."""
        try:
            return self.ask("status", self.story.job)
        except (OSError, subprocess.SubprocessError, ValueError):
            return {}

    def report(self):
        """The object of report.json, made from the log by `regroup report`."""
        return self.ask("report", self.log_dir)

    def waits(self):
        """Who waits for whom, in one line."""
        parts = []
        for process in self.status().get("processes", []):
            if "rank" not in process:
                continue
            keys = [key for key in ("operation", "seq", "step", "phase") if key in process]
            doing = " ".join(f"{key} {process[key]}" for key in keys)
            parts.append(f"rank {process['rank']} ({process.get('state', '?')}): {doing}")
        vacant = set(range(RANKS)) - {rank for rank in range(RANKS) if self.story.pid(rank)}
        if vacant:
            parts.append(f"no process in seat {', '.join(str(rank) for rank in sorted(vacant))}")
        return "; ".join(parts) or "the job does not answer"

    def complaints(self):
        """The last lines of the launcher's stderr."""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace").splitlines()[-15:]

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(timeout=5)
        self._stderr.close()
        self._events.close()


class Demo:
    def __init__(self, options, root, place, deadline):
        self.options = options
        self.root = root
        self.place = place  # of the disturbed job; the undisturbed one runs here
        self.deadline = deadline
        self.screen = Screen()
        self.lost_host = None
        self.cut_off = set()  # incarnations on it
        self.starts = {}  # incarnation -> (pid, start time), as the kernel says

    def start(self, place, name, epochs, arguments, faults=""):
        program = [
            self.options.bin_dir / PROGRAM,
            *("--epochs", epochs),
            *("--hidden", self.options.hidden),
            *("--seed", self.options.seed),
        ]
        environment = {key: value for key, value in os.environ.items() if key != "REGROUP_FAULTS"}
        if faults:
            environment["REGROUP_FAULTS"] = faults
        arguments = ["-n", RANKS, "--control", self.options.control, *arguments]
        return Job(place, self.options.bin_dir, self.root / name, arguments, program, environment)

    def check_deadline(self, job):
        if time.monotonic() > self.deadline:
            raise Failed(f"not done in {self.options.limit} s; {job.waits()}")

    def follow(self, job, progress=None, on_turn=None):
        """Until the job ends; with a `progress` every line of the story goes to the screen."""
        ended = False
        while not ended:
            lines, events, ended = job.poll(POLL_S)
            for event in events:
                if event["kind"] == "job_started":
                    job.take_zero(event)
                was_open = len(job.story.recovered())
                told = job.story.feed(event)
                for kind, text in told if progress else []:
                    self.screen.event(event["offset_ns"] / 1e9, kind, text)
                if len(job.story.recovered()) > was_open:
                    self.check_survivors(job)
            for line in lines if progress else []:
                if found := re.search(r"\bepoch (\d+)  loss .*", line):
                    progress.line(int(found.group(1)), job.seconds())
                    self.screen.event(job.seconds(), "train", found.group(0))
            self.check_deadline(job)
            if on_turn and not ended:
                on_turn()
        if job.process.returncode != 0:
            for line in job.complaints():
                self.screen.line("  | " + line)
            raise Failed(f"regroup run ended with {job.process.returncode}, see {job.log_dir}")

    def check_survivors(self, job):
        """Members that were not lost are the same processes as ever."""
        lost = {loss.incarnation for loss in job.story.losses}
        for rank, incarnation in enumerate(job.story.view):
            found = None if incarnation in lost else job.start_of(incarnation)
            if found is None:
                continue  # lost again meanwhile, or finished: the end of the job tells
            if self.starts.setdefault(incarnation, found) != found:
                raise Failed(f"rank {rank} survived but is another process now")

    def calibrate(self):
        """How many epochs take about UNDISTURBED_S on this machine as it is now."""
        if self.options.epochs:
            return self.options.epochs
        seconds = self.train_in_peace("calibration", CALIBRATION_EPOCHS)[1]
        epochs = int(CALIBRATION_EPOCHS * UNDISTURBED_S / seconds)
        return min(max(epochs, EPOCHS_MIN), EPOCHS_MAX)

    def train_in_peace(self, name, epochs):
        """Returns (result, seconds)."""
        job = self.start(places.Here(), name, epochs, [])
        try:
            self.follow(job)
        finally:
            job.close()
        return read_result(job.output), job.seconds()

    def undisturbed(self, epochs):
        self.screen.line(f"1/2: {RANKS} ranks, {epochs} epochs, undisturbed")
        result, seconds = self.train_in_peace("undisturbed", epochs)
        self.screen.line(
            f"  {seconds:.1f} s, accuracy {result['accuracy']}, digest {result['digest']}\n"
        )
        return result, seconds

    def disturbed(self, epochs, duration):
        hosts = self.options.hosts
        plan = plans.draw(self.options.kill_seed, RANKS, epochs * STEPS_PER_EPOCH, hosts)
        where = "" if hosts == 1 else f" on {hosts} hosts"
        self.screen.line(
            f"2/2: {RANKS} ranks and a spare{where}; kills of ranks (--kill-seed "
            f"{self.options.kill_seed}):"
        )
        for line in plan.describe():
            self.screen.line(line)
        job = self.start(self.place, "disturbed", epochs, ["--spares", 1], plan.script())
        pending = list(plan.external)
        progress = Progress(epochs, duration)
        try:
            self.follow(job, progress, lambda: self.kill_when_due(job, pending, progress))
        finally:
            job.close()
        if pending:
            raise Failed(f"the job ended before {len(pending)} of the kills were due")
        return job, plan

    def kill_when_due(self, job, pending, progress):
        """Performs the next kill once its time has come and all seats are taken."""
        if not pending or progress.share(job.seconds()) < pending[0].at:
            return
        if not job.story.is_whole() or self.cut_off & set(job.story.view):
            return
        kill = pending[0]
        perform = {
            "kill": self.kill_ranks,
            "coordinator": self.kill_coordinator,
            "cut": self.cut_host,
            "heal": self.heal_host,
        }
        if perform[kill.what](job, kill):
            pending.pop(0)

    def kill_coordinator(self, job, _kill):
        pid = job.status().get("coordinator", {}).get("pid")
        done = pid and job.kill(pid)
        if done:
            self.screen.event(job.seconds(), "kill", f"SIGKILL to the coordinator (pid {pid})")
        return done

    def kill_ranks(self, job, kill):
        targets = [(rank, job.story.pid(rank), job.story.host(rank)) for rank in kill.ranks]
        for number, (rank, pid, host) in enumerate(targets):
            if number:
                threading.Event().wait(kill.gap_s)
            job.story.note_kill(rank, int(job.seconds() * 1e9))
            if not job.kill(pid, host):
                if number == 0:
                    return False  # just died by itself: again when the seat is taken
                raise Failed(f"rank {rank} (pid {pid}) was gone before its kill")
            self.screen.event(job.seconds(), "kill", f"SIGKILL to rank {rank} (pid {pid})")
        return True

    def cut_host(self, job, kill):
        """The one with most ranks, but not the launcher's and not with more than half of them."""
        seats = {}
        for rank in range(RANKS):
            seats.setdefault(job.story.host(rank), []).append(rank)
        here = (*self.place.names[:1], "")
        fitting = [h for h in seats if h not in here and len(seats[h]) <= RANKS // 2]
        if not fitting:
            return False
        self.lost_host = max(fitting, key=lambda host: len(seats[host]))
        kill.ranks = tuple(seats[self.lost_host])
        self.cut_off = {job.story.view[rank] for rank in kill.ranks}
        for rank in kill.ranks:
            job.story.note_kill(rank, int(job.seconds() * 1e9))
        self.place.cut(self.lost_host)
        names = " and ".join(str(rank) for rank in kill.ranks)
        self.screen.event(
            job.seconds(), "kill", f"host {self.lost_host}, with rank {names}, is cut off"
        )
        return True

    def heal_host(self, job, _kill):
        self.place.heal(self.lost_host)
        self.screen.event(job.seconds(), "back", f"host {self.lost_host} is on the network again")
        return True


def read_result(output):
    """digest, accuracy and what the ranks say they hold, from the program's lines."""
    result = {"holds": {}}
    for line in output:
        if found := re.search(r"\bdigest=([0-9a-f]{64})\b", line):
            result["digest"] = found.group(1)
        if found := re.search(r"\baccuracy=([0-9.]+)", line):
            result["accuracy"] = found.group(1)
        if found := re.search(r"\brank (\d+), pid (\d+), holds ([0-9a-f]{64})", line):
            result["holds"][int(found.group(1))] = (int(found.group(2)), found.group(3))
    if "digest" not in result or "accuracy" not in result:
        raise Failed("the program ended without its digest and accuracy")
    return result


def check(job, plan, result, undisturbed):
    """Everything that the demo promises."""
    story = job.story
    lost = len(story.losses)
    recovered = len(story.recovered())
    if lost != plan.kills:
        raise Failed(f"{plan.kills} kills were planned, the job lost {lost} ranks")
    if lost < KILLS_MIN or recovered != lost:
        raise Failed(f"{recovered} of {lost} losses were recovered from")
    if story.coordinator_losses != 1 or story.coordinator_restarts != 1:
        raise Failed("the coordinator did not come back exactly once")
    started = [(pid, story.hosts[life]) for life, pid in story.pids.items()]
    if left := job.place.left(started, PROGRAM.encode()):
        raise Failed(f"processes are left behind: {left}")
    for rank in range(RANKS):
        pid, digest = result["holds"].get(rank, (None, None))
        if pid != story.pid(rank):
            raise Failed(f"rank {rank} ended as pid {pid}, not as {story.pid(rank)}")
        if digest != result["digest"]:
            raise Failed(f"rank {rank} holds other weights than rank 0")
    if result["digest"] != undisturbed["digest"]:
        raise Failed(f"weights differ: {result['digest']}, undisturbed {undisturbed['digest']}")
    if float(result["accuracy"]) < ACCURACY_MIN:
        raise Failed(f"accuracy {result['accuracy']} is below {ACCURACY_MIN}")


def summary(screen, job, report):
    """Recovery by phase and time by category."""
    losses = job.story.recovered()
    screen.line(f"\nrecovery of {len(losses)} losses:")
    for line in phase_table(losses):
        screen.line(line)
    screen.line("where the time went:")
    for name, share in shares(report):
        screen.line(f"  {name:<22} {share:7.2%}")


def shares(report):
    """(category, share of all rank-seconds), largest first, without those below 0.01 %."""
    categories = report["ledger"]["total_ns"]
    total = sum(categories.values())
    pairs = [(name, value / total) for name, value in categories.items()]
    return sorted((pair for pair in pairs if pair[1] >= 1e-4), key=lambda pair: -pair[1])


def perform(options, root, place):
    demo = Demo(options, root, place, time.monotonic() + options.limit)
    epochs = demo.calibrate()
    undisturbed, duration = demo.undisturbed(epochs)
    job, plan = demo.disturbed(epochs, duration)
    result = read_result(job.output)
    check(job, plan, result, undisturbed)
    report = job.report()
    summary(demo.screen, job, report)
    totals = [loss.total_ns / 1e6 for loss in job.story.recovered()]
    print(
        f"demo: kills={len(job.story.losses)} recovered={len(totals)} "
        f"p50_ms={percentile(totals, 50):.1f} p99_ms={percentile(totals, 99):.1f} "
        f"accuracy={result['accuracy']} ett={report['ledger']['ett_progress']:.4f} "
        f"digest={result['digest']} undisturbed={undisturbed['digest']} ok"
    )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin-dir", type=Path, required=True, help="where regroup was built")
    parser.add_argument("--epochs", type=int, help="default: what takes some ten seconds here")
    parser.add_argument("--hidden", type=int, default=1024, help="hidden units of the classifier")
    parser.add_argument("--seed", type=int, default=1, help="of weights and order of images")
    parser.add_argument("--kill-seed", type=int, default=1, help="of who is killed when")
    parser.add_argument(
        "--control", choices=["pair", "tcp"], default="pair", help="as `regroup run --control`"
    )
    parser.add_argument(
        "--hosts", type=int, default=1, help="1, or so many made of namespaces (root), one is lost"
    )
    parser.add_argument("--limit", type=float, default=85, help="seconds until it gives up")
    parser.add_argument("--log-dir", type=Path, help="keep events, report and logs there")
    options = parser.parse_args()
    options.bin_dir = options.bin_dir.resolve()
    return options


def main():
    options = parse_arguments()
    if reason := places.why_no_hosts(options.hosts):
        print(f"demo: FAILED {reason}")
        return 1
    root = options.log_dir or Path(tempfile.mkdtemp(prefix="regroup-demo-"))
    place = places.Here()
    try:
        root.mkdir(parents=True, exist_ok=True)
        if options.hosts > 1:
            place = places.Hosts(options.hosts, root)
        perform(options, root, place)
    except (Failed, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        what = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        print(f"events and logs: {root}\ndemo: FAILED {what}")
        return 1
    except KeyboardInterrupt:
        print("demo: FAILED interrupted")
        return 130
    finally:
        place.close()
    if not options.log_dir:
        shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Attacks real jobs for a while and checks every result: `chaos.py --bin-dir build/release/bin`.

Everything is drawn from --seed; a failure prints the command that repeats its job. The last line is
`chaos: minutes=.. jobs=.. kills=.. wrong=0 hangs=0 residue=0 beacon=..% ok`, or the same with
FAILED and an exit code that is not 0.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jobplan
import machine
from attack import Attack
from story import EventTail, Story
from tally import Tally

PATIENCE_S = 90  # without an event while something is due, or after the wish to end: a hang
RESIDUE_MAX_S = 10  # until the last process of a job must be gone
ANSWER_S = 10
GIB_A_RANK = 2.3


class Job:
    """One `regroup run` under attack. Always leave it through close()."""

    def __init__(self, options, plan, folder):
        self.options = options
        self.plan = plan
        self.folder = folder
        self.mark = machine.Mark(f"{os.getpid()}-{plan.seed}-{plan.number}")
        self.story = Story()
        self.attack = Attack(plan, self.story, self.mark)
        self.failures = []  # (kind, text): kind is wrong, hang, residue, eviction or end
        self.stop_file = folder / "stop"
        self.shared_before = machine.shared_names()
        (folder / "tmp").mkdir(parents=True)
        self.output = open(folder / "output", "w+b")
        self._events = EventTail(folder / "log" / "events.jsonl")
        self.process = subprocess.Popen(
            [str(word) for word in self.command()],
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=self.environment(),
            preexec_fn=self._limit_cores,
        )

    def command(self):
        plan = self.plan
        run = [self.options.bin_dir / "regroup", "run", "-n", plan.ranks, "--spares", plan.spares]
        run += ["--on-loss", plan.policy, "--max-replacements", 1000, "--grace", "5s"]
        program = [self.options.program, "--seed", self.state_seed(), "--stop-file", self.stop_file]
        program += ["--resident-mib", plan.resident_mib]
        if plan.policy == "shrink":
            program.append("--shrinks")
        if plan.policy == "carry_on":
            program.append("--carries-on")
        if self.options.sabotage:
            program += ["--sabotage", self.options.sabotage]
        return [*run, "--log-dir", self.folder / "log", "--", *program]

    def state_seed(self):
        return self.plan.seed * 1000 + self.plan.number % 1000

    def environment(self):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
        for name in ("ASAN_OPTIONS", "TSAN_OPTIONS"):
            # A sanitizer must let a SIGSEGV kill, as it does without one.
            environment[name] = ":".join(filter(None, [environment.get(name), "handle_segv=0"]))
        return {**environment, machine.MARK: self.mark.text, "TMPDIR": str(self.folder / "tmp")}

    def _limit_cores(self):
        limit = resource.RLIM_INFINITY if self.plan.cores else 0
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        if self.plan.cores and hard != resource.RLIM_INFINITY:
            limit = hard
        resource.setrlimit(resource.RLIMIT_CORE, (limit, hard))

    def fail(self, kind, text):
        self.failures.append((kind, text))

    # ---- the course ----

    def perform(self):
        """Until the launcher has ended or is considered hanging."""
        asked_to_end = None
        news = time.monotonic()
        while self.process.poll() is None:
            now = time.monotonic()
            for event in self._events.read():
                # Saying who is awaited is no progress.
                news = news if event["kind"] in ("warning", "note") else now
                self.story.feed(event)
                self.mark.job = self.story.job
            if asked_to_end is None:
                self.attack.turn(now)
                if self.attack.is_over() and self.attack.whole_since is not None:
                    asked_to_end = now
                    self._ask_to_end()
                elif now - max(news, self.attack.last_act) > self.options.patience:
                    return self._hang(f"nothing happened for {self.options.patience:.0f} s")
            elif now - asked_to_end > self.options.patience:
                return self._hang(f"still there {self.options.patience:.0f} s after its end")
            try:
                self.process.wait(self.attack.wait_s(now))
            except subprocess.TimeoutExpired:
                pass
        for event in self._events.read():
            self.story.feed(event)
        self._check()

    def _ask_to_end(self):
        if self.plan.launcher_killed:
            self.attack.kills["launcher"] += 1
            self.process.kill()
        else:
            self.stop_file.touch()

    def _hang(self, why):
        self.fail("hang", why)
        print(f"  hang of job {self.story.job}: {why}")
        for words in (["status", self.story.job], ["events", self.folder / "log"]):
            command = [str(word) for word in [self.options.bin_dir / "regroup", *words]]
            try:
                answer = subprocess.run(command, capture_output=True, timeout=ANSWER_S, text=True)
                text = (answer.stdout + answer.stderr).splitlines()[-40:]
            except (OSError, subprocess.SubprocessError) as error:
                text = [f"{type(error).__name__}: {error}"]
            print("\n".join("  | " + line for line in text))
        for line in self.waits():
            print("  | " + line)
        for pid in machine.marked(self.mark):
            print("  | " + machine.explain(pid))
            self._stacks(pid)
        sys.stdout.flush()

    def waits(self):
        """Who waits for whom: what each rank is doing, and who is not where the others are."""
        command = [self.options.bin_dir / "regroup", "status", self.story.job, "--json"]
        try:
            answer = subprocess.run(command, capture_output=True, timeout=ANSWER_S, check=True)
            processes = json.loads(answer.stdout)["processes"]
        except (OSError, ValueError, KeyError, subprocess.SubprocessError):
            return ["the launcher does not say who waits for whom"]
        ranks = [process for process in processes if "rank" in process]
        furthest = max((p.get("step", 0), p.get("seq", 0)) for p in ranks) if ranks else (0, 0)
        late = [p["rank"] for p in ranks if (p.get("step", 0), p.get("seq", 0)) < furthest]
        vacant = sorted(set(range(self.plan.ranks)) - {p["rank"] for p in ranks})
        return [
            f"furthest: step {furthest[0]} seq {furthest[1]}; awaited: ranks {late}, "
            f"seats without a process: {vacant}"
        ]

    def _stacks(self, pid):
        if not shutil.which("gdb"):
            return
        command = ["gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt 12"]
        try:
            answer = subprocess.run(command, capture_output=True, timeout=60, text=True)
        except (OSError, subprocess.SubprocessError):
            return
        lines = [line for line in answer.stdout.splitlines() if re.match(r"#|Thread", line)]
        print("\n".join("  |   " + line[:160] for line in lines[:60]))

    def close(self):
        """Leaves nothing of the job; says what it left by itself."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        hung = any(kind == "hang" for kind, _ in self.failures)
        if not hung:
            self._check_residue()
        machine.end_all(self.mark)
        self._events.close()
        self.output.close()

    # ---- what must hold at the end ----

    def _check(self):
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        for line in re.findall(r"WRONG .*", text):
            self.fail("wrong", line)
        self._check_evictions()
        if self.plan.launcher_killed:
            return
        if self.plan.policy == "abort":
            return self._check_aborted()
        if self.process.returncode != 0:
            tail = "\n".join("  | " + line for line in text.splitlines()[-12:])
            return self.fail("end", f"regroup run ended with {self.process.returncode}\n{tail}")
        self._check_digests(text)

    def _check_evictions(self):
        """Silence convicts those only that we froze; a short pause convicts nobody."""
        for incarnation, event in self.story.lost.items():
            if incarnation in self.attack.how:
                continue
            text = f"incarnation {incarnation} was lost by itself: {event['text']}"
            if event["evidence"] == "silence":
                pauses = [seconds for i, seconds in self.attack.paused if i == incarnation]
                self.fail("eviction", f"{text}, pauses {pauses}")
            else:
                self.fail("end", text)

    def _check_aborted(self):
        """The job ends with the first cause: the signal that we sent, and the rank it hit."""
        ended = self.story.ended or {}
        if self.process.returncode not in (128 + signal.SIGKILL, 128 + signal.SIGSEGV):
            self.fail("end", f"abort: exit code {self.process.returncode}, {ended}")
        elif not re.search(r"\brank \d+", ended.get("reason", "")):
            self.fail("end", f"abort: no rank is named: {ended}")

    def _check_digests(self, text):
        lines = re.findall(r"chaos seat=(\d+) steps=(\d+) size=(\d+) digest=([0-9a-f]{16})", text)
        steps = {line[1] for line in lines}
        digests = {line[3] for line in lines}
        if len(steps) != 1 or len(digests) != 1:
            return self.fail("wrong", f"the ranks end differently: {lines}")
        if self.plan.policy != "replay":
            return None
        seats = {int(line[0]) for line in lines}
        if seats != set(range(self.plan.ranks)):
            self.fail("end", f"seats {sorted(seats)} ended, {self.plan.ranks} should")
        expected = self._undisturbed_digest(steps.pop())
        if digests != {expected}:
            self.fail("wrong", f"digest {digests.pop()}, undisturbed {expected}")

    def _undisturbed_digest(self, steps):
        command = [self.options.program, "--seed", self.state_seed()]
        command += ["--oracle-ranks", self.plan.ranks, "--oracle-steps", steps]
        answer = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()

    def _check_residue(self):
        until = time.monotonic() + RESIDUE_MAX_S
        left = machine.marked(self.mark)
        while left and time.monotonic() < until:
            threading.Event().wait(0.02)
            left = machine.marked(self.mark)
        for pid in left:
            self.fail("residue", machine.explain(pid))
        for line in machine.memory_files_of(self.mark):
            self.fail("residue", line)
        for name in machine.sockets_of(self.story.job):
            self.fail("residue", f"socket {name}")
        for name in sorted(machine.shared_names() - self.shared_before):
            if "regroup" in name:
                self.fail("residue", f"/dev/shm/{name}")
        for path in (self.folder / "tmp").iterdir():
            self.fail("residue", f"file {path}")


def perform_job(options, plan, root, tally):
    folder = root / f"job{plan.number}"
    shutil.rmtree(folder, ignore_errors=True)
    job = Job(options, plan, folder)
    try:
        job.perform()
    finally:
        job.close()
    tally.add(job)
    if options.verbose or job.failures:
        kills = {how: count for how, count in job.attack.kills.items() if count}
        print(f"job {plan.number}: {plan.describe()}: {kills} steps={job.story.resume_step}")
    for kind, text in job.failures:
        print(f"  {kind}: {text}")
    if job.failures:
        print(f"  logs: {folder}\n  again: {repeat_command(options, plan)}", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def repeat_command(options, plan):
    words = [sys.executable, __file__, "--bin-dir", options.bin_dir]
    words += ["--seed", plan.seed, "--job", plan.number]
    if options.policies:
        words += ["--policies", options.policies]
    return " ".join(str(word) for word in words)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin-dir", type=Path, required=True, help="where regroup was built")
    parser.add_argument("--program", type=Path, help="default: ../test/chaos_rank beside it")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100000)
    parser.add_argument("--seconds", type=float, default=60, help="no job begins after this")
    parser.add_argument("--job", type=int, help="only this one of the seed's jobs")
    parser.add_argument("--kills-min", type=int, default=0, help="fail below so many kills")
    parser.add_argument("--beacon-min", type=float, default=0, help="percent at 2 GiB, likewise")
    parser.add_argument("--policies", default="", help="comma-separated; all when not given")
    parser.add_argument("--log-dir", type=Path, help="keep what failed there")
    parser.add_argument("--patience", type=float, default=PATIENCE_S, help="seconds until a hang")
    parser.add_argument("--sabotage", default="", help="what the program does wrong: tests only")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each job")
    options = parser.parse_args()
    options.bin_dir = options.bin_dir.resolve()
    options.program = options.program or options.bin_dir.parent / "test" / "chaos_rank"
    return options


def numbers(options, began):
    if options.job is not None:
        yield options.job
        return
    number = 0
    while time.monotonic() - began < options.seconds:
        yield number
        number += 1


def main():
    # Whoever ends this driver ends its job too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = parse_arguments()
    root = options.log_dir or Path(tempfile.mkdtemp(prefix="regroup-chaos-"))
    policies = tuple(options.policies.split(",")) if options.policies else tuple(jobplan.POLICIES)
    began = time.monotonic()
    tally = Tally()
    print(f"chaos: seed {options.seed}, {options.seconds:.0f} s, logs of failures in {root}")
    large_ranks_max = int(machine.available_mib() * 0.5 / 1024 / GIB_A_RANK) - 1
    for number in numbers(options, began):
        plan = jobplan.draw(options.seed, number, large_ranks_max, policies)
        perform_job(options, plan, root, tally)
        if tally.hangs:
            break  # each costs minutes, and what hangs once hangs again
    print("\n".join(tally.table()))
    why = tally.verdict(options.kills_min, options.beacon_min)
    line = tally.line((time.monotonic() - began) / 60)
    print(f"chaos: {line} {'FAILED: ' + why if why else 'ok'}")
    if not why and not options.log_dir:
        shutil.rmtree(root, ignore_errors=True)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())

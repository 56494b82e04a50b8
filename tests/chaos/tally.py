"""Sums over the jobs of a soak."""

from collections import Counter


class Tally:
    def __init__(self):
        self.jobs = 0
        self.kills = Counter()
        self.failures = Counter()
        self.pauses = 0
        self.steps = 0
        self.evidence = Counter()  # (class, evidence) -> losses
        self.policies = Counter()
        self.coordinator_restarts = 0

    def add(self, job):
        self.jobs += 1
        self.policies[job.plan.policy] += 1
        self.kills.update(job.attack.kills)
        self.pauses += len(job.attack.paused)
        self.failures.update(kind for kind, _ in job.failures)
        self.steps += job.story.resume_step
        self.coordinator_restarts += job.story.coordinator_restarts
        for incarnation, event in job.story.lost.items():
            how = job.attack.how.get(incarnation, "itself")
            self.evidence[self._class(job.plan, how), event["evidence"]] += 1

    @staticmethod
    def _class(plan, how):
        size = "2 GiB" if plan.is_large() else "0.1 GiB"
        dump = ", core dump" if plan.cores and how == "segv" else ""
        return f"{size}, {how}{dump}"

    @property
    def hangs(self):
        return self.failures["hang"]

    def share_by_beacon(self, large_only=False):
        """Percent of the deaths by signal without a core dump that the beacon told; None: none."""
        seen = Counter()
        for (name, evidence), count in self.evidence.items():
            died = ", kill" in name or (", segv" in name and "core" not in name)
            if died and (not large_only or name.startswith("2 GiB")):
                seen[evidence == "beacon"] += count
        total = sum(seen.values())
        return 100 * seen[True] / total if total else None

    def total_kills(self):
        return sum(self.kills.values())

    def table(self):
        kills = " ".join(f"{name}={count}" for name, count in sorted(self.kills.items()) if count)
        policies = " ".join(f"{name}={count}" for name, count in sorted(self.policies.items()))
        lines = [f"jobs: {policies}", f"kills: {kills}; pauses up to 200 ms: {self.pauses}"]
        lines.append(f"steps up to the last recovery of each job: {self.steps}")
        for name in sorted({name for name, _ in self.evidence}):
            counts = {e: c for (n, e), c in self.evidence.items() if n == name}
            text = ", ".join(f"{e} {c}" for e, c in sorted(counts.items(), key=lambda x: -x[1]))
            lines.append(f"  lost ({name}): {text}")
        return lines

    def verdict(self, kills_min, beacon_min):
        """Why the soak failed; empty when it did not."""
        parts = [f"{count} {kind}" for kind, count in sorted(self.failures.items()) if count]
        if self.total_kills() < kills_min:
            parts.append(f"{self.total_kills()} kills, {kills_min} were wanted")
        large = self.share_by_beacon(large_only=True)
        if beacon_min and (large is None or large < beacon_min):
            parts.append(f"beacon at 2 GiB {large}, {beacon_min} % were wanted")
        return ", ".join(parts)

    def line(self, minutes):
        share = self.share_by_beacon()
        return (
            f"minutes={minutes:.1f} jobs={self.jobs} kills={self.total_kills()} "
            f"wrong={self.failures['wrong']} hangs={self.hangs} "
            f"residue={self.failures['residue']} beacon={0 if share is None else share:.1f}%"
        )

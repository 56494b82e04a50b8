#!/usr/bin/env python3
"""Markdown from the JSON of regroup-perf, for perf/run_all.sh: perf/tables.py sweep|noft FILE..."""

import json
import math
import statistics
import sys

OPEN_MPI = ("openmpi4", "openmpi5")
SWEEP_TARGETS = {2: 1.5, 4: 2.2, 8: 3.0}
CELL_TARGET = 0.95
GLOO_TARGET = 20.0


def size_text(size):
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"


def time_text(us):
    return f"{us:.0f}" if us >= 100 else f"{us:.1f}" if us >= 10 else f"{us:.2f}"


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(v) for v in values))


class Launches:
    """All launches of one number of ranks: {(bytes, implementation): {launch: row}}. One that was
    cut or lost a rival has fewer cells."""

    def __init__(self, documents):
        self.machine = documents[0]["machine"]
        self.settings = documents[0]["settings"]
        self.count = len(documents)
        self.rows = {}
        self.versions = {}
        self.notes = []
        for launch, document in enumerate(documents):
            self.versions |= document["settings"]["rivals"]
            for row in document["results"]:
                self.rows.setdefault((row["bytes"], row["implementation"]), {})[launch] = row
            self.notes += notes_of(launch + 1, document)

    def sizes(self):
        return sorted({size for size, _ in self.rows})

    def implementations(self):
        names = {name for _, name in self.rows}
        return ["regroup"] + sorted(names - {"regroup"})

    def times(self, size, name):
        return [row["time_us"] for row in self.rows.get((size, name), {}).values()]

    def cell(self, size, name):
        """Median over the launches, how far they lie apart, and how many, if not all have it."""
        times = self.times(size, name)
        if not times:
            return "-"
        middle, low, high = (time_text(f(times)) for f in (statistics.median, min, max))
        some = "" if len(times) == self.count else f", {len(times)} of {self.count} launches"
        return f"{middle} ({low}-{high}{some})"

    def ratio(self, size, names):
        """How many times as long the best of `names` took, by launch: the median over launches."""
        ratios = []
        for launch, mine in self.rows.get((size, "regroup"), {}).items():
            theirs = [self.rows.get((size, name), {}).get(launch) for name in names]
            theirs = [row["time_us"] for row in theirs if row is not None]
            if theirs:
                ratios.append(min(theirs) / mine["time_us"])
        return statistics.median(ratios) if ratios else None

    def paired(self, size, above, below):
        """Median ratio of blocks that followed each other, over all launches; None: there are
        none."""
        ratios = []
        others = self.rows.get((size, below), {})
        for launch, row in self.rows.get((size, above), {}).items():
            if launch in others:
                pairs = zip(row["blocks_us"], others[launch]["blocks_us"])
                ratios += [x / y for x, y in pairs]
        return statistics.median(ratios) if ratios else None

    def wrong(self):
        return sum(row["wrong"] for rows in self.rows.values() for row in rows.values())


def notes_of(launch, document):
    """What a launch does not have."""
    out = []
    for missing in document["missing"]:
        at = f"at {size_text(missing['at']['bytes'])}" if "at" in missing else "at its start"
        from_here = "left out from there on" if missing["gone"] else "no figure"
        who = missing["implementation"]
        out.append(f"- launch {launch}: {who} {from_here}, {at}: {missing['why']}")
    if not document["finished"]:
        out.append(f"- launch {launch} was cut in the middle")
    return out


def read(paths):
    """Launches by number of ranks."""
    by_ranks = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        if document["results"]:
            by_ranks.setdefault(document["settings"]["ranks"], []).append(document)
    return {ranks: Launches(documents) for ranks, documents in sorted(by_ranks.items())}


def verdict(good, text):
    return f"- {'met' if good else 'MISSED'}: {text}"


def sweep_table(ranks, launches):
    names = launches.implementations()
    out = [
        f"### {ranks} ranks",
        "",
        "| size | " + " | ".join(names) + " | best Open MPI / ours | Gloo / ours |",
        "|---" * (len(names) + 3) + "|",
    ]
    for size in launches.sizes():
        cells = [launches.cell(size, name) for name in names]
        for rivals in (OPEN_MPI, ("gloo",)):
            ratio = launches.ratio(size, rivals)
            cells.append("-" if ratio is None else f"{ratio:.2f}")
        out.append(f"| {size_text(size)} | " + " | ".join(cells) + " |")
    return out + [""] + sweep_verdicts(ranks, launches) + launches.notes + [""]


def sweep_verdicts(ranks, launches):
    out = []
    sizes = launches.sizes()

    def all_ratios(names):
        ratios = {size: launches.ratio(size, names) for size in sizes}
        return {size: ratio for size, ratio in ratios.items() if ratio is not None}

    ratios = all_ratios(OPEN_MPI)
    if ratios:
        mean, worst = geometric_mean(ratios.values()), min(ratios, key=ratios.get)
        target = SWEEP_TARGETS.get(ranks, 1.0)
        out.append(
            verdict(
                mean >= target,
                f"geometric mean over the sizes {mean:.2f} x the better Open MPI (target {target})",
            )
        )
        out.append(
            verdict(
                ratios[worst] >= CELL_TARGET,
                f"weakest cell {ratios[worst]:.2f} x at {size_text(worst)} (target {CELL_TARGET})",
            )
        )
    gloo = all_ratios(("gloo",))
    if gloo:
        mean = geometric_mean(gloo.values())
        out.append(
            verdict(mean >= GLOO_TARGET, f"geometric mean {mean:.1f} x Gloo (target {GLOO_TARGET})")
        )
    for name in launches.implementations():
        if name.startswith("mpich"):
            mean = geometric_mean(all_ratios((name,)).values())
            out.append(verdict(mean > 1, f"geometric mean {mean:.2f} x {name} (target: beaten)"))
    out.append(verdict(launches.wrong() == 0, f"{launches.wrong()} wrong values"))
    return out


def noft_table(ranks, launches):
    out = [
        f"### {ranks} ranks",
        "",
        "| size | on, us | compiled out, us | on / out | the same program twice |",
        "|---|---|---|---|---|",
    ]
    verdicts = []
    for size in launches.sizes():
        # The twin, not the program that leads: it is started and driven just as `noft` is.
        cost = launches.paired(size, "self", "noft")
        noise = launches.paired(size, "self", "regroup")
        on, off = launches.cell(size, "self"), launches.cell(size, "noft")
        ratios = " | ".join("-" if value is None else f"{value:.3f}" for value in (cost, noise))
        out.append(f"| {size_text(size)} | {on} | {off} | {ratios} |")
        if cost is None:
            continue
        extra_us = statistics.median(launches.times(size, "self")) - statistics.median(
            launches.times(size, "noft")
        )
        if size >= 1 << 20:
            text = f"{size_text(size)}: {cost - 1:+.1%} (at most 2 %)"
            verdicts.append(verdict(cost <= 1.02, text))
        elif size == 8:
            text = f"8 B: {cost - 1:+.1%}, {extra_us:+.3f} us (at most 0.1 us or 10 %)"
            verdicts.append(verdict(cost <= 1.1 or extra_us <= 0.1, text))
    return out + [""] + verdicts + launches.notes + [""]


def heading(by_ranks):
    first = next(iter(by_ranks.values()))
    machine = first.machine
    versions = {}
    for launches in by_ranks.values():
        versions |= launches.versions
    versions = "; ".join(f"{name}: {text.strip()}" for name, text in sorted(versions.items()))
    counts = sorted({launches.count for launches in by_ranks.values()})
    count = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; load before "
        f"{machine['load_1m']:.2f}; {count} launches, {first.settings['blocks']} blocks of "
        f"{first.settings['block_seconds']} s in turns, {first.settings['mode']}, f32 sum, out of "
        "place. Times in us: median of the launches (smallest-largest).",
        "",
        f"In turns with {versions}.",
        "",
    ]


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in ("sweep", "noft"):
        print(__doc__, file=sys.stderr)
        return 64
    by_ranks = read(sys.argv[2:])
    if not by_ranks:
        print("tables.py: nothing was measured", file=sys.stderr)
        return 1
    table = sweep_table if sys.argv[1] == "sweep" else noft_table
    lines = heading(by_ranks)
    for ranks, launches in by_ranks.items():
        lines += table(ranks, launches)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

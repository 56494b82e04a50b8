#!/usr/bin/env python3
"""The scripts that turn measurements into tables, with jobs that testdata/regroup plays: what a run
that failed or was ended in the middle still prints. scripts_test.py [TEST...]"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATIENCE_S = 60
MACHINE = {"cpu": "Abacus", "cores": 2, "kernel": "Linux 6", "load_1m": 0.25}


def row(who, size, us, wrong=0):
    return {
        "implementation": who,
        "bytes": size,
        "time_us": us,
        "blocks_us": [us, us * 1.5, us * 2],
        "wrong": wrong,
    }


def sweep(ranks, rows, missing=(), finished=True):
    """As regroup-perf --json writes it, as far as the scripts read it."""
    rivals = {name: f"{name} 1.0" for name in {r["implementation"] for r in rows} - {"regroup"}}
    settings = {"ranks": ranks, "blocks": 3, "block_seconds": 0.05, "mode": "streaming"}
    return {
        "machine": MACHINE,
        "settings": {**settings, "rivals": rivals},
        "finished": finished,
        "missing": list(missing),
        "results": rows,
    }


def kills(first_us, wrong=0):
    samples = {"detect_us": [100.0], "release_us": [200.0], "first_us": [first_us]}
    return {"machine": MACHINE, "results": [{"wrong": wrong, "samples": samples}]}


GONE = {"implementation": "gloo", "gone": True, "why": "it ended with 1", "at": {"bytes": 4096}}
# Launch 1 has all, launch 2 lost Gloo at 4 KiB, launch 3 was cut before 4 KiB.
FIRST = sweep(2, [row("regroup", 8, 1.0), row("openmpi4", 8, 2.0), row("gloo", 8, 40.0),
                  row("regroup", 4096, 2.0), row("openmpi4", 4096, 2.0), row("gloo", 4096, 60.0)])
SECOND = sweep(2, [row("regroup", 8, 2.0), row("openmpi4", 8, 6.0), row("gloo", 8, 100.0),
                   row("regroup", 4096, 4.0), row("openmpi4", 4096, 8.0)], [GONE])
THIRD = sweep(2, [row("regroup", 8, 4.0), row("openmpi4", 8, 16.0), row("gloo", 8, 120.0)],
              finished=False)


class Scripts(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="regroup-scripts.")
        self.folder = Path(self.scratch.name)
        self.addCleanup(self.scratch.cleanup)

    def tables(self, kind, *documents):
        paths = []
        for number, document in enumerate(documents):
            paths.append(self.folder / f"{number}.json")
            paths[-1].write_text(json.dumps(document))
        command = [sys.executable, HERE / "tables.py", kind, *paths]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)

    def start(self, command, calls, **variables):
        (self.folder / "play").write_text("".join(json.dumps(call) + "\n" for call in calls))
        os.mkfifo(self.folder / "hanging")
        environment = {**os.environ, "PLAY": str(self.folder / "play"), **variables}
        environment["HANGING"] = str(self.folder / "hanging")
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def run_all(self, part, calls, **variables):
        settings = {"BIN": str(HERE / "testdata"), "OUT": str(self.folder / "out"), "RANKS": "2"}
        return self.start(["bash", HERE / "run_all.sh", part], calls, **settings, **variables)

    def kills(self, calls, *words):
        command = [sys.executable, HERE / "kills.py", "--bin-dir", HERE / "testdata", *words]
        return self.start(command, calls)

    def end(self, process, by=None):
        """Exit code, standard output and error; `by`: a signal, once a job stands still."""
        if by is not None:
            with open(self.folder / "hanging", encoding="utf-8") as hanging:
                self.assertEqual(hanging.readline(), "now\n")
            process.send_signal(by)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err


class Tables(Scripts):
    def test_a_sweep(self):
        done = self.tables("sweep", FIRST, SECOND)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("Abacus, 2 cores, Linux 6; load before 0.25; 2 launches, 3 blocks of 0.05 s",
                      done.stdout)
        # Ratios are taken within a launch: 2 and 3 at 8 B, 1 and 2 at 4 KiB.
        self.assertIn("| 8 B | 1.50 (1.00-2.00) | 70.0 (40.0-100) | 4.00 (2.00-6.00) | 2.50 | "
                      "45.00 |", done.stdout)
        self.assertIn("- met: geometric mean over the sizes 1.94 x the better Open MPI",
                      done.stdout)
        self.assertIn("- met: weakest cell 1.50 x at 4 KiB", done.stdout)
        self.assertIn("- met: 0 wrong values", done.stdout)

    def test_launches_that_lack_cells(self):
        """Their ratios are those of the launches that have both sides."""
        done = self.tables("sweep", THIRD, SECOND, FIRST)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("| 4 KiB | 3.00 (2.00-4.00, 2 of 3 launches) | 60.0 (60.0-60.0, 1 of 3 "
                      "launches) | 5.00 (2.00-8.00, 2 of 3 launches) | 1.50 | 30.00 |", done.stdout)
        self.assertIn("- launch 1 was cut in the middle", done.stdout)
        self.assertIn("- launch 2: gloo left out from there on, at 4 KiB: it ended with 1",
                      done.stdout)

    def test_wrong_values_are_a_miss(self):
        done = self.tables("sweep", sweep(2, [row("regroup", 8, 1.0, wrong=3)]))
        self.assertIn("- MISSED: 3 wrong values", done.stdout)

    def test_fault_tolerance_compiled_out(self):
        rows = [row("regroup", 8, 1.0), row("self", 8, 1.1), row("noft", 8, 1.0),
                row("regroup", 1 << 20, 100.0), row("self", 1 << 20, 103.0)]
        whole = [*rows, row("noft", 1 << 20, 100.0)]
        done = self.tables("noft", sweep(2, rows, finished=False), sweep(2, whole))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("| 8 B | 1.10 (1.10-1.10) | 1.00 (1.00-1.00) | 1.100 | 1.100 |", done.stdout)
        self.assertIn("| 1 MiB | 103 (103-103) | 100 (100-100, 1 of 2 launches) | 1.030 | 1.030 |",
                      done.stdout)
        self.assertIn("- MISSED: 1 MiB: +3.0% (at most 2 %)", done.stdout)

    def test_nothing(self):
        done = self.tables("sweep", sweep(2, []))
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("nothing was measured", done.stderr)


class Kills(Scripts):
    WORDS = ("--parts", "shrink", "--kills", "3", "--resident", "1G")

    def test_all_of_them(self):
        calls = [{"code": 0, "document": kills(us)} for us in (3000.0, 1000.0, 2000.0)]
        code, out, err = self.end(self.kills(calls, *self.WORDS))
        self.assertEqual((code, err), (0, ""))
        self.assertIn("| Regroup | 4 -> 3 | 1.0 GiB | first correct all-reduce | 3 | 2.00 | 3.00 | "
                      "3.00 | 3.00 |", out)
        self.assertIn("- met: smaller world, p50 2.00 ms (target <= 10)", out)

    def test_a_job_that_fails_ends_it_with_what_was_measured(self):
        calls = [{"code": 0, "document": kills(3000.0)}, {"code": 70, "says": "a defect"}]
        code, out, err = self.end(self.kills(calls, *self.WORDS, "--json", self.folder / "all"))
        self.assertEqual(code, 1)
        self.assertIn("ended with 70\na defect", err)
        self.assertIn("| first correct all-reduce | 1 | 3.00 |", out)
        results = json.loads((self.folder / "all").read_text())["results"]
        self.assertEqual(results[0]["samples"]["first_us"], [3000.0])

    def test_a_signal_ends_it_with_what_was_measured(self):
        calls = [{"code": 0, "document": kills(3000.0)}, {"hangs": True}]
        code, out, err = self.end(self.kills(calls, *self.WORDS), by=signal.SIGTERM)
        self.assertEqual(code, 143)
        self.assertIn("ended by SIGTERM", err)
        self.assertIn("| first correct all-reduce | 1 | 3.00 |", out)


class RunAll(Scripts):
    def test_a_launch_that_fails_is_left_out(self):
        calls = [{"code": 0, "document": FIRST}, {"code": 69, "document": SECOND,
                 "says": "# gloo is left out from here on"}, {"code": 1, "says": "a defect"}]
        code, out, err = self.end(self.run_all("sweep", calls, LAUNCHES="3"))
        self.assertEqual(code, 1, err)
        self.assertIn("| 8 B | 1.50 (1.00-2.00) |", out)
        self.assertIn("- launch 2: gloo left out from there on", out)
        self.assertIn("sweep.2.2 ended with 69\n# gloo is left out from here on", err)
        self.assertIn("sweep.2.3 ended with 1\na defect", err)

    def test_a_signal_ends_it_with_what_was_measured(self):
        for part, first, cell in (
            ("sweep", FIRST, "| 8 B | 1.00 (1.00-1.00) |"),
            ("noft", sweep(2, [row("regroup", 8, 1.0), row("self", 8, 1.0), row("noft", 8, 1.0)]),
             "| 8 B | 1.00 (1.00-1.00) | 1.00 (1.00-1.00) | 1.000 | 1.000 |"),
        ):
            with self.subTest(part):
                calls = [{"code": 0, "document": first}, {"hangs": True}]
                code, out, err = self.end(self.run_all(part, calls), by=signal.SIGTERM)
                self.assertEqual(code, 143, err)
                self.assertIn(cell, out)
                self.assertIn("ended by signal 15", err)
                (self.folder / "hanging").unlink()

    def test_kills_that_are_cut(self):
        calls = [{"code": 0, "document": kills(3000.0)}, {"hangs": True}]
        job = self.run_all("kills", calls, RESIDENT="1G", KILLS="2", KILL_PARTS="shrink")
        code, out, err = self.end(job, by=signal.SIGTERM)
        self.assertEqual(code, 143, err)
        self.assertIn("| first correct all-reduce | 1 | 3.00 |", out)

    def test_a_part_that_does_not_exist(self):
        code, _, err = self.end(self.run_all("dance", []))
        self.assertEqual(code, 64)
        self.assertIn("no part dance", err)


if __name__ == "__main__":
    unittest.main(argv=sys.argv, verbosity=2)

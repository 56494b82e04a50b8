#!/usr/bin/env python3
"""regroup-perf as users run it: perf_run_test.py BIN_DIR SCRATCH_DIR. Never judges a time."""

import json
import os
import subprocess
import sys
import unittest

BIN, SCRATCH = sys.argv[1], sys.argv[2]
RANKS = 3
ROW_FIELDS = {
    "collective": str,
    "ranks": int,
    "bytes": int,
    "dtype": str,
    "op": str,
    "algorithm": str,
    "time_us": float,
    "p90_us": float,
    "alg_gbps": float,
    "bus_gbps": float,
    "cpu_s": float,
    "wrong": int,
}


def run(name, *words, launcher=("-n", str(RANKS)), env=None):
    """The finished job, with what its ranks printed, without the launcher's marks."""
    command = [f"{BIN}/regroup", "run", "-q", *launcher]
    command += ["--timeout", "100s", "--log-dir", f"{SCRATCH}/{name}", "--"]
    command += [f"{BIN}/regroup-perf", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, env={**os.environ, **(env or {})}
    )
    lines = [line.split(": ", 1)[-1] for line in done.stdout.split("\n")]
    return done, lines


def rows_of(lines):
    return [line.split() for line in lines if line.strip() and line.lstrip()[0].isdigit()]


class Collectives(unittest.TestCase):
    def check_rows(self, document, collective):
        self.assertEqual(set(document), {"machine", "settings", "results"})
        self.assertGreater(document["machine"]["cores"], 0)
        self.assertTrue(document["results"])
        for row in document["results"]:
            for field, kind in ROW_FIELDS.items():
                self.assertIsInstance(row[field], (int, float) if kind is float else kind, field)
            self.assertEqual(row["collective"], collective)
            self.assertEqual(row["ranks"], RANKS)
            self.assertEqual(row["wrong"], 0)
            self.assertGreaterEqual(row["checked"], 4)
            self.assertGreater(row["time_us"], 0)
            self.assertGreaterEqual(row["p90_us"], row["time_us"])

    def measure(self, collective, *words):
        path = f"{SCRATCH}/{collective}.json"
        done, lines = run(
            collective, collective, "-n", "4", "--blocks", "3", "--check", "--json", path, *words
        )
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        self.check_rows(document, collective)
        rows = rows_of(lines)
        self.assertTrue(all(len(row) == 13 for row in rows), rows)
        self.assertTrue(any("# Out of bounds values : 0 OK" in line for line in lines))
        return document, rows

    def test_all_reduce_of_every_type_and_operation(self):
        document, rows = self.measure("all_reduce", "--sizes", "48,300K", "-d", "all", "-o", "all")
        # Integers have no average: 4 floats with 5 operations, 3 integers with 4.
        self.assertEqual(len(rows), 2 * (4 * 5 + 3 * 4))
        self.assertEqual({r["algorithm"] for r in document["results"]}, {"inline", "twoshot"})

    def test_reduce_with_a_root(self):
        _, rows = self.measure("reduce", "--sizes", "8,600K", "-r", "1")
        self.assertEqual([row[4] for row in rows], ["1", "1"])

    def test_broadcast_with_a_root(self):
        self.measure("broadcast", "--sizes", "8,600K", "-r", "2")

    def test_all_gather(self):
        document, _ = self.measure("all_gather", "--sizes", "96,900K")
        self.assertEqual(document["results"][0]["bytes"], 96)
        self.assertEqual(document["results"][0]["count"], 8)

    def test_reduce_scatter(self):
        self.measure("reduce_scatter", "--sizes", "96,900K", "-d", "bf16")

    def test_barrier(self):
        self.measure("barrier", "--mode", "isolated")

    def test_sendrecv(self):
        self.measure("sendrecv", "--sizes", "8,300K")

    def test_sizes_step_as_in_nccl_tests(self):
        done, lines = run("steps", "all_reduce", "-b", "8", "-e", "512", "-f", "8", "-n", "3")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([row[0] for row in rows_of(lines)], ["8", "64", "512"])

    def test_an_override_chooses_the_algorithm(self):
        path = f"{SCRATCH}/override.json"
        done, _ = run(
            "override", "all_reduce", "-b", "64", "-n", "3", "--algo", "twoshot", "--json", path
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        self.assertEqual(document["results"][0]["algorithm"], "twoshot")
        self.assertEqual(document["settings"]["environment"]["REGROUP_ALGO"], "0-:twoshot")


class Refusals(unittest.TestCase):
    def test_a_wrong_flag_ends_with_64_and_names_it(self):
        for words in (["all_reduce", "-b", "eight"], ["gossip"], ["all_reduce", "--algo", "fast"]):
            done = subprocess.run(
                [f"{BIN}/regroup-perf", *words], capture_output=True, text=True, timeout=60
            )
            self.assertEqual(done.returncode, 64, words)
            self.assertIn(words[-1], done.stderr)

    def test_a_wrong_rule_in_the_environment_is_named(self):
        done, _ = run("rule", "all_reduce", "-b", "8", env={"REGROUP_ALGO": "0-:fast"})
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("0-:fast", done.stderr + done.stdout)

    def test_a_rival_that_is_not_there_ends_with_64(self):
        done, _ = run("rival", "all_reduce", "-b", "8", "--compare", "openmpi9")
        self.assertEqual(done.returncode, 64)
        self.assertIn("perf/rivals/setup.sh", done.stderr + done.stdout)


class Turns(unittest.TestCase):
    def test_our_own_program_is_measured_in_turns(self):
        path = f"{SCRATCH}/self.json"
        words = ["all_reduce", "--sizes", "8,64K", "-n", "20", "--inplace", "out"]
        done, lines = run("self", *words, "--compare", "self", "--json", path)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        by = [(r["implementation"], r["bytes"], r["wrong"]) for r in document["results"]]
        self.assertEqual(
            by, [("regroup", 8, 0), ("self", 8, 0), ("regroup", 65536, 0), ("self", 65536, 0)]
        )
        self.assertIn("Regroup", document["settings"]["rivals"]["self"])
        self.assertTrue(any("x ours" in line for line in lines))


    @unittest.skipUnless(os.path.exists(f"{BIN}/regroup-perf-noft"), "no regroup-perf-noft here")
    def test_the_data_path_without_fault_tolerance_computes_the_same(self):
        path = f"{SCRATCH}/noft.json"
        words = ["all_reduce", "--sizes", "8,64K,2M", "-n", "20", "--inplace", "out"]
        done, _ = run("noft", *words, "--compare", "noft", "--json", path)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        with open(path, encoding="utf-8") as file:
            rows = [r for r in json.load(file)["results"] if r["implementation"] == "noft"]
        seen = [(r["bytes"], r["wrong"], r["checked"]) for r in rows]
        self.assertEqual(seen, [(8, 0, 1), (65536, 0, 1), (2097152, 0, 1)])


class Kills(unittest.TestCase):
    def measure(self, name, *launcher, kills):
        path = f"{SCRATCH}/{name}.json"
        done, _ = run(
            name,
            *["all_reduce", "-b", "4K", "--kill", "1@2", "--kills", str(kills), "--json", path],
            launcher=("-n", str(RANKS), *launcher),
        )
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        with open(path, encoding="utf-8") as file:
            result = json.load(file)["results"][0]
        self.assertEqual((result["wrong"], result["incomplete"]), (0, 0))
        for phase in ("detect_us", "release_us", "first_us"):
            self.assertEqual(result[phase]["n"], kills, phase)
            self.assertGreater(result[phase]["p50"], 0)
        for release, first in zip(result["samples"]["release_us"], result["samples"]["first_us"]):
            self.assertGreater(first, release)
        return result

    def test_a_spare_takes_the_seat_each_time(self):
        result = self.measure("kill_spare", "--spares", "1", kills=4)
        self.assertEqual(result["ranks_after"], RANKS)

    def test_the_world_shrinks(self):
        result = self.measure("kill_shrink", "--on-loss", "shrink", kills=1)
        self.assertEqual(result["ranks_after"], RANKS - 1)


if __name__ == "__main__":
    os.makedirs(SCRATCH, exist_ok=True)
    unittest.main(argv=sys.argv[:1], verbosity=2)

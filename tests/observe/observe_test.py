"""The commands that explain: doctor, env, help, completion. BIN_DIR comes from the environment."""

import json
import os
import re
import shutil
import subprocess
import unittest
from pathlib import Path

REGROUP = Path(os.environ["BIN_DIR"]) / "regroup"
DOCS = Path(__file__).resolve().parents[2] / "docs"


def regroup(*words, **environment):
    clean = {k: v for k, v in os.environ.items() if not re.match("REGROUP_|OMPI_|PMI|SLURM_", k)}
    return subprocess.run(
        [str(REGROUP), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, **environment},
    )


def commands():
    """The commands that the program lists for people."""
    listed = regroup("--help").stdout.split("\n\n")[1]
    return re.findall(r"^  (\w[\w-]*) ", listed, re.M)


def flags_of(command):
    """The flags that `regroup COMMAND --help` lists."""
    head = re.findall(r"^ +(-[^ ]*)", regroup(command, "--help").stdout, re.M)
    return {flag for names in head for flag in names.split(",")}


class Doctor(unittest.TestCase):
    def test_says_of_each_thing_what_it_means(self):
        answer = regroup("doctor", "--json")
        report = json.loads(answer.stdout)
        self.assertEqual((answer.returncode, report["v"], report["ok"]), (0, 1, True))
        checks = {check["name"]: check for check in report["checks"]}
        for name in ("robust futex", "memfd sealing", "pidfd", "cores", "huge pages", "core dumps"):
            self.assertIn(name, checks)
            self.assertTrue(checks[name]["meaning"], name)
        for name in ("UCX", "NCCL", "GPU", "open files"):
            self.assertIn(checks[name]["state"], ("ok", "hint", "absent"))

    def test_looks_at_this_process(self):
        script = f"ulimit -n 10; exec {REGROUP} doctor --json"
        answer = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
        report = json.loads(answer.stdout)
        self.assertEqual((answer.returncode, report["ok"]), (69, False))
        missing = [check["name"] for check in report["checks"] if check["state"] == "missing"]
        self.assertEqual(missing, ["open files"])

    def test_finds_an_mpirun_and_asks_it(self):
        folder = Path(os.environ["TMP_DIR"]) / "mpi"
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "mpirun"
        program.write_text("#!/bin/sh\necho 'mpirun (Some MPI)   7.8.9'\n")
        program.chmod(0o755)
        answer = regroup("doctor", "--json", PATH=f"{folder}:/usr/bin:/bin")
        checks = {check["name"]: check for check in json.loads(answer.stdout)["checks"]}
        self.assertEqual(checks["mpirun"]["value"], "mpirun (Some MPI) 7.8.9")


class Env(unittest.TestCase):
    def test_names_the_row_that_counts_and_those_that_match_too(self):
        answer = regroup(
            "env",
            "--json",
            **{"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"},
            **{"OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "3"},
            **{"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"},
        )
        report = json.loads(answer.stdout)
        self.assertEqual(answer.returncode, 0)
        self.assertEqual((report["found"]["system"], report["found"]["rank"]), ("ompi", 2))
        rows = {row["system"]: row for row in report["rows"]}
        self.assertEqual((rows["ompi"]["chosen"], rows["ompi"]["matches"]), (True, True))
        self.assertEqual((rows["torch-env"]["chosen"], rows["torch-env"]["matches"]), (False, True))
        self.assertIn("OMPI_COMM_WORLD_RANK", rows["ompi"]["why"])
        self.assertTrue(report["found"]["conflicts"])

    def test_refuses_a_number_that_is_none(self):
        answer = regroup("env", OMPI_COMM_WORLD_RANK="two", OMPI_COMM_WORLD_SIZE="3")
        self.assertEqual(answer.returncode, 64)
        self.assertIn("OMPI_COMM_WORLD_RANK", answer.stderr)

    def test_all_shows_each_documented_variable_with_its_origin(self):
        page = (DOCS / "environment.md").read_text()
        user = re.findall(r"`(REGROUP_\w+)`", page.split("## Set by `regroup run`")[0])
        answer = regroup("env", "--all", "--json", REGROUP_ALGO="0-:oneshot")
        shown = {v["name"]: v for v in json.loads(answer.stdout)["variables"]}
        self.assertTrue(user)
        for name in re.findall(r"\| `(REGROUP_\w+)`", page.split("## Read from")[0]):
            self.assertIn(name, shown)
        self.assertEqual(shown["REGROUP_ALGO"]["origin"], "environment")
        self.assertEqual(shown["REGROUP_ALGO"]["value"], "0-:oneshot")
        self.assertEqual(shown["REGROUP_FAULTS"]["origin"], "default")


def complete(*words):
    """What bash offers after these words."""
    script = """
        source <(%s completion bash)
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _regroup; printf '%%s\\n' "${COMPREPLY[@]}"
    """ % REGROUP
    answer = subprocess.run(
        ["bash", "-c", script, "bash", "regroup", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(answer.stdout.split())


class Help(unittest.TestCase):
    def test_bash_offers_each_command_and_flag(self):
        self.assertTrue({"run", "status", "report"} <= set(commands()))
        self.assertTrue(set(commands()) <= complete(""))
        for command in commands():
            flags = flags_of(command)
            self.assertIn("--help", flags, command)
            self.assertTrue(flags <= complete(command, "-"), (command, flags))

    def test_bash_offers_the_words_of_a_value(self):
        self.assertEqual(complete("inject", "s"), {"stop"})
        self.assertEqual(complete("help", "repo"), {"report"})

    def test_zsh_names_each_command_and_flag(self):
        text = regroup("completion", "zsh").stdout
        for command in commands():
            self.assertIn(f"      '{command}:", text)
            for flag in flags_of(command):
                self.assertIn(f"'{flag}[", text)
        if shutil.which("zsh"):
            subprocess.run(["zsh", "-n"], input=text, text=True, timeout=60, check=True)

    def test_the_manual_names_each_command_and_flag(self):
        text = regroup("help", "--man").stdout.replace("\\-", "-")
        for command in commands():
            section = text.split(f".SS regroup {command}\n")[1].split(".SS ")[0]
            for flag in flags_of(command):
                self.assertIn(flag, section, command)

    def test_topics_and_refusals(self):
        self.assertIn("REGROUP_ALGO", regroup("help", "environment").stdout)
        codes = regroup("help", "exit-codes").stdout
        documented = (DOCS / "environment.md").read_text().split("## Exit codes")[1]
        for code in re.findall(r"^\| (\d+)", documented, re.M):
            self.assertIn(code, codes)
        self.assertEqual(regroup("help", "run").stdout, regroup("run", "--help").stdout)
        self.assertEqual(regroup("help", "nonsense").returncode, 64)
        self.assertEqual(regroup("completion", "fish").returncode, 64)


PROGRAM = Path(os.environ["BIN_DIR"]) / "example_03_lose_and_replace"
DIGITS = Path(os.environ["BIN_DIR"]) / "example_04_digits"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Job(unittest.TestCase):
    """One job of four ranks that loses one of them."""

    @classmethod
    def setUpClass(cls):
        # Pages and traces are tested at the same time.
        cls.folder = Path(os.environ["TMP_DIR"]) / f"job-{cls.__name__}"
        shutil.rmtree(cls.folder, ignore_errors=True)
        cls.logs = cls.folder / "logs"
        words = ["run", "-n", 4, "--spares", 1, "--log-dir", cls.logs, "--", PROGRAM]
        run = regroup(*words)
        assert run.returncode == 0, run.stderr
        cls.report = json.loads(regroup("report", cls.logs, "--json").stdout)
        assert cls.report["losses"], "the example kills a rank"


class Page(Job):
    def page(self):
        path = self.folder / "report.html"
        written = regroup("report", self.logs, "--html", path)
        self.assertEqual((written.returncode, written.stderr), (0, ""))
        return path

    def test_holds_everything_itself(self):
        text = self.page().read_text()
        outside = [u for u in re.findall(r"https?://[^\s\"'<]+", text) if "www.w3.org" not in u]
        self.assertEqual(outside, [])
        self.assertEqual(re.findall(r"<(?:link|img|iframe|script[^>]* src)", text), [])

    def test_refuses_a_file_that_cannot_be_written(self):
        answer = regroup("report", self.logs, "--html", self.folder / "missing" / "r.html")
        self.assertEqual(answer.returncode, 77)
        self.assertIn("E-REP-4", answer.stderr)

    @unittest.skipUnless(CHROMIUM, "no chromium here: the page was not opened")
    def test_a_browser_draws_each_rank_and_each_loss(self):
        page = self.page()
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={self.folder}/browser", "--virtual-time-budget=5000"]
        opened = subprocess.run(
            [*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=120
        )
        dom = opened.stdout
        self.assertIn('data-drawn="yes"', dom, opened.stderr)
        lanes = re.findall(r'<g class="lane" data-rank="(\d+)">(.*?)</g>', dom, re.S)
        self.assertEqual([int(rank) for rank, _ in lanes], [0, 1, 2, 3])
        for rank, lane in lanes:
            self.assertIn('data-state="run"', lane, rank)
        marks = re.findall(r'class="loss" data-rank="(\d+)" data-evidence="(\w+)"', dom)
        losses = [(str(loss["rank"]), loss["evidence"]) for loss in self.report["losses"]]
        self.assertEqual(marks, losses)
        lost_lane = dict(lanes)[losses[0][0]]
        self.assertIn('data-state="reform"', lost_lane)
        phases = {name for name, ns in self.report["recoveries"][0]["phases"].items() if ns > 0}
        drawn = set(re.findall(r'<i style="[^"]*" data-phase="(\w+)"', dom))
        self.assertEqual({f"{name}_ns" for name in drawn} | {"total_ns"}, phases)
        # Each seat and all of them together.
        self.assertEqual(dom.count('class="ledger-row"'), 5)
        self.assertIn('data-category="compute"', dom)
        self.assertIn('<tr data-phase="total">', dom)


class Trace(Job):
    def test_each_rank_has_its_operations_and_the_dead_one_too(self):
        path = self.folder / "trace.json"
        written = regroup("trace", self.logs, "-o", path)
        self.assertEqual((written.returncode, written.stderr), (0, ""))
        trace = json.loads(path.read_text())
        events = trace["traceEvents"]
        spans = [e for e in events if e["ph"] == "X"]
        wall_us = self.report["wall_ns"] / 1e3
        for span in spans:
            self.assertEqual({"name", "cat", "ph", "pid", "tid", "ts", "dur", "args"}, set(span))
            self.assertTrue(0 <= span["ts"] <= wall_us and 0 <= span["dur"] <= wall_us, span)
        for rank in range(4):
            done = [s for s in spans if s["pid"] == rank and s["cat"] == "done"]
            self.assertIn("all_reduce", {s["name"] for s in done}, rank)
        loss = self.report["losses"][0]
        marks = [e for e in events if e["ph"] == "i" and e["name"] == "lost"]
        self.assertEqual(
            [(m["pid"], m["tid"], m["args"]["evidence"]) for m in marks],
            [(loss["rank"], loss["incarnation"], loss["evidence"])],
        )
        # What the killed process did before, by the memory that outlived it.
        before = [s for s in spans if (s["pid"], s["tid"]) == (loss["rank"], loss["incarnation"])]
        self.assertTrue(before)
        self.assertTrue(all(s["ts"] + s["dur"] <= loss["offset_ns"] / 1e3 + 1 for s in before))
        phases = {s["name"] for s in spans if s["cat"] == "recovery"}
        self.assertTrue({"detect", "install"} <= phases, phases)
        self.assertEqual(json.loads(regroup("trace", self.logs).stdout), trace)

    def test_of_a_running_job_the_ranks_that_run(self):
        logs = self.folder / "running"
        shutil.rmtree(logs, ignore_errors=True)
        words = ["run", "-n", "2", "--log-dir", logs, "--", DIGITS, "--epochs", "3000"]
        with subprocess.Popen(
            [str(REGROUP), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as job:
            try:
                while b"  loss " not in (line := job.stdout.readline()):
                    self.assertTrue(line, "it ended early")
                traced = regroup("trace", logs)
                self.assertIsNone(job.poll())
            finally:
                job.kill()
                job.stdout.read()
        self.assertEqual((traced.returncode, traced.stderr), (0, ""))
        spans = [e for e in json.loads(traced.stdout)["traceEvents"] if e["ph"] == "X"]
        for rank in range(2):
            done = [s for s in spans if s["pid"] == rank and s["cat"] == "done"]
            self.assertIn("all_reduce", {s["name"] for s in done}, rank)
        self.assertTrue(all(s["ts"] >= 0 and s["dur"] >= 0 for s in spans))


if __name__ == "__main__":
    unittest.main()

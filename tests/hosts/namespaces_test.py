#!/usr/bin/env python3
"""One job on several hosts: networks of their own, power cuts, cut wires."""

import datetime
import json
import os
import re
import signal
import sys
import unittest
from pathlib import Path

from jobs import FAKE_RANK, REGROUP, JobsCase, command_line, environment_of, until
import namespaces  # where jobs says

MODULE = Path(REGROUP).parent.parent / "lib" / "libregroup-ucx.so"
EXAMPLE = Path(REGROUP).parent / "example_06_lookup_and_experts"
PERF = Path(REGROUP).parent / "regroup-perf"
DETECT_MAX = 1.5  # seconds: design.md, figures to reach


def seconds_of(stamp):
    """Of an event's time, since 1970."""
    whole, fraction = stamp.rstrip("Z").split(".")
    moment = datetime.datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S")
    return moment.replace(tzinfo=datetime.timezone.utc).timestamp() + float("0." + fraction)


class HostsCase(JobsCase):
    command = "run"
    names = ("a", "b", "c")
    families = None
    clock_ahead = {"b": 40000, "c": 5}  # seconds

    def setUp(self):
        super().setUp()
        self.network = namespaces.Network(self.names, self.families, self.clock_ahead)
        self.starter = self.network.starter(self.directory.name)

    def tearDown(self):
        super().tearDown()
        self.network.close()

    def on_a(self, ranks, hosts, *words, interface="10.77.0.1", environment=None):
        """`regroup run` on host a."""
        return self.start("-n", ranks, "--hosts", hosts, "--interface", interface, "--starter",
                          self.starter, *words, environment=environment,
                          prefix=self.network["a"].enter(self.directory.name))

    def ranks_on(self, host, variable="REGROUP_RANK="):
        found = {}
        for pid in self.network[host].pids():
            if FAKE_RANK.encode() not in command_line(pid):
                continue
            for word in environment_of(pid):
                if word.startswith(variable.encode()):
                    found[word.decode().split("=", 1)[1]] = pid
        return found

    def agent_on(self, host):
        return until(lambda: [pid for pid in self.network[host].pids()
                              if b"--stdio" in command_line(pid)], f"an agent on {host}")[0]

    def assert_nothing_on(self, *hosts):
        for host in hosts:
            until(lambda h=host: not self.network[h].pids(), f"the end of all on {host}", 15)

    def assert_comes_back(self, run, host, agents):
        """A spare is used up elsewhere, and the next one is started on this host. `agents`: how
        many have come from there by now."""
        until(lambda: sum(e["about"] == "host" and e["host"] == host
                          for e in run.events("note")) == agents, f"an agent from {host}")
        os.kill(self.ranks_on("a")["0"], signal.SIGKILL)
        self.settled(run, 1, epoch=3)
        until(lambda: self.ranks_on(host, "REGROUP_SPARE=1"), f"a spare on {host} again")

    def end_it(self, run, code=130):
        # The launcher is a child of nsenter, which passes no signal on.
        for pid in self.network["a"].pids():
            if self.command.encode() in command_line(pid)[:2]:
                os.kill(pid, signal.SIGINT)
        self.assert_ends(run, code)

    def settled(self, run, *ranks, epoch=1):
        run.wait_for(*[f"{rank}: view epoch={epoch} " for rank in ranks])


class Jobs(HostsCase):
    def test_a_job_runs_on_three_hosts_whose_clocks_differ(self):
        run = self.on_a(6, "a:2,b:2,c:2", "--", FAKE_RANK, "address=at-")
        self.assert_ends(run)
        self.assertIn("5: view epoch=1 seats=1,2,3,4,5,6", run.out)
        offsets = [e["offset_ns"] for e in run.events()]
        self.assertEqual(offsets, sorted(offsets))
        self.assertLess(offsets[-1], 60e9, "the clock of host b is hours ahead")
        self.assert_nothing_on("a", "b", "c")

    def test_a_killed_rank_is_replaced_in_its_own_seat(self):
        run = self.on_a(4, "a:2,b:2", "--spares", 2, "--", FAKE_RANK, "until=2", "linger",
                        "keep=precious")
        self.settled(run, 0, 3)
        until(lambda: self.ranks_on("b", "REGROUP_SPARE=1"), "a spare on b")
        os.kill(self.ranks_on("b")["3"], signal.SIGKILL)
        self.settled(run, 0, 3, epoch=2)
        run.wait_for("3: assigned seat=3 life=1", "3: kept mirror=precious")
        self.assertIn("rank 3 is on host b now; 3 kept", run.err)
        self.end_it(run)
        self.assert_nothing_on("a", "b")

    def test_a_host_without_a_spare_gets_one_from_elsewhere(self):
        hosts = os.path.join(self.directory.name, "hosts")
        with open(hosts, "w", encoding="utf-8") as file:
            file.write("a slots=2\nb slots=1\nc spare\n")
        run = self.start("-n", 3, "--hostfile", hosts, "--interface", "eth0", "--spares", 1,
                         "--starter", self.starter, "--", FAKE_RANK, "until=2", "kill=2",
                         prefix=self.network["a"].enter(self.directory.name))
        self.assert_ends(run)
        self.assertIn("2: assigned seat=2 life=1", run.out)
        self.assertIn("rank 2 is on host c now", run.err)

    def test_a_killed_launcher_leaves_nothing_anywhere(self):
        run = self.on_a(4, "a:2,b:2", "--", "sh", "-c", "setsid sleep 300 & echo up; sleep 300")
        run.wait_for("0: up", "1: up", "2: up", "3: up")
        launcher = [pid for pid in self.network["a"].pids() if b"run" in command_line(pid)[:2]]
        os.kill(launcher[0], signal.SIGKILL)
        run.end()
        self.assert_nothing_on("a", "b")

    def test_a_killed_agent_leaves_nothing_and_its_host_comes_back(self):
        run = self.on_a(4, "a:2,b:2", "--spares", 2, "--", "sh", "-c",
                        f"setsid sleep 300 & exec {FAKE_RANK} linger")
        self.settled(run, 0, 3)
        before = set(self.network["b"].pids())
        os.kill(self.agent_on("b"), signal.SIGKILL)
        self.settled(run, 0, 2, 3, epoch=2)
        until(lambda: not before & set(self.network["b"].pids()), "the end of what ran on b")
        self.assert_comes_back(run, "b", 2)
        self.end_it(run)
        self.assert_nothing_on("a", "b")


class Data(HostsCase):
    names = ("a", "b")

    @unittest.skipUnless(MODULE.exists(), "built without UCX")
    def test_uneven_shares_go_between_hosts_and_outlive_a_death(self):
        run = self.on_a(3, "a:2,b:2", "--spares", 1, "--", EXAMPLE, 20, 5,
                        environment={"UCX_TLS": "tcp"})
        self.assert_ends(run)
        self.assertIn("lookups=3772 wrong=0 as undisturbed", run.out)
        self.assertRegex(run.err, r"rank 1 .*lost: killed by SIGKILL")
        self.assert_nothing_on("a", "b")

    def sent(self, host):
        """Bytes that its network devices have sent, by device."""
        shown = self.network[host].run("ip", "-j", "-s", "link", "show").stdout
        return {device["ifname"]: device["stats64"]["tx"]["bytes"] for device in json.loads(shown)}

    @unittest.skipUnless(MODULE.exists() and PERF.exists(), "built without UCX or regroup-perf")
    def test_what_ranks_exchange_takes_the_link_and_no_other_way(self):
        operations, size = 11, 8 << 20  # one of them is checked and not timed
        run = self.on_a(2, "a:1,b:1", "--", PERF, "all_reduce", "-b", size, "-n", operations - 1,
                        "-w", 0, "--blocks", 1, "-c", 1, "--inplace", "out",
                        environment={"UCX_TLS": "tcp"})
        self.assert_ends(run)
        # Of two ranks each sends the other all of its input, or halves of input and result.
        due = operations * size
        for host in self.names:
            sent = self.sent(host)
            self.assertGreater(sent["eth0"], due, host)
            self.assertLess(sent["eth0"], 1.2 * due, host)
            self.assertLess(sent["lo"], 0.01 * due, host)

    @unittest.skipUnless(MODULE.exists(), "built without UCX")
    def test_a_link_with_smaller_packets_carries_the_same(self):
        self.network.run_on("b", "ip", "link", "set", "eth0", "mtu", "1280")
        run = self.on_a(3, "a:2,b:2", "--", EXAMPLE, 20, environment={"UCX_TLS": "tcp"})
        self.assert_ends(run)
        self.assertIn("lookups=3772 wrong=0 as undisturbed", run.out)


class LostHosts(HostsCase):
    def out_of_the_view(self, run, cut_at):
        """Seconds from the cut to the view without that host."""
        view = until(lambda: [e for e in run.events("view_installed") if e["epoch"] == 2],
                     f"the second view of {run}")[0]
        return seconds_of(view["time"]) - cut_at

    def test_a_silent_host_is_out_in_time_and_comes_back_as_spare(self):
        run = self.on_a(4, "a:2,b:1,c:1", "--spares", 3, "--", FAKE_RANK, "until=3", "linger")
        self.settled(run, 0, 1, 2, 3)
        for host in "abc":
            until(lambda h=host: self.ranks_on(h, "REGROUP_SPARE=1"), f"a spare on {host}")
        lost = self.ranks_on("b")["2"]
        self.assertNotEqual(run.out.count(": view epoch=1"), 0)
        cut_at = self.network.cut("b")
        self.settled(run, 0, 1, 2, 3, epoch=2)
        took = self.out_of_the_view(run, cut_at)
        print(f"a silent host was out of the view after {took:.3f} s", file=sys.stderr)
        self.assertLess(took, DETECT_MAX)
        self.assertNotIn("2: loss", run.out, "the lost rank can have heard of nothing")
        self.assertIn(lost, self.network["b"].pids(), "what is cut off runs on")
        self.network.heal("b")
        until(lambda: lost not in self.network["b"].pids(), "the end of the removed rank")
        self.assert_comes_back(run, "b", 1)
        self.end_it(run)
        self.assert_nothing_on("a", "b", "c")

    def test_a_power_cut_costs_the_host_and_not_the_job(self):
        run = self.on_a(4, "a:2,b:2", "--spares", 2, "--", FAKE_RANK, "until=2", "linger")
        self.settled(run, 0, 1, 2, 3)
        self.network["b"].power_off()
        self.settled(run, 0, 1, 2, 3, epoch=2)
        run.wait_for("E-HOST-3")
        self.end_it(run)
        self.assert_nothing_on("a")

    def test_a_smaller_job_goes_on_without_the_host(self):
        run = self.on_a(4, "a:2,b:2", "--on-loss", "shrink", "--", FAKE_RANK, "until=2")
        self.settled(run, 0, 1)
        self.network.cut("b")
        self.assert_ends(run)
        self.assertIn("0: view epoch=2 seats=1,2,0,0", run.out)
        self.network.heal("b")
        self.assert_nothing_on("a", "b")

    def test_the_smaller_side_decides_nothing_and_goes_on_when_healed(self):
        run = self.on_a(3, "a:1,b:2", "--", FAKE_RANK, "until=2", "linger")
        self.settled(run, 0, 1, 2)
        self.network.cut("b")
        until(lambda: any("no quorum" in e.get("text", "") for e in run.events("note")),
              "the smaller side's word that it waits")
        self.assertEqual([e["epoch"] for e in run.events("view_installed")], [1])
        self.network.heal("b")
        self.settled(run, 0, 1, 2, epoch=2)
        self.assertIn("0: view epoch=2 seats=1,2,3", run.out, "nobody was lost")
        self.end_it(run)
        self.assert_nothing_on("a", "b")

    def test_a_host_that_is_cut_off_for_good_ends_what_it_has(self):
        run = self.on_a(2, "a:1,b:1", "--on-loss", "shrink", "--", FAKE_RANK, "until=2", "linger")
        self.settled(run, 0, 1)
        self.network.cut("b")
        run.wait_for("0: view epoch=2 seats=1,0")
        self.end_it(run)
        # Its input ends with the starter here; over a real network it would be the 60 s.
        self.assert_nothing_on("a", "b")


class Families(HostsCase):
    families = {"a": "46", "b": "4", "c": "6"}
    clock_ahead = None

    def test_a_host_without_the_address_family_is_named(self):
        run = self.on_a(2, "a:1,b:1", "--", "true", interface="fd77::1")
        self.assert_ends(run, 69)
        self.assertIn("E-HOST-5", run.err)
        self.assertIn("[fd77::1]", run.err)
        self.assertRegex(run.err, re.compile("unreachable|--interface"))

    def test_version_6_is_as_good_as_version_4(self):
        run = self.on_a(2, "a:1,c:1", "--", FAKE_RANK, interface="fd77::1")
        self.assert_ends(run)

    def test_an_unreachable_host_is_named(self):
        run = self.on_a(2, "a:1,nowhere:1", "--", "true")
        self.assert_ends(run, 69)
        self.assertIn("host nowhere cannot be used: no route to host nowhere", run.err)


if __name__ == "__main__":
    reason = namespaces.why_not()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    unittest.main()

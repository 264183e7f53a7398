"""A cluster of hosts (network namespaces): what users see when a host is lost, or the network between some of them."""
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import sys
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))

from cluster import BUILD, sanitizer_reports, wait_until  # noqa: E402
from netcluster import Cluster  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
              pytest.mark.skipif(shutil.which("etcd") is None, reason="needs etcd")]


@pytest.fixture(scope="module")
def hosts(examples):
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    pid = os.getpid()
    tag = "h" + "".join(digits[pid // 36 ** i % 36] for i in range(4))  # with a worker's number: six letters, an instance's name
    cluster = Cluster(BUILD, tag)
    try:
        yield cluster.start()
        problems = [line for p in cluster.programs for line in sanitizer_reports(p.log())]
    finally:
        bad = cluster.remove()
    assert bad == [] and problems == []
    left = [n for n in os.listdir("/run/netns") if n.startswith(tag)] if os.path.isdir("/run/netns") else []
    left += [d for d, names, _ in os.walk("/sys/fs/cgroup", onerror=lambda e: None) if f"dirigent-{tag}" in d]
    assert left == []


@pytest.fixture
def whole(hosts):
    """All there, nothing cut. What was logged is shown when the test fails."""
    yield hosts
    for h in hosts.hosts:
        h.heal()
    for p in hosts.programs:
        p.resume()
        if not p.is_running():
            p.start()
    for p in hosts.programs[3:]:
        print(f"===== {p.name}\n{p.log()[-1500:]}")
    hosts.wait_leader()
    hosts.wait_nodes()


def deploy(cluster, name, *flags):
    cluster.cli("deploy", name, "--dir", ROOT / "examples" / "c", "--command", "./server", "--memory", "32Mi", *flags)


def cold(cluster, name):
    """A function without any sandbox."""
    deploy(cluster, name, "--no-wait")
    return name


class Calls:
    """One call after the other through each data plane, from the client's host."""

    def __init__(self, cluster, name, planes=(0, 1)):
        self.cluster, self.name, self.good, self.bad, self.stopping = cluster, name, 0, [], False
        self.longest = 0.0
        self.threads = [threading.Thread(target=self.run, args=(p,)) for p in planes]

    def run(self, plane):
        while not self.stopping:
            began = time.monotonic()
            try:
                status, text = self.cluster.call(self.name, plane, timeout=30)
            except OSError as error:
                status, text = 0, repr(error)
            self.longest = max(self.longest, time.monotonic() - began)
            if status == 200:
                self.good += 1
            else:
                self.bad.append((round(time.monotonic() - began, 3), status, text[:120]))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self.stopping = True
        for thread in self.threads:
            thread.join()


def epochs(cluster):
    """Every leadership there was: the epoch and who says that it led."""
    return sorted((int(e), p.name) for p in cluster.programs if p.name.startswith("control-plane")
                  for e in re.findall(r"control_plane\.leads epoch=(\d+)", p.log()))


def no_epoch_twice(cluster):
    taken = [e for e, _ in epochs(cluster)]
    assert len(taken) == len(set(taken)), epochs(cluster)


def workers_of(cluster, name):
    code, found = cluster.api("GET", f"/v1/sandboxes?function={name}", at=cluster.leader())
    assert code == 200
    return [s["worker"] for s in found["items"] if s["state"] == "ready"]


def sandbox_ids(cluster, name):
    code, found = cluster.api("GET", f"/v1/sandboxes?function={name}", at=cluster.leader())
    assert code == 200
    return {s["id"] for s in found["items"]}


def settle(cluster):
    """Past the tenure in which a new leader is not replaced on suspicion."""
    time.sleep(2.2)


def test_whole_and_anybody_answers(whole):
    deploy(whole, "first")
    for plane in range(len(whole.planes)):
        assert whole.call("first", plane)[0] == 200
    for h in whole.controls:  # also from another host, with the key
        status, text = whole.client.http("GET", h.address, 9091, "/v1/functions", headers={"Authorization": f"Bearer {whole.key}"})
        assert status == 200 and "first" in text.decode()
        status, _ = whole.client.http("GET", h.address, 9091, "/v1/functions")
        assert status == 401
    states = {c["name"]: c["leads"] for c in whole.status()["control_planes"]}
    assert sum(states.values()) == 1 and len(states) == 3


def test_the_host_of_the_leader_is_lost(whole):
    deploy(whole, "warm")
    cold(whole, "behind")
    settle(whole)
    leader, before = whole.leader(), whole.status()["epoch"]
    with Calls(whole, "warm") as calls:
        leader.cut()
        began = time.monotonic()
        status, text = whole.call("behind")
        took = time.monotonic() - began
        assert status == 200, text
        time.sleep(1)
    print(f"cold call behind the loss of the leader's host: {took * 1000:.0f} ms")
    assert took < 3 and calls.bad == [] and calls.good > 50
    successor = whole.wait_leader(other_than=leader)
    assert whole.status()["epoch"] > before
    leader.heal()
    whole.wait_leader(other_than=leader)
    assert whole.leader() is successor, "the old leader stands by"
    no_epoch_twice(whole)


def test_a_leader_that_only_its_standbys_do_not_hear(whole):
    settle(whole)
    leader, before = whole.leader(), len(epochs(whole))
    others = [h for h in whole.controls if h is not leader]
    deploy(whole, "warm")
    with Calls(whole, "warm") as calls:
        for h in others:
            h.part_from_port(9090, leader)
        leader.part_from_port(9090, *others)
        time.sleep(4.5)
        for h in whole.controls:
            h.heal()
        time.sleep(0.5)
    # it is replaced once, by the majority; who leads is heard by the majority from then on
    assert len(epochs(whole)) - before <= 2
    assert calls.bad == []
    deploy(whole, "after")
    no_epoch_twice(whole)


def test_a_leader_that_does_not_reach_etcd_makes_way(whole):
    settle(whole)
    leader = whole.leader()
    leader.part_from_port(2379, *whole.controls)  # its own member too
    whole.wait_leader(other_than=leader, seconds=15)
    deploy(whole, "elsewhere")
    assert whole.call("elsewhere")[0] == 200
    leader.heal()
    no_epoch_twice(whole)


def test_one_way_losses_make_nobody_flap(whole):
    settle(whole)
    deploy(whole, "warm")
    for direction in (True, False):
        leader, before = whole.leader(), len(epochs(whole))
        standby = next(h for h in whole.controls if h is not leader)
        with Calls(whole, "warm") as calls:
            (leader if direction else standby).part_from(standby if direction else leader, one_way=True)
            time.sleep(3)
            assert len(epochs(whole)) - before <= 2, "at most one takeover in 2 s"
            for h in whole.controls:
                h.heal()
        assert calls.bad == []
        whole.wait_leader()
    no_epoch_twice(whole)


def test_the_host_of_a_worker_is_lost(whole):
    deploy(whole, "spread", "--min", "4", "--concurrency", "1")
    wait_until(lambda: len(set(workers_of(whole, "spread"))) >= 3, 30, "sandboxes on several workers")
    lost = workers_of(whole, "spread")[0]
    with Calls(whole, "spread") as calls:
        whole.host(lost).cut()
        began = time.monotonic()
        wait_until(lambda: lost not in workers_of(whole, "spread"), 5, "the control plane to know")
        known = time.monotonic() - began
        wait_until(lambda: len(workers_of(whole, "spread")) >= 4, 10, "replacements")
        replaced = time.monotonic() - began
        time.sleep(2)
    print(f"a worker's host lost: known after {known * 1000:.0f} ms, replaced after {replaced * 1000:.0f} ms, "
          f"{len(calls.bad)} of {calls.good} calls failed, the longest took {calls.longest * 1000:.0f} ms")
    assert known < 1.5
    assert len(calls.bad) <= 2, "at most what was in flight there: one call by each data plane"
    assert calls.good > 50
    whole.host(lost).heal()
    whole.wait_nodes()


def test_a_worker_that_the_control_planes_do_not_reach(whole):
    deploy(whole, "kept", "--min", "1")
    place = wait_until(lambda: workers_of(whole, "kept"), 20, "its sandbox")[0]
    host, program = whole.host(place), whole.program(f"worker{place[1:]}")
    with Calls(whole, "kept", planes=(0,)) as calls:
        host.part_from(*whole.controls)
        time.sleep(4)
        assert place not in workers_of(whole, "kept")
        host.heal()
        whole.wait_nodes()
        time.sleep(1)
    assert len(calls.bad) <= 2, calls.bad  # what was in flight there when it was given up
    assert program.is_running()
    # what was there and what was started in its place are counted together
    assert len(sandbox_ids(whole, "kept")) <= 2


def test_a_data_plane_that_the_control_planes_do_not_reach(whole):
    deploy(whole, "warm")
    assert whole.call("warm", 1)[0] == 200 and whole.call("warm", 0)[0] == 200  # the one that is cut off has its slot
    cold(whole, "never")
    deploy(whole, "hasty", "--no-wait", "--timeout", "2s")
    plane = whole.planes[0]
    plane.part_from(*whole.controls)
    time.sleep(2)
    with Calls(whole, "warm", planes=(0,)) as calls:
        began = time.monotonic()
        status, text = whole.call("hasty", 0)
        took = time.monotonic() - began
    assert calls.bad == [] and calls.good > 10, "what is warm goes on"
    assert status in (503, 504) and 1.5 < took < 4, (status, text, took)
    assert json.loads(text)["error"]["message"], "and what is cold hears why"
    assert whole.call("hasty", 1)[0] == 200, "by the other data plane it starts"
    plane.heal()
    whole.wait_nodes()
    assert whole.call("never", 0)[0] == 200


def test_a_data_plane_that_does_not_reach_a_worker(whole):
    deploy(whole, "two", "--min", "4", "--concurrency", "1")
    wait_until(lambda: len(set(workers_of(whole, "two"))) >= 2, 30, "sandboxes on several workers")
    place = workers_of(whole, "two")[0]
    whole.planes[0].part_from(whole.host(place))
    with Calls(whole, "two", planes=(0,)) as calls:
        time.sleep(4)
    print(f"a worker that one data plane does not reach: {len(calls.bad)} of {calls.good} calls failed, the longest took "
          f"{calls.longest * 1000:.0f} ms")
    assert len(calls.bad) <= 1 and calls.good > 50
    assert place in workers_of(whole, "two"), "it is not dead for that"
    whole.planes[0].heal()


def test_the_host_of_a_data_plane_is_lost(whole):
    deploy(whole, "one", "--min", "1")
    whole.planes[0].cut()
    began = time.monotonic()
    wait_until(lambda: whole.alive("/v1/data-planes") == 1, 10, "the control plane to know")
    known = time.monotonic() - began
    assert known < 2.5, known
    deploy(whole, "new")  # is answered when every data plane that is there has it
    assert whole.call("new", 1)[0] == 200 and whole.call("one", 1)[0] == 200
    whole.planes[0].heal()
    whole.wait_nodes()
    wait_until(lambda: whole.call("new", 0)[0] == 200, 10, "the data plane to have all it needs")


def test_etcd_loses_members_and_its_majority(whole):
    deploy(whole, "warm")
    settle(whole)
    names = []
    template = json.loads(whole.cli("describe", "warm", "-o", "json").stdout)["spec"]

    def put(i):
        spec = {k: v for k, v in template.items() if k != "name"}
        leader = whole.leader()
        if leader is None:
            return 0
        status, _ = whole.api("PUT", f"/v1/functions/ledger{i}", json.dumps(spec), at=leader, timeout=20)
        if status in (200, 201):
            names.append(f"ledger{i}")
        return status
    assert put(0) == 201
    with Calls(whole, "warm") as calls:
        first = whole.etcd_leader()
        whole.program(f"etcd{first.name[1:]}").kill()
        began = time.monotonic()
        wait_until(lambda: put(1) in (200, 201), 20, "writes without one member")
        print(f"writes go on {1000 * (time.monotonic() - began):.0f} ms after the death of etcd's leader")
        second = next(h for h in whole.controls if h is not first)
        whole.program(f"etcd{second.name[1:]}").kill()
        time.sleep(1)
        status = put(2)
        assert status not in (200, 201), "nothing is acknowledged without a majority"
        whole.program(f"etcd{first.name[1:]}").start()
        wait_until(lambda: put(3) in (200, 201), 30, "writes after the majority is back")
        whole.program(f"etcd{second.name[1:]}").start()
    assert calls.bad == [], calls.bad[:3]
    wait_until(lambda: put(4) in (200, 201), 20, "writes with all")
    # every acknowledged registration is there, by whoever leads next
    leader = whole.leader()
    whole.program(f"control-plane{leader.name[1:]}").kill()
    whole.wait_leader(other_than=leader)
    whole.program(f"control-plane{leader.name[1:]}").start()
    code, found = whole.api("GET", "/v1/functions", at=whole.leader())
    assert code == 200 and set(names) <= {f["name"] for f in found["items"]}
    no_epoch_twice(whole)


def test_packets_are_lost_everywhere(whole):
    deploy(whole, "warm")
    for h in whole.hosts:
        if h is not whole.client:
            h.lose(5)
    with Calls(whole, "warm") as calls:
        time.sleep(4)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda i: whole.call(cold(whole, f"lossy{i}"), i % 2)[0], range(4)))
    assert answers == [200] * 4 and calls.bad == [], calls.bad[:3]
    assert calls.good > 20

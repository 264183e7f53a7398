"""F28: programs of neighbouring versions. There is one version of the cluster protocol yet, so the next one's programs are played
by builds with -Dtest_hooks=true that claim to speak ours and one more, and say things that ours do not know (wire/protocol.h)."""
import http.client
import itertools
import os
import signal
import time

import pytest

from callers import Callers
from cluster import BUILD, http_call, wait_until
from replicated import Replicated, started, there_is_etcd
from test_user_path import APP

there_are_hooks = (BUILD / "dirigent").exists() and b"PROTOCOL_VERSIONS" in (BUILD / "dirigent").read_bytes()
pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
              pytest.mark.skipif(not there_is_etcd(), reason="needs etcd"),
              pytest.mark.skipif(not there_are_hooks, reason="needs a build with -Dtest_hooks=true")]
OURS, NEXT, LATER = {}, {"PROTOCOL_VERSIONS": "1-2"}, {"PROTOCOL_VERSIONS": "2-3"}


class Balanced(Callers):
    """Calls without a pause, by somebody who asks the next data plane where one does not take the request."""

    def __init__(self, cluster, name):
        super().__init__(2)
        self.ports, self.name = cluster.invoke_ports, name

    def ask_one(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/", headers={"Host": self.name})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, which):
        for attempt in range(len(self.ports)):
            try:
                status, text = self.ask_one(self.ports[(which + attempt) % len(self.ports)])
                if b"not_ready" not in text:  # a balancer would have seen it in /readyz
                    break
            except (OSError, http.client.HTTPException) as error:
                status, text = 0, repr(error)
        return status, text


@pytest.fixture
def make():
    with started(Replicated) as make:
        yield make


@pytest.mark.parametrize("control_plane,data_plane,worker", itertools.product([OURS, NEXT], repeat=3),
                         ids=lambda v: "next" if v else "ours")
def test_neighbours_work_together(control_plane, data_plane, worker):
    class Mixed(Replicated):
        def start(self):
            self.control_planes[0].environment = control_plane
            self.data_planes[0].environment = data_plane
            self.workers[0].environment = worker
            return super().start()
    with started(lambda: Mixed(control_planes=1, etcd_members=1, flags=["--i-know"])) as make:
        cluster = make()
        cluster.deploy("hello", {"app.py": APP}, "--max", "3", "--concurrency", "1")
        assert cluster.call("hello").status == 200
        assert cluster.ok("logs", "hello").code == 0
        cluster.deploy("hello", {"app.py": APP + "\n# changed"})
        assert cluster.call("hello").status == 200
        cluster.control_planes[0].kill()
        cluster.control_planes[0].start()
        cluster.wait_leader()
        wait_until(lambda: cluster.sandboxes("hello", "ready"), 20, "its sandboxes to be told of")
        cluster.ok("delete", "hello")
        wait_until(lambda: not cluster.sandboxes("hello"), 20, "its sandboxes to end")


def restart(cluster, program, environment):
    """As systemd does: a worker is told to leave its sandboxes."""
    program.signal(signal.SIGUSR1 if program in cluster.workers else signal.SIGTERM)
    assert program.process.wait(30) == 0
    program.environment = environment
    program.start()
    wait_until(lambda: cluster.alive("/v1/workers") == len(cluster.workers), 30, "the workers")
    wait_until(lambda: cluster.alive("/v1/data-planes") == len(cluster.data_planes), 30, "the data planes")
    cluster.wait_leader()
    wait_until(lambda: all(answers(port) for port in cluster.api_ports), 30, "the control planes to answer")


def answers(port):
    try:
        return http_call(port, "GET", "/v1/status", timeout=5).status == 200
    except OSError:
        return False


def test_a_cluster_is_upgraded_and_back_under_load(make):
    """In the order of docs/operations.md, and backwards: no call fails, no sandbox is lost or started again, and what is registered
    is there."""
    cluster = make(control_planes=3, data_planes=2, workers=2)
    cluster.deploy("steady", {"app.py": APP}, "--min", "2", "--max", "2", "--concurrency", "8")
    before = wait_until(lambda: len(found := {s["id"] for s in cluster.sandboxes("steady", "ready")}) == 2 and found, 30,
                        "its sandboxes")
    with Balanced(cluster, "steady") as calls:
        for version in (NEXT, OURS):
            leader = cluster.control_planes[cluster.wait_leader()]
            standbys = [p for p in cluster.control_planes if p is not leader]
            order = [*standbys, leader, *cluster.data_planes, *cluster.workers]
            for i, program in enumerate(order if version else order[::-1]):
                restart(cluster, program, version)
                cluster.deploy(f"step-{len(version)}-{i}", {"app.py": APP})
                assert cluster.call(f"step-{len(version)}-{i}", plane=i % 2).status == 200
                assert calls.bad == [], (program.name, calls.bad[:3])
            time.sleep(0.5)
    assert calls.bad == [] and calls.good > 100
    assert {s["id"] for s in cluster.sandboxes("steady", "ready")} == before
    assert len(cluster.items("/v1/functions")) == 1 + 2 * 7


def test_versions_too_far_apart_are_refused_with_a_sentence(make):
    """By the control plane, of a program that no longer speaks its version, which goes on asking; nothing else is disturbed."""
    cluster = make(control_planes=1, data_planes=2, workers=2, etcd_members=1, flags=["--i-know"])
    cluster.deploy("hello", {"app.py": APP}, "--min", "1")
    sentence = ("it speaks the cluster protocol 2 to 3, and this control plane 1 to 1: upgrade the control planes first, then the "
                "others, one version at a time")
    with Balanced(cluster, "hello") as calls:
        for program in (cluster.data_planes[1], cluster.workers[1]):
            program.stop()
            program.environment = LATER
            program.start()
            wait_until(lambda: sentence in program.log(), 10, "the refusal")
            assert sentence in cluster.control_planes[0].log() and program.is_running()
            time.sleep(0.3)
    assert calls.bad == [], calls.bad[:3]
    for program in (cluster.data_planes[1], cluster.workers[1]):
        program.stop()
        program.environment = NEXT
        program.start()
    wait_until(lambda: cluster.alive("/v1/workers") == 2 and cluster.alive("/v1/data-planes") == 2, 20, "all of them")

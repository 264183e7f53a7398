"""Two workers on one host: an operator takes one out of use, empties it under load, and forgets it."""
import os
import signal
import subprocess

import pytest

from callers import KeptCalls
from cluster import BUILD, Place, command_line, free_ports, wait_until
from test_user_path import APP


class SecondWorker:
    """`dirigent worker` beside the one of `up`, as on another host: own addresses, directories and names."""

    def __init__(self, cluster, name="second"):
        self.cluster, self.name, self.place = cluster, name, Place()
        self.directory = cluster.directory / name
        self.instance = cluster.instance[:-1] + "w"
        self.process = None

    def start(self):
        command = [BUILD / "dirigent", "worker", "--control-plane", f"127.0.0.1:{self.cluster.cluster_port}",
                   "--name", self.name, "--address", "127.0.0.1", "--data-dir", self.directory / "data", "--run-dir",
                   self.directory / "run", "--address-pool", self.place.pool, "--host-port-base",
                   str(self.place.host_port_base), "--slots", "64", "--blanks", "8", "--instance", self.instance,
                   "--metrics", f"127.0.0.1:{free_ports(1)[0]}"]
        self.directory.mkdir(exist_ok=True)
        with open(self.cluster.log_path, "a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(lambda: self.view() and self.view()["state"] == "alive", 30, "the second worker")
        return self

    def view(self):
        return next((w for w in self.cluster.items("/v1/workers") if w["name"] == self.name), None)

    def end(self, number):
        self.process.send_signal(number)
        assert self.process.wait(60) == 0

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.end(signal.SIGTERM)
        self.place.leave()


@pytest.fixture
def two(new_cluster):
    """A cluster with a second worker, and the name of the first."""
    cluster = new_cluster()
    first = cluster.items("/v1/workers")[0]["name"]
    second = SecondWorker(cluster).start()
    yield cluster, first, second
    second.stop()


def workers_of(cluster, name):
    return sorted(s["worker"] for s in cluster.sandboxes(name, "ready"))


def test_a_drained_worker_loses_no_request(two):
    cluster, first, second = two
    cluster.ok("worker", "cordon", "second")
    cluster.deploy("hello", {"app.py": APP}, "--min", "2", "--concurrency", "10")
    cluster.wait_sandboxes(2, "hello")
    assert workers_of(cluster, "hello") == [first, first]
    cluster.ok("worker", "uncordon", "second")
    with KeptCalls(cluster.invoke_port, "hello", 3) as load:
        load.wait_good(20)
        done = cluster.ok("worker", "drain", first)
        assert f"{first} is empty" in done.out
        load.wait_good(50)
    assert load.bad == []
    assert workers_of(cluster, "hello") == ["second", "second"]
    assert "draining" in cluster.ok("workers").out


def test_one_sandbox_at_most_is_moved_too(two):
    cluster, first, second = two
    cluster.ok("worker", "cordon", "second")
    cluster.deploy("one", {"app.py": APP}, "--min", "1", "--max", "1", "--concurrency", "10")
    cluster.ok("worker", "uncordon", "second")
    with KeptCalls(cluster.invoke_port, "one", 3) as load:
        load.wait_good(20)
        cluster.ok("worker", "drain", first)
        load.wait_good(20)
    assert load.bad == []
    assert workers_of(cluster, "one") == ["second"]


def test_without_room_elsewhere_what_serves_stays(two):
    cluster, first, second = two
    cluster.ok("worker", "cordon", "second")
    cluster.deploy("hello", {"app.py": APP}, "--min", "1")
    refused = cluster.cli("worker", "drain", first, "--timeout", "1s")
    assert refused.code != 0 and "other workers may lack room" in refused.err
    assert workers_of(cluster, "hello") == [first]
    assert cluster.call("hello").status == 200
    cluster.ok("worker", "uncordon", "second")
    wait_until(lambda: workers_of(cluster, "hello") == ["second"], 20, "the move")


def test_workers_tell_how_many_blanks_they_have(two):
    cluster, first, _ = two
    blanks = lambda: {w["name"]: w["blanks_ready"] for w in cluster.items("/v1/workers")}
    wait_until(lambda: blanks() == {first: 8, "second": 8}, 20, "eight blanks each")
    cluster.deploy("hello", {"app.py": APP}, "--min", "4", "--concurrency", "1")
    cluster.wait_sandboxes(4, "hello")
    old = cluster.kill_program("worker")
    cluster.wait_restarted("worker", old)
    wait_until(lambda: blanks() == {first: 8, "second": 8}, 20, "as many again, told to the daemon that came after")
    assert "8" in cluster.ok("workers").out


def test_use_is_remembered_and_a_stopped_worker_is_forgotten(two):
    cluster, first, second = two
    cluster.ok("worker", "cordon", "second")
    old = cluster.kill_program("control-plane")
    cluster.wait_restarted("control-plane", old)
    wait_until(lambda: cluster.cli("workers").code == 0, 20, "the API")
    wait_until(lambda: second.view()["state"] == "alive", 20, "the worker's return")
    assert second.view()["use"] == "cordoned"
    refused = cluster.cli("worker", "remove", "second")
    assert refused.code == 1 and "is connected: stop it first" in refused.err
    second.stop()
    wait_until(lambda: second.view()["state"] != "alive", 20, "the worker's end")
    cluster.ok("worker", "remove", "second")
    assert second.view() is None
    assert "there is no worker 'second'" in cluster.cli("worker", "cordon", "second").err


def test_a_worker_that_is_restarted_leaves_its_sandboxes_and_an_empty_one_leaves_nothing(two):
    """SIGUSR1, as the systemd unit sends it (deploy/systemd)."""
    cluster, first, second = two
    cluster.ok("worker", "cordon", first)
    cluster.deploy("hello", {"app.py": APP}, "--min", "2", "--max", "2", "--concurrency", "10")
    cluster.wait_sandboxes(2, "hello")
    before = {s["id"] for s in cluster.sandboxes("hello", "ready")}
    with KeptCalls(cluster.invoke_port, "hello", 3) as load:
        load.wait_good(20)
        second.end(signal.SIGUSR1)
        load.wait_good(50)
        second.start()
        load.wait_good(50)
    assert load.bad == []
    assert {s["id"] for s in cluster.sandboxes("hello", "ready")} == before
    cluster.ok("delete", "hello")
    wait_until(lambda: not cluster.sandboxes("hello"), 20, "its sandboxes to end")
    second.end(signal.SIGUSR1)
    left = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if any(str(second.directory) in word for word in command_line(pid))]
    assert left == []


def test_what_makes_no_sense_is_refused(cluster):
    name = cluster.items("/v1/workers")[0]["name"]
    for body, word in [({"use": "never"}, "cordoned"), ({"used": "all"}, "used"), ([], "object"), ("{", "JSON")]:
        answer = cluster.api("PATCH", f"/v1/workers/{name}", body)
        assert answer.status in (400, 422) and word in answer.text, answer
    assert cluster.api("PATCH", "/v1/workers/nobody", {"use": "all"}).status == 404
    assert cluster.api("DELETE", "/v1/data-planes/nobody").status == 404
    assert cluster.api("DELETE", f"/v1/workers/{name}").status == 409
    assert cluster.api("GET", f"/v1/workers/{name}").json["use"] == "all"
    plane = cluster.items("/v1/data-planes")[0]["name"]
    refused = cluster.cli("data-plane", "remove", plane)
    assert refused.code == 1 and "is connected" in refused.err

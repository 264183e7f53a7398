"""kill -9 of each program, at rest, under warm load and in the middle of a cold start: what docs/failure-model.md
promises for each."""
import http.client
import os
import signal
import subprocess
import threading
import time

import pytest

from callers import KeptCalls
from cluster import SANITIZED, is_alive, wait_until
from test_user_path import APP

SLOW = "import time\ntime.sleep(1.5)\n" + APP
PROGRAMS = ["control-plane", "data-plane", "worker", "launcher"]


@pytest.fixture
def busy(new_cluster):
    """A cluster with a function that has a few sandboxes."""
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "--min", "2", "--concurrency", "10")
    cluster.wait_sandboxes(2, "hello")
    return cluster


@pytest.mark.parametrize("program", PROGRAMS)
def test_under_warm_load(busy, program):
    with KeptCalls(busy.invoke_port, "hello", 3) as load:
        load.wait_good(20)
        old = busy.kill_program(program)
        busy.wait_restarted(program, old)
        load.wait_good(200)
        bad_then = len(load.bad)
        load.wait_good(200)
        assert len(load.bad) == bad_then, load.bad[bad_then:][:5] # it has passed
    if program in ("control-plane", "worker"):
        assert load.bad == [] # routes and sandboxes live on without them
    busy.wait_sandboxes(2, "hello", seconds=60)


def test_the_worker_adopts_its_sandboxes(busy):
    before = {s["id"] for s in busy.sandboxes("hello", "ready")}
    old = busy.kill_program("worker")
    busy.wait_restarted("worker", old)
    wait_until(lambda: busy.items("/v1/workers")[0]["state"] == "alive", 20, "the worker to be back")
    time.sleep(1)
    assert {s["id"] for s in busy.sandboxes("hello", "ready")} == before


def test_logs_are_followed_over_the_death_of_the_worker(busy):
    follower = subprocess.Popen([busy.command()[0], "logs", "hello", "-f", "--plain"], env={**os.environ, "DIRIGENT_API": busy.api_url},
                                stdout=subprocess.PIPE, text=True)
    try:
        busy.call("hello", "/follow/before")
        while "/follow/before" not in (line := follower.stdout.readline()):
            assert line
        old = busy.kill_program("worker")
        busy.wait_restarted("worker", old)
        wait_until(lambda: busy.items("/v1/workers")[0]["state"] == "alive", 20, "the worker to be back")
        busy.call("hello", "/follow/after")
        while "/follow/after" not in (line := follower.stdout.readline()):
            assert line
        busy.ok("delete", "hello")
        assert follower.wait(20) == 0
    finally:
        follower.kill()
        follower.wait()


def test_the_control_plane_reads_its_sandboxes_from_the_worker(busy):
    before = {s["id"] for s in busy.sandboxes("hello", "ready")}
    old = busy.kill_program("control-plane")
    busy.wait_restarted("control-plane", old)

    def back():
        try:
            return {s["id"] for s in busy.sandboxes("hello", "ready")} == before
        except (OSError, AssertionError):
            return False
    wait_until(back, 20, "the same sandboxes")


def test_the_death_of_the_launcher_is_the_death_of_its_sandboxes(busy):
    sandboxes = {s["id"] for s in busy.sandboxes("hello", "ready")}
    below = [pid for pid in busy.tree() if pid not in [busy.pid(p) for p in ("up", "control-plane", "data-plane", "worker")]]
    os.kill(busy.pid("launcher"), signal.SIGKILL)
    wait_until(lambda: not [pid for pid in below if is_alive(pid)], 15, "the end of all of the launcher's processes")
    wait_until(lambda: {s["id"] for s in busy.sandboxes("hello", "ready")}.isdisjoint(sandboxes) and
               len(busy.sandboxes("hello", "ready")) == 2, 40, "new sandboxes")
    assert busy.call("hello").status == 200


def test_a_data_plane_that_starts_alone_serves_what_it_knew(busy):
    snapshot = busy.data_dir / "data-plane" / "snapshot"
    known = busy.sandboxes("hello", "ready")
    wait_until(lambda: snapshot.exists() and all(s["address"].encode() in snapshot.read_bytes() for s in known), 10,
               "the snapshot")
    control_plane = busy.pid("control-plane")
    os.kill(control_plane, signal.SIGSTOP)
    try:
        busy.wait_restarted("data-plane", busy.kill_program("data-plane"))

        def served():
            try:
                return busy.call("hello").status == 200
            except OSError:
                return False
        wait_until(served, 10, "an answer without a control plane")
        assert all(busy.call("hello").status == 200 for _ in range(50))
        assert busy.call("unknown").status == 404
    finally:
        os.kill(control_plane, signal.SIGCONT)
    wait_until(lambda: "control_plane.joined" in busy.log().split("snapshot.taken")[-1], 20, "the control plane's return")
    assert busy.call("hello").status == 200
    assert sorted(s["id"] for s in busy.sandboxes("hello", "ready")) == sorted(s["id"] for s in known)


@pytest.mark.parametrize("program", PROGRAMS)
def test_in_the_middle_of_a_cold_start(new_cluster, program):
    cluster = new_cluster()
    cluster.deploy("slow", {"app.py": SLOW}, "--no-wait")
    answers = []

    def call():
        try:
            answer = cluster.call("slow", timeout=90)
            answers.append(answer.status if answer.status == 200 else repr(answer))
        except (OSError, http.client.HTTPException) as error:
            answers.append(type(error).__name__)
    caller = threading.Thread(target=call)
    caller.start()
    wait_until(lambda: cluster.sandboxes("slow", "starting"), 20, "a sandbox that starts")
    time.sleep(0.2)
    old = cluster.kill_program(program)
    caller.join(90)
    assert not caller.is_alive()
    if program == "data-plane":
        assert answers[0] != 200 # it died with the request
    else:
        assert answers == [200], (answers, cluster.log()[-3000:])
    cluster.wait_restarted(program, old)

    def answered():
        try:
            return cluster.call("slow").status == 200
        except (OSError, http.client.HTTPException):
            return False
    wait_until(answered, 60, "an answer afterwards")


def test_all_programs_at_once(busy):
    for program in ("worker", "data-plane", "control-plane", "launcher"):
        os.kill(busy.pid(program), signal.SIGKILL)

    def answered():
        try:
            return busy.call("hello").status == 200
        except (OSError, http.client.HTTPException):
            return False
    wait_until(answered, 60, "an answer")

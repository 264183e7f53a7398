"""Too much at once, again and again, or just when something fails."""
import collections
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

import pytest

from callers import KeptCalls
from cluster import BUILD, http_call, wait_until
from herd import herd
from replicated import Replicated, there_is_etcd
from test_user_path import APP

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def deploy_c(cluster, name, examples, *flags):
    cluster.deploy(name, examples / "c", "--command", "./server", "--memory", "16Mi", "--cpu", "0.05", *flags)


def test_ten_thousand_requests_at_once_to_one_cold_function(new_cluster, examples):
    """F37: all are answered, by no more sandboxes than may be, and none waits after there is room."""
    cluster = new_cluster()
    count = 10000
    deploy_c(cluster, "herd", examples, "--max", "50", "--queue", str(count), "--no-wait")
    most, stop = [0], threading.Event()

    def watch():
        while not stop.is_set():
            most[0] = max(most[0], len(cluster.sandboxes("herd")))
            time.sleep(0.05)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        began = time.monotonic()
        told = herd("127.0.0.1", cluster.invoke_port, "herd", count)
        took = time.monotonic() - began
    finally:
        stop.set()
        watcher.join()
    statuses = collections.Counter(status for status, _ in told)
    print(f"{count} requests at once: {dict(statuses)} in {took:.1f} s, at most {most[0]} sandboxes")
    assert statuses == {200: count}
    assert 1 < most[0] <= 50
    wait_until(lambda: (f := cluster.function("herd"))["waiting"] == 0 and f["in_flight"] == 0, 5, "the data plane's word of it")
    began = time.monotonic()
    assert cluster.call("herd").status == 200 and time.monotonic() - began < 1, "calm again"


def test_a_herd_beyond_the_queue_is_told_so_at_once(new_cluster, examples):
    cluster = new_cluster()
    deploy_c(cluster, "small", examples, "--max", "1", "--queue", "100", "--no-wait")
    told = herd("127.0.0.1", cluster.invoke_port, "small", 2000)
    statuses = collections.Counter(status for status, _ in told)
    assert set(statuses) == {200, 503} and statuses[200] >= 100, statuses


def test_a_worker_restarts_under_five_hundred_sandboxes(new_cluster, examples):
    """F31: all are taken back, and no warm request fails meanwhile."""
    cluster = new_cluster("--slots", "520", "--host-port-base", "28300", "--blanks", "16")
    deploy_c(cluster, "crowd", examples, "--min", "500", "--max", "500", "--no-wait")
    wait_until(lambda: len([s for s in cluster.sandboxes("crowd") if s["state"] == "ready"]) == 500, 60, "500 sandboxes")
    before = {s["id"] for s in cluster.sandboxes("crowd")}
    bad, good, stop = [], [0], threading.Event()

    def call():
        while not stop.is_set():
            answer = cluster.call("crowd")
            good[0] += answer.status == 200
            if answer.status != 200:
                bad.append(answer)
    caller = threading.Thread(target=call)
    caller.start()
    try:
        time.sleep(0.3)
        worker = cluster.pid("worker")
        began = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        cluster.wait_restarted("worker", worker)
        wait_until(lambda: cluster.items("/v1/workers")[0]["state"] == "alive" and
                   sum(s["state"] == "ready" for s in cluster.sandboxes("crowd")) == 500, 20, "all sandboxes again")
        took = time.monotonic() - began
        time.sleep(0.5)
    finally:
        stop.set()
        caller.join()
    print(f"a worker with 500 sandboxes was killed: {took:.1f} s until all were back, {len(bad)} of {good[0]} calls failed")
    assert bad == [] and good[0] > 50
    assert {s["id"] for s in cluster.sandboxes("crowd")} == before, "the same ones"


def test_without_room_callers_are_told_and_served_when_there_is(new_cluster, examples):
    """F53"""
    cluster = new_cluster("--slots", "2", "--blanks", "1")
    for name in ("a", "b"):
        deploy_c(cluster, name, examples, "--min", "1")
    deploy_c(cluster, "c", examples, "--no-wait", "--timeout", "5s")
    answer = cluster.call("c")
    assert answer.status == 503 and b"no_room" in answer.body, answer
    cluster.ok("delete", "a")
    wait_until(lambda: cluster.call("c").status == 200, 20, "room")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_disk_that_fails_once_ends_the_control_plane_and_loses_nothing(new_cluster, examples):
    """F20: after an error of fdatasync nobody knows what is on the disk; it is not tried again on that descriptor."""
    cluster = new_cluster()
    deploy_c(cluster, "kept", examples)
    control_plane = cluster.pid("control-plane")
    tracer = subprocess.Popen(["strace", "-f", "-qq", "-e", "trace=fdatasync,fsync", "-e",
                               "inject=fdatasync,fsync:error=EIO:when=1", "-p", str(control_plane)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: "TracerPid:\t0" not in pathlib.Path(f"/proc/{control_plane}/status").read_text(), 10, "strace")
        result = cluster.cli("deploy", "lost", "--dir", examples / "c", "--command", "./server", "--no-wait")
        assert result.code != 0, "it is not acknowledged"
        cluster.wait_restarted("control-plane", control_plane)
    finally:
        tracer.kill()
        tracer.wait()
    wait_until(lambda: is_answered(cluster), 20, "its API")
    assert "store.lost" in cluster.log()
    wait_until(lambda: cluster.call("kept").status == 200, 20, "the function")
    names = [f["name"] for f in cluster.items("/v1/functions")]
    assert "kept" in names
    deploy_c(cluster, "after", examples)


@pytest.mark.skipif(not there_is_etcd(), reason="needs etcd")
def test_leaders_die_every_300_ms(examples):
    """F17, F05: each one is killed as soon as it leads, also in its first write."""
    cluster = Replicated()
    try:
        cluster.start()
        cluster.deploy("warm", {"app.py": APP})
        kills = 0
        with KeptCalls(cluster.invoke_ports[0], "warm") as calls:
            end = time.monotonic() + 15
            while time.monotonic() < end:
                leader = cluster.leader()
                if leader is not None:
                    cluster.control_planes[leader].kill()
                    cluster.control_planes[leader].start()
                    kills += 1
                time.sleep(0.3)
        assert kills >= 15 and calls.bad == [] and calls.good > 100, (kills, calls.bad[:3], calls.good)
        leaders = [e for p in cluster.control_planes for e in
                   [line for line in p.log().splitlines() if "control_plane.leads" in line]]
        assert len(leaders) <= kills + 2, "no more takeovers than deaths"
        time.sleep(5)
        cluster.wait_leader()
        good = 0
        for i in range(20):
            cluster.ok("deploy", f"cold{i}", "--dir", examples / "c", "--command", "./server", "--memory", "16Mi", "--no-wait",
                       at=cluster.leader())
            good += cluster.call(f"cold{i}").status == 200
        print(f"{kills} leaders killed, {len(leaders)} takeovers; {good} of 20 cold calls after that")
        assert good >= 19
    finally:
        for program in cluster.control_planes:
            print(program.log()[-1500:])
        assert cluster.end() == []


def is_answered(cluster):
    try:
        return cluster.api("GET", "/readyz").status == 200
    except OSError:
        return False


def is_served(cluster):
    try:
        return cluster.call("busy").status == 200
    except OSError:
        return False


def test_programs_that_are_stopped_in_order_fail_no_request(new_cluster, examples):
    """F49: control plane and data plane end under load; who is connected loses nothing."""
    cluster = new_cluster()
    deploy_c(cluster, "busy", examples, "--min", "2")
    bad, good, stop = [], [0], threading.Event()

    def call():
        while not stop.is_set():
            try:
                answer = http_call(cluster.invoke_port, "GET", "/", headers={"Host": "busy"}, timeout=30)
            except OSError:
                continue  # nobody listens: nothing was taken, nothing lost
            good[0] += answer.status == 200
            if answer.status != 200:
                bad.append(answer)
    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for part in ("control-plane", "data-plane", "control-plane"):
            old = cluster.pid(part)
            time.sleep(0.3)
            os.kill(old, signal.SIGTERM)
            cluster.wait_restarted(part, old)
            wait_until(lambda: is_served(cluster), 20, "calls")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert bad == [] and good[0] > 100

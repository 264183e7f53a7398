"""Three control planes over three members of etcd: who leads when one dies, stands still or is wrong, and what of that
users see."""
import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import tempfile
import time

import pytest

from callers import KeptCalls
from cluster import BUILD, free_ports, http_call, run_cli, wait_until
from replicated import Program, Replicated, started, there_is_etcd
from test_user_path import APP

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
              pytest.mark.skipif(not there_is_etcd(), reason="needs etcd")]


@pytest.fixture
def make():
    with started(Replicated) as make_one:
        yield make_one


def epochs_of(cluster):
    """What each control plane said it led under, in the order of its log."""
    return [[int(e) for e in re.findall(r"control_plane\.leads epoch=(\d+)", p.log())] for p in cluster.control_planes]


def test_the_leader_dies_under_load_and_nobody_notices(make):
    cluster = make()
    cluster.deploy("hello", {"app.py": APP}, "--min", "2", "--concurrency", "4")
    wait_until(lambda: len(cluster.sandboxes("hello", "ready")) == 2, 20, "two sandboxes")
    known = {s["id"] for s in cluster.sandboxes("hello")}
    old = cluster.leader()
    with KeptCalls(cluster.invoke_ports[0], "hello") as calls:
        time.sleep(0.3)
        cluster.control_planes[old].kill()
        new = cluster.wait_leader(other_than=old, seconds=5)
        time.sleep(0.5)
    assert calls.bad == [] and calls.good > 10
    assert {s["id"] for s in cluster.sandboxes("hello")} == known, "adopted, none lost, none started twice"
    cluster.control_planes[old].start()
    wait_until(lambda: cluster.control_planes[old].log().count("control_plane.stands_by") == 2, 10, "its return")
    cluster.deploy("later", {"app.py": APP}, at=old)
    wait_until(lambda: cluster.call("later").status == 200, 20, "a function that was deployed after it")
    assert cluster.leader() == new, "who comes back stands by"
    leases = http_call(int(cluster.etcd_urls[0].rsplit(":", 1)[1]), "POST", "/v3/lease/leases", {})
    assert leases.status == 200 and "leases" not in leases.json, "nothing depends on a lease of etcd's"


def test_no_registration_is_lost_over_many_leaders(make):
    cluster = make()
    stored = []
    for round_number in range(5):
        for i in range(4):
            name = f"f-{round_number}-{i}"
            answer = cluster.api("PUT", f"/v1/functions/{name}", {"command": ["/bin/true"]})
            assert answer.status in (200, 201), answer
            stored.append(name)
        old = cluster.wait_leader()
        cluster.control_planes[old].kill()
        cluster.wait_leader(other_than=old)
        cluster.control_planes[old].start()
    names = {f["name"] for f in cluster.items("/v1/functions")}
    assert names == set(stored)
    led = sorted(e for own in epochs_of(cluster) for e in own)
    assert led == list(range(1, 7)), "one leader for each epoch, one epoch for each death"


def test_a_leader_that_stands_still_is_replaced_and_refused_when_it_goes_on(make):
    """F06"""
    cluster = make()
    cluster.deploy("hello", {"app.py": APP}, "--min", "1", "--concurrency", "4")
    old = cluster.leader()
    paused = cluster.control_planes[old]
    with KeptCalls(cluster.invoke_ports[0], "hello") as calls:
        paused.signal(signal.SIGSTOP)
        try:
            others = [i for i in range(3) if i != old]
            wait_until(lambda: any("control_plane.leads" in cluster.control_planes[i].log() for i in others), 10, "another leader")
            for i in others:  # followers and the new leader answer
                wait_until(lambda: cluster.api("GET", "/v1/functions", at=i, timeout=5).status == 200, 5, "an answer")
            cluster.ok("scale", "hello", "--min", "2", at=others[0])
        finally:
            paused.signal(signal.SIGCONT)
        wait_until(lambda: paused.log().count("control_plane.up ") == 2, 10, "the old leader's new life, standing by")
        time.sleep(0.5)
    assert calls.bad == []
    assert "control_plane.succeeded" in paused.log()
    assert cluster.items("/v1/functions", at=old)[0]["min"] == 2
    wait_until(lambda: len(cluster.sandboxes("hello", "ready")) == 2, 20, "the new scale")
    new = cluster.leader()
    time.sleep(2.5)
    assert cluster.leader() == new, "it does not flap"


def test_any_control_plane_answers(make):
    cluster = make()
    cluster.deploy("hello", {"app.py": APP}, at=0)
    for i in range(3):
        assert [f["name"] for f in cluster.items("/v1/functions", at=i)] == ["hello"]
        assert cluster.ok("invoke", "hello", at=i).out != ""
        status = cluster.api("GET", "/v1/status", at=i).json
        assert status["leader"] == cluster.cluster_addresses[cluster.leader()]
        assert sorted(c["name"] for c in status["control_planes"]) == sorted(cluster.cluster_addresses)
        assert sum(c["leads"] for c in status["control_planes"]) == 1
        text = cluster.ok("status", at=i).out
        assert text.count("stands by") == 2 and text.count(", leads") == 1 and "etcd" in text
    # a large body and a long answer through one that does not lead
    follower = (cluster.leader() + 1) % 3
    big = cluster.project({"app.py": APP, "data.txt": "x" * 3_000_000})
    cluster.ok("deploy", "big", "--dir", big, at=follower)
    cluster.ok("delete", "hello", "big", at=follower)
    assert cluster.items("/v1/functions", at=follower) == []


@pytest.mark.slow
def test_a_member_of_etcd_dies_and_nothing_is_lost(make):
    cluster = make()
    cluster.deploy("hello", {"app.py": APP}, "--min", "1")
    for i in range(3):
        cluster.etcds[i].kill()
        answer = cluster.api("PUT", f"/v1/functions/while-{i}", {"command": ["/bin/true"]})
        assert answer.status in (200, 201), answer
        assert cluster.call("hello").status == 200
        cluster.etcds[i].start()
        time.sleep(1)
    assert {f["name"] for f in cluster.items("/v1/functions")} == {"hello", "while-0", "while-1", "while-2"}


def test_without_a_majority_of_etcd_calls_go_on_and_registrations_say_why(make):
    cluster = make()
    cluster.deploy("hello", {"app.py": APP}, "--min", "1", "--concurrency", "4")
    cluster.deploy("cold", {"app.py": APP}, "--no-wait")
    with KeptCalls(cluster.invoke_ports[0], "hello") as calls:
        cluster.etcds[1].kill()
        cluster.etcds[2].kill()
        assert cluster.call("cold").status == 200, "the leader starts what is wanted without the store"
        time.sleep(1)
        begin = time.monotonic()
        answer = cluster.api("PUT", "/v1/functions/refused", {"command": ["/bin/true"]})
        assert answer.status >= 500 and "etcd" in answer.text, answer
        assert time.monotonic() - begin < 10
        time.sleep(1)
    assert calls.bad == []
    cluster.etcds[1].start()
    cluster.etcds[2].start()
    cluster.wait_leader()
    answer = wait_until(lambda: (a := cluster.api("PUT", "/v1/functions/later", {"command": ["/bin/true"]}))
                        .status < 300 and a, 30, "a registration")
    assert "hello" in {f["name"] for f in cluster.items("/v1/functions")}


def test_one_that_is_left_alone_says_whom_it_does_not_hear(make):
    cluster = make()
    left = (cluster.wait_leader() + 1) % 3
    for program in [*cluster.etcds, *(p for i, p in enumerate(cluster.control_planes) if i != left)]:
        program.kill()

    def why():
        answer = cluster.api("GET", "/v1/status", at=left)
        return answer.status == 503 and "does not reach the store (etcd)" in answer.text and answer.json["error"]
    error = wait_until(why, 20, "an answer that names all that is away")
    assert error["code"] == "no_leader"
    for i, address in enumerate(cluster.cluster_addresses):
        assert (address in error["message"]) == (i != left), error


def test_with_all_control_planes_gone_warm_calls_go_on_and_cold_ones_wait(make):
    cluster = make()
    cluster.deploy("hello", {"app.py": APP}, "--min", "1", "--concurrency", "4")
    cluster.deploy("cold", {"app.py": APP}, "--timeout", "30s", "--no-wait")
    with KeptCalls(cluster.invoke_ports[0], "hello") as calls, concurrent.futures.ThreadPoolExecutor() as pool:
        for program in [*cluster.control_planes, *cluster.etcds]:
            program.process.kill()
        for program in [*cluster.control_planes, *cluster.etcds]:
            program.kill()
        waiting = pool.submit(cluster.call, "cold")
        time.sleep(2)
        assert not waiting.done()
        for program in [*cluster.etcds, *cluster.control_planes]:
            program.start()
        assert waiting.result(60).status == 200
    assert calls.bad == []
    cluster.wait_leader()
    assert len(cluster.sandboxes("hello", "ready")) == 1


# ---- what can be said wrongly ----

def control_plane(*flags):
    ports = free_ports(2)
    return run_cli("control-plane", "--cluster", f"127.0.0.1:{ports[0]}", "--api", f"127.0.0.1:{ports[1]}", *flags, timeout=60)


@pytest.mark.slow
def test_settings_that_make_no_sense_are_refused():
    home = pathlib.Path(tempfile.mkdtemp(prefix="dirigent-test-"))
    home.chmod(0o755)
    directories = ["--data-dir", home / "data", "--run-dir", home / "run"]
    for flags, word in [(["--store", "paper"], "sqlite or etcd"), (["--store", "etcd"], "--etcd"),
                        (["--peers", "127.0.0.1:1"], "--store etcd"), (["--etcd", "http://a:1"], "--store etcd"),
                        (["--store", "etcd", "--etcd", "a:1"], "no address of etcd"),
                        (["--peers", "x"], "ADDRESS:PORT")]:
        result = control_plane(*directories, *flags)
        assert result.code == 2 and word in result.err, (flags, result)
    nobody = free_ports(1)[0]
    result = control_plane(*directories, "--store", "etcd", "--etcd", f"http://127.0.0.1:{nobody}")
    assert result.code != 0 and f"etcd at http://127.0.0.1:{nobody}" in result.err, result
    shutil.rmtree(home)


@pytest.mark.slow
def test_two_with_one_identity_and_strangers_are_refused(make):
    """F56"""
    cluster = make()
    own = cluster.cluster_addresses[0]
    ports = free_ports(2)
    twin = Program(cluster, "twin", [
        BUILD / "dirigent", "control-plane", "--store", "etcd", "--etcd", ",".join(cluster.etcd_urls), "--cluster",
        f"127.0.0.1:{ports[0]}", "--advertise", own, "--peers", ",".join(cluster.cluster_addresses[1:]), "--api",
        f"127.0.0.1:{ports[1]}", "--data-dir", cluster.directory / "twin" / "data", "--run-dir",
        cluster.directory / "twin" / "run"]).start()
    try:
        wait_until(lambda: "another process with its identity" in twin.log(), 10, "the refusal")
        leader, epoch = cluster.leader(), cluster.api("GET", "/v1/status").json["epoch"]
        time.sleep(1)
        assert (leader, epoch) == (cluster.leader(), cluster.api("GET", "/v1/status").json["epoch"]), "nothing is disturbed"
    finally:
        twin.kill()
    single = Replicated(control_planes=1, data_planes=0, workers=0, etcd_members=1)
    try:
        single.etcds[0].start()
        wait_until(lambda: "ready to serve client requests" in single.etcds[0].log(), 20, "etcd")
        single.control_planes[0].start()
        assert single.control_planes[0].process.wait(30) != 0
        assert "single member" in single.control_planes[0].log()
        single.control_planes[0] = single.make_control_plane(0, "--i-know")
        single.control_planes[0].start()
        single.wait_leader()
    finally:
        assert single.end() == []

"""Concurrency is a limit of the cluster: two data planes share the slots of a sandbox, and they move to where requests are."""
import concurrent.futures
import json
import os
import time

import pytest

from cluster import wait_until
from replicated import Replicated, started, there_is_etcd

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
              pytest.mark.skipif(not there_is_etcd(), reason="needs etcd")]

# Tells how many requests it had at once, at most, and how many in all.
COUNTER = """
import http.server, json, os, threading, time
lock, state = threading.Lock(), {"now": 0, "most": 0, "all": 0}
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        with lock:
            state["now"] += 1
            state["all"] += 1
            state["most"] = max(state["most"], state["now"])
        time.sleep(float(self.path.rsplit("/", 1)[-1] or 0) / 1000)
        with lock:
            state["now"] -= 1
            body = json.dumps({**state, "pid": os.getpid(), "host": os.uname().nodename}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture
def make():
    with started(Replicated) as make_one:
        yield make_one


def calls(cluster, name, planes, count, ms, workers=16):
    """`count` calls of `ms` each, in turn through the data planes; what each was told."""
    def one(i):
        answer = cluster.call(name, f"/{ms}", plane=planes[i % len(planes)])
        assert answer.status == 200, answer
        return json.loads(answer.body)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, range(count)))


def test_two_data_planes_keep_the_limit_of_one_sandbox_together(make):
    cluster = make(control_planes=1, data_planes=2, etcd_members=3)
    cluster.deploy("one", {"app.py": COUNTER}, "--max", "1", "--concurrency", "1")
    told = calls(cluster, "one", [0, 1], 200, 3)
    assert max(t["most"] for t in told) == 1, "never two at once"
    assert max(t["all"] for t in told) == 200 and len({t["pid"] for t in told}) == 1
    cluster.deploy("five", {"app.py": COUNTER}, "--max", "1", "--concurrency", "5")
    told = calls(cluster, "five", [0, 1], 300, 10, workers=32)
    most = max(t["most"] for t in told)
    assert 4 <= most <= 5, "all slots are used, and no more"
    assert len(cluster.sandboxes("five")) == 1


def test_slots_go_where_requests_are(make):
    cluster = make(control_planes=1, data_planes=2, etcd_members=3)
    cluster.deploy("one", {"app.py": COUNTER}, "--max", "1", "--concurrency", "1")
    for plane in (0, 1, 0, 1):  # each time the other one has it
        began = time.monotonic()
        calls(cluster, "one", [plane], 1, 0)
        assert time.monotonic() - began < 1
        began = time.monotonic()
        calls(cluster, "one", [plane], 20, 0, workers=1)
        assert time.monotonic() - began < 2, "and then it stays"


def test_the_slots_of_a_data_plane_that_dies_are_free(make):
    cluster = make(control_planes=1, data_planes=2, etcd_members=3)
    cluster.deploy("one", {"app.py": COUNTER}, "--max", "1", "--concurrency", "1")
    calls(cluster, "one", [0], 5, 0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        cut = pool.submit(lambda: cluster.call("one", "/500", plane=0))
        time.sleep(0.1)  # it holds the only slot, in use
        cluster.data_planes[0].kill()
        began = time.monotonic()
        assert cluster.call("one", "/0", plane=1, timeout=30).status == 200
        took = time.monotonic() - began
        with pytest.raises(Exception):
            cut.result()
    assert took < 4, "the second in which it may come back, and no more"
    told = calls(cluster, "one", [1], 50, 1)
    assert max(t["most"] for t in told) <= 2
    cluster.data_planes[0].start()
    wait_until(lambda: cluster.alive("/v1/data-planes") == 2, 20, "the data plane")
    before = max(t["most"] for t in calls(cluster, "one", [0, 1], 100, 2))
    assert before <= 2, "the one that was cut off may have run beside another; nothing after it"


def test_a_new_leader_knows_who_holds_what(make):
    cluster = make(data_planes=2)
    cluster.deploy("two", {"app.py": COUNTER}, "--max", "2", "--concurrency", "1")
    calls(cluster, "two", [0, 1], 20, 5)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(calls, cluster, "two", [0, 1], 400, 5, 8)
        time.sleep(0.3)
        old = cluster.leader()
        cluster.control_planes[old].kill()
        cluster.wait_leader(other_than=old)
        cluster.control_planes[old].start()
        told = running.result()
    assert max(t["most"] for t in told) == 1, "in each of the two sandboxes"

"""Many of something at once: functions, clients, registrations. Nobody starves, nothing grows without bound."""
import asyncio
import collections
import http.client
import json
import os
import pathlib
import random
import resource
import socket
import statistics
import threading
import time

import pytest

from callers import KeptCalls
from cluster import http_call, wait_until
from herd import one
from replicated import Replicated, there_is_etcd
from test_storms import deploy_c
from test_user_path import APP

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def rss_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def many_files(count):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count)), hard))


def spec_of(cluster, name):
    spec = json.loads(cluster.ok("describe", name, "-o", "json").out)["spec"]
    return {k: v for k, v in spec.items() if k != "name"}


async def register(port, names, spec, connections=64):
    """Each by PUT, over so many connections at once; the statuses that were not 201."""
    body = json.dumps(spec).encode()
    bad, left = [], iter(names)

    async def some():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for name in left:
            writer.write(f"PUT /v1/functions/{name} HTTP/1.1\r\nHost: api\r\nContent-Type: application/json\r\n"
                         f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            text = await reader.readexactly(length)
            if head.split()[1] != b"201":
                bad.append((name, head.split()[1], text[:200]))
        writer.close()
    await asyncio.gather(*(some() for _ in range(connections)))
    return bad


class Beside:
    """Calls of one function, one after the other, while something else goes on; how long each took."""

    def __init__(self, cluster, name):
        self.cluster, self.name, self.ms, self.bad, self.stopping = cluster, name, [], [], False
        self.thread = threading.Thread(target=self.run)

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.cluster.invoke_port, timeout=30)
        while not self.stopping:
            began = time.monotonic()
            connection.request("GET", "/", headers={"Host": self.name})
            answer = connection.getresponse()
            text = answer.read()
            self.ms.append((time.monotonic() - began) * 1000)
            if answer.status != 200:
                self.bad.append(f"{answer.status} {text[:200]}")
            time.sleep(0.005)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.stopping = True
        self.thread.join()

    def told(self):
        ordered = sorted(self.ms)
        return f"p50 {statistics.median(ordered):.1f} ms, p99 {ordered[len(ordered) * 99 // 100]:.1f} ms, worst {ordered[-1]:.0f} ms"


def test_a_herd_to_a_thousand_cold_functions(new_cluster, examples):
    """F38: a thousand functions get their first request at one moment, while one more has a herd of its own. All are answered, none
    of them waits for the herd of another, and the control plane does not grow with it."""
    count = 1000
    cluster = new_cluster("--slots", "1100", "--host-port-base", "28300", "--blanks", "16")
    deploy_c(cluster, "warm", examples, "--min", "1")
    deploy_c(cluster, "loud", examples, "--max", "30", "--concurrency", "1", "--queue", "5000", "--no-wait")
    spec = spec_of(cluster, "warm")
    spec["scaling"]["min"] = 0
    assert asyncio.run(register(cluster.api_port, [f"cold-{i}" for i in range(count)], spec)) == []
    control_plane = cluster.pid("control-plane")
    before = rss_mib(control_plane)
    many_files(8000)

    async def all_at_once():
        loud = [one("127.0.0.1", cluster.invoke_port, "loud", "/", 120) for _ in range(3000)]
        cold = [one("127.0.0.1", cluster.invoke_port, f"cold-{i}", "/", 120) for i in range(count)]
        told = await asyncio.gather(*loud, *cold)
        return told[:3000], told[3000:]
    with Beside(cluster, "warm") as beside:
        loud, cold = asyncio.run(all_at_once())
    took = sorted(ms for _, ms in cold)
    print(f"{count} cold functions at once, beside 3,000 requests to one more: p50 {took[count // 2]:.0f} ms, worst {took[-1]:.0f} ms; "
          f"a warm function beside them: {beside.told()}; control plane {before:.0f} MiB, then {rss_mib(control_plane):.0f}")
    assert {status for status, _ in loud + cold} == {200}
    assert beside.bad == []
    assert took[-1] < 4 * took[count // 2] + 500, "one after the other, in the order of their coming"
    assert rss_mib(control_plane) < before + 64



SLOW = {  # what a slow client says at first, and what it says again and again
    "head": (b"GET / HTTP/1.1\r\nHost: patient\r\nX-Slow: ", b"a"),
    "body": (b"POST / HTTP/1.1\r\nHost: patient\r\nContent-Length: 100000\r\n\r\n", b"b"),
    "answer": (b"GET /large HTTP/1.1\r\nHost: patient\r\n\r\n", b""),
}


async def slow_clients(port, count, until):
    """So many at once that take their time. How many of them are connected at the end."""
    kinds = list(SLOW)
    ends = []
    for i in range(count):
        s = socket.socket()
        s.setblocking(False)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(s, ("127.0.0.1", port))
        s.send(SLOW[kinds[i % 3]][0])
        ends.append((s, SLOW[kinds[i % 3]][1]))
    until.ready.set()
    while not until.over.is_set():
        await asyncio.sleep(0.5)
        for s, more in ends:
            try:
                s.send(more) if more else None
            except OSError:
                pass
    alive = 0
    for s, _ in ends:
        info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        alive += info == b"\x01"  # TCP_ESTABLISHED
        s.close()
    return alive


class Slow:
    """10,000 slow clients on a thread of their own."""

    def __init__(self, cluster, count):
        self.ready, self.over, self.alive = threading.Event(), threading.Event(), 0
        self.thread = threading.Thread(target=self.run, args=(cluster.invoke_port, count))

    def run(self, port, count):
        self.alive = asyncio.run(slow_clients(port, count, self))

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(60)
        return self

    def __exit__(self, *exception):
        self.over.set()
        self.thread.join()


PATIENT = """
import http.server, os, socketserver, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"x" * (200000 if self.path == "/large" else 10)
        if self.path == "/slow":
            time.sleep(4)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
    def server_bind(self):
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "patient", self.server_address[1]
Server(("", int(os.environ["PORT"])), Handler).serve_forever()
"""


def test_ten_thousand_slow_clients_and_a_slow_function(new_cluster, examples):
    """F39: a third of them is slow with the head, a third with the body, a third does not read its answer. Whoever is quick is served as
    before, also while a function that takes 4 s has its own requests; and what slow ones cost is bounded."""
    count = 10000
    cluster = new_cluster()
    many_files(count + 1000)
    deploy_c(cluster, "quick", examples, "--min", "1")
    cluster.deploy("patient", {"app.py": PATIENT}, "--min", "2", "--max", "2", "--concurrency", "200", "--memory", "256Mi", "--queue",
                   str(count), "--timeout", "60s")
    cluster.deploy("sleeps", {"app.py": PATIENT}, "--max", "2", "--concurrency", "1", "--timeout", "60s")
    data_plane = cluster.pid("data-plane")
    with Beside(cluster, "quick") as alone:
        time.sleep(1)
    before = rss_mib(data_plane)
    with Slow(cluster, count) as slow:
        answers = []
        callers = [threading.Thread(target=lambda: answers.append(cluster.call("sleeps", "/slow"))) for _ in range(4)]
        for caller in callers:
            caller.start()
        with Beside(cluster, "quick") as beside:
            time.sleep(5)
        during = rss_mib(data_plane)
        for caller in callers:
            caller.join()
    print(f"{count} slow clients ({slow.alive} still there): a quick function alone {alone.told()}; beside them {beside.told()}; data plane "
          f"{before:.0f} MiB, then {during:.0f}")
    assert beside.bad == [] and [a.status for a in answers] == [200] * 4
    assert statistics.median(beside.ms) < 10 * statistics.median(alone.ms) + 5, "no head-of-line block"
    assert slow.alive > count // 2
    assert during - before < count * 64 / 1024, "64 KiB for each at most"
    wait_until(lambda: (f := cluster.function("patient"))["in_flight"] == 0 and f["waiting"] == 0, 20, "their slots to be free")
    assert cluster.call("patient").status == 200


@pytest.mark.skipif(not there_is_etcd(), reason="needs etcd")
def test_a_hundred_thousand_functions(examples):
    """F54: of as many as 1,000 tenants with 100 each, over etcd: what they cost each program, how long a takeover takes with them, and
    how long a control plane and a data plane that start."""
    count = 100000
    cluster = Replicated()
    try:
        cluster.start()
        cluster.ok("deploy", "first", "--dir", examples / "c", "--command", "./server", "--memory", "16Mi", "--no-wait")
        spec = spec_of(cluster, "first")
        leader = cluster.wait_leader()
        programs = [*cluster.control_planes, *cluster.data_planes, *cluster.workers]
        empty = [rss_mib(p.process.pid) for p in programs]
        began = time.monotonic()
        names = [f"tenant-{t}-f{f}" for t in range(1000) for f in range(count // 1000)]
        assert asyncio.run(register(cluster.api_ports[leader], names, spec)) == []
        registered = time.monotonic() - began
        assert cluster.call(names[-1]).status == 200
        full = [rss_mib(p.process.pid) for p in programs]
        time.sleep(3)
        victim = cluster.control_planes[leader]
        victim.kill()
        began = time.monotonic()
        assert cluster.call(names[17]).status == 200, "a cold start of the next leader"
        taken_over = time.monotonic() - began
        began = time.monotonic()
        victim.start()
        wait_until(lambda: knows_all(cluster, leader, count), 60, "the control plane to know all functions")
        back = time.monotonic() - began
        cluster.data_planes[0].kill()
        cluster.data_planes[0].start()
        began = time.monotonic()
        wait_until(lambda: is_answered(cluster, names[-2]), 60, "the data plane")
        plane_back = time.monotonic() - began
        print(f"{count} functions: registered in {registered:.0f} s; MiB before and with them: " +
              ", ".join(f"{p.name} {a:.0f} {b:.0f}" for p, a, b in zip(programs, empty, full)) +
              f"; cold start behind a killed leader {taken_over * 1000:.0f} ms; control plane up again in {back:.1f} s, data plane in "
              f"{plane_back:.1f} s")
        assert all(b - a < count * 6 / 1024 for a, b in zip(empty, full)), "6 KiB for each function at most"
        assert taken_over < 5 and back < 30 and plane_back < 15
    finally:
        bad = cluster.end()
    assert bad == []


def knows_all(cluster, member, count):
    """Whether a control plane has them all, as those say that it is connected to."""
    return any(m["name"] == cluster.cluster_addresses[member] and m["state"] == "alive" and m["heard_ms"] < 300 and m["functions"] > count
               for m in cluster.api("GET", "/v1/status").json["control_planes"])


def is_answered(cluster, name):
    try:
        return cluster.call(name, timeout=5).status == 200
    except OSError:
        return False


def test_requests_that_come_when_their_function_scales_to_zero(new_cluster, examples):
    """F46: forty functions are asked just when their last sandbox is taken away, again and again. Each request is served: by that one, or
    by the next."""
    cluster = new_cluster()
    names = [f"rare-{i}" for i in range(40)]
    for name in names:
        deploy_c(cluster, name, examples, "--stable-window", "2s", "--scaling-period", "500ms", "--no-wait")
    found, bad = collections.Counter(), []

    def ask(name, seed):
        rng = random.Random(seed)
        for _ in range(6):
            answer = http_call(cluster.invoke_port, "GET", "/", headers={"Host": name, "Dirigent-Receipt": "1"})
            found["cold" if answer.headers["Dirigent-Cold"] == "1" else "warm"] += 1
            if answer.status != 200:
                bad.append(answer)
            time.sleep(rng.uniform(2.0, 4.0))
    askers = [threading.Thread(target=ask, args=(name, i)) for i, name in enumerate(names)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    print(f"requests about the time of the scale to zero: {dict(found)}")
    assert bad == [] and found["cold"] > 60 and found["warm"] > 20, found


def test_new_versions_are_deployed_under_load(new_cluster, examples):
    """F47: no call fails, each is answered by a whole version, and at the end by the last; those before are gone."""
    cluster = new_cluster()
    cluster.deploy("app", {"app.py": APP}, "-e", "GREETING=v0", "--min", "2", "--concurrency", "4")
    seen = set()
    with KeptCalls(cluster.invoke_port, "app", 3) as load:
        load.wait_good(20)
        for i in range(1, 9):
            cluster.ok("deploy", "app", "-e", f"GREETING=v{i}")
            seen.add(cluster.call("app").text.split()[0])
            load.wait_good(20)
    assert load.bad == [] and seen == {f"v{i}" for i in range(1, 9)}
    wait_until(lambda: {s["version"] for s in cluster.sandboxes("app")} == {9}, 20, "the old versions to end")

"""The data plane alone: a control plane and sandboxes that do what each test says."""
import concurrent.futures
import hashlib
import os
import random
import re
import signal
import socket
import threading
import time

import pytest

from cluster import BUILD, SANITIZED, run_cli, wait_until
from fake_control_plane import Client, Cut, DataPlane, FakeControlPlane, Sandbox, echo

HELLO = 7


class World:
    """A fake control plane, a real data plane, and any number of fake sandboxes of one function."""

    def __init__(self, *flags, threads=2, function=True, **settings):
        self.cp = FakeControlPlane()
        if function:
            self.cp.function(HELLO, "hello", **settings)
        self.dp = DataPlane(self.cp, *flags, threads=threads)
        self.cp.wait(lambda: self.cp.hellos, "hello of the data plane")
        self.sandboxes = []
        self.wait_ready()

    def wait_ready(self):
        for _ in range(400):
            if self.dp.call(path="/readyz", host="localhost").status == 200:
                return
            time.sleep(0.01)
        raise AssertionError("never ready")

    def sandbox(self, *arguments, publish=True, function=HELLO, **more):
        one = Sandbox(100 + len(self.sandboxes), *arguments, **more)
        self.sandboxes.append(one)
        if publish:
            self.cp.endpoint(one.number, function, one.address)
        return one

    def client(self):
        return Client(self.dp)

    def call(self, *arguments, **more):
        return self.dp.call(*arguments, **more)

    def metric(self, name):
        text = self.call(path="/metrics", host="localhost").body.decode()
        found = [float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)]
        return sum(found)

    def wait_waiting(self, count):
        self.cp.wait(lambda: self.cp.demands.get(HELLO, {}).get("waiting") == count, f"{count} waiting")

    def close(self):
        code = self.dp.close()
        self.cp.close()
        for one in self.sandboxes:
            one.close()
        assert [e for one in self.sandboxes for e in one.errors] == []
        assert code == 0


@pytest.fixture
def world(build):
    made = []

    def make(*flags, **more):
        made.append(World(*flags, **more))
        return made[-1]
    yield make
    for one in made:
        one.close()


def in_parallel(count, function):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return [f.result() for f in [pool.submit(function, i) for i in range(count)]]


# ---- which function ----


def test_function_by_host_by_first_label_and_by_path(world):
    w = world()
    box = w.sandbox()
    for host in ("hello", "HELLO", "hello:8080", "hello.example.com", "hello.127.0.0.1.nip.io:80"):
        assert w.call(host=host, path="/a?b=c").status == 200
        assert box.requests[-1]["target"] == "/a?b=c"
        assert box.requests[-1]["h"]["host"] == host
        assert "x-forwarded-prefix" not in box.requests[-1]["h"]
    for path, target in (("/function/hello/a/b?c=d", "/a/b?c=d"), ("/function/hello", "/"), ("/function/hello/", "/"),
                         ("/function/hello?x", "/?x"), ("/function/hello//x", "//x")):
        assert w.call(host="localhost", path=path).status == 200
        assert box.requests[-1]["target"] == target
        assert box.requests[-1]["h"]["x-forwarded-prefix"] == "/function/hello"
    # Host comes first: then the path is the function's own
    assert w.call(host="hello", path="/function/other/x").status == 200
    assert box.requests[-1]["target"] == "/function/other/x"
    assert w.call(host="hello", path="/healthz").body == b"ok" and box.requests[-1]["target"] == "/healthz"


def test_unknown_function_is_404_and_says_what_was_looked_for(world):
    w = world()
    for host, path, word in (("nobody.example.com", "/", "nobody"), ("localhost", "/function/none/x", "none"),
                             ("localhost", "/", "Host: NAME"), ("127.0.0.1", "/x", "Host: NAME")):
        a = w.call(host=host, path=path)
        assert (a.status, a.code) == (404, "function_unknown"), a
        assert word in a.body.decode()
    with w.client() as c:  # the connection stays, also when a body came along
        assert c.call("POST", host="nobody", body=b"x" * 1000).status == 404
        assert c.call(host="nobody").status == 404


def test_own_pages(world):
    w = world()
    assert w.call(host="localhost", path="/healthz").body == b"ok\n"
    assert w.call(host="127.0.0.1", path="/readyz").status == 200
    assert w.call("HEAD", host="localhost", path="/healthz").body == b""
    assert w.call("POST", host="localhost", path="/metrics", body=b"").status == 405
    w.sandbox()
    for _ in range(3):
        assert w.call().status == 200
    # A request is counted when it has ended, which may be after its answer has come.
    text = wait_until(lambda: (t := w.call(host="localhost", path="/metrics").body.decode()) and
                      'dirigent_function_requests_total{function="hello",status="2xx"} 3' in t and t, 10, "three requests")
    assert 'dirigent_function_request_seconds_count{function="hello"} 3' in text
    assert re.search(r"^dirigent_data_plane_requests_total \d+$", text, re.M)


# ---- heads ----


def test_what_describes_the_client_is_ours(world):
    w = world()
    box = w.sandbox()
    w.call(headers=["X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "Forwarded: for=6.6.6.6",
                    "X-Forwarded-Prefix: /evil", "Dirigent-Whatever: 1", "Dirigent-Receipt: 0", "X-Mine: kept"])
    r = box.requests[-1]
    names = [k.lower() for k, _ in r["headers"]]
    assert len(names) == len(set(names)), names
    assert r["h"]["x-forwarded-for"] == "127.0.0.1"
    assert r["h"]["x-forwarded-proto"] == "http"
    assert r["h"]["x-forwarded-host"] == "hello"
    assert r["h"]["forwarded"] == 'for=127.0.0.1;host="hello";proto=http'
    assert r["h"]["x-mine"] == "kept"
    assert not any(n.startswith("dirigent-") or n == "x-forwarded-prefix" for n in names)
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", r["h"]["traceparent"])
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    w.call(headers=[f"traceparent: {trace}"])
    assert box.requests[-1]["h"]["traceparent"] == trace
    assert box.requests[-2]["h"]["traceparent"] != box.requests[-1]["h"]["traceparent"]


def test_hop_by_hop_fields_stay_on_their_hop(world):
    w = world()

    def handler(c):
        while c.request() is not None:
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n"
                   b"Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nDirigent-Error: fake\r\nX-Public: 1\r\n\r\nok")
    box = w.sandbox(handler)
    a = w.call(headers=["Connection: keep-alive, X-Hop", "X-Hop: secret", "Keep-Alive: 5", "Proxy-Connection: keep-alive",
                        "Proxy-Authorization: Basic eDp5", "TE: gzip", "Upgrade: h2c", "X-End: kept"])
    names = {k.lower() for k, _ in box.requests[-1]["headers"]}
    assert not names & {"connection", "x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade"}
    assert "x-end" in names
    assert {"x-public", "date"} <= set(a.h) and not {"x-private", "keep-alive", "proxy-authenticate", "upgrade",
                                                     "dirigent-error", "connection"} & set(a.h)


def test_absolute_form_becomes_origin_form(world):
    w = world()
    box = w.sandbox()
    with w.client() as c:
        c.send(b"GET http://hello/x?y HTTP/1.1\r\nHost: hello\r\n\r\n")
        assert c.answer().status == 200
    assert box.requests[-1]["target"] == "/x?y"
    with w.client() as c:
        c.send(b"CONNECT hello:80 HTTP/1.1\r\nHost: hello\r\n\r\n")
        assert c.answer().status == 501


@pytest.mark.parametrize("raw, status", [
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: hello\r\nHost: hello\r\n\r\n", 400),
    (b"GET / HTTP/1.1\nHost: hello\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: hello\r\nX : 1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: hello\r\nX: 1\r\n folded\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: hello\r\nX: a\0b\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    (b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: +3\r\n\r\nabc", 400),
    (b"POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\nHost: hello\r\n\r\n", 505),
    (b"GET / HTTP/1.1\r\nHost: hello\r\n" + b"X: " + b"y" * 40000 + b"\r\n\r\n", 431),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 tls", 400),
])
def test_ambiguous_requests_are_refused_and_the_connection_ends(world, raw, status):
    w = world()
    box = w.sandbox()
    with w.client() as c:
        c.send(raw + b"GET /smuggled HTTP/1.1\r\nHost: hello\r\n\r\n")
        a = c.answer()
        assert a.status == status, a
        assert a.code and a.h["connection"] == "close"
        assert c.at_end()
    assert all(r["target"] != "/smuggled" for r in box.requests)
    assert w.call().status == 200  # the next one is none the worse


# ---- bodies ----


@pytest.mark.parametrize("size", [0, 1, 1000, 16384, 16385, 65536, 65537, 1 << 20, 20 << 20])
def test_bodies_of_all_sizes_both_ways(world, size):
    w = world()
    w.sandbox()
    data = random.Random(size).randbytes(size)
    with w.client() as c:
        for _ in range(2):
            a = c.call("POST", body=data)
            assert a.status == 200
            assert a.body == (data or b"ok")


def chunks_of(data, rng, extension=False):
    out = b""
    while data:
        n = min(len(data), rng.choice([1, 2, 7, 100, 5000, 70000]))
        out += b"%x%s\r\n" % (n, b";ext=1" if extension else b"") + data[:n] + b"\r\n"
        data = data[n:]
    return out


@pytest.mark.parametrize("size", [0, 1, 500, 20000, 300000, 3 << 20])
def test_chunked_both_ways_with_trailers(world, size):
    w = world()
    rng = random.Random(size)

    def handler(c):
        while (r := c.request()) is not None:
            c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n" + chunks_of(r["body"], rng) +
                   b"0\r\nX-Sum: 5\r\nContent-Length: 9\r\nDirigent-Cold: 1\r\n\r\n")
    box = w.sandbox(handler)
    data = rng.randbytes(size)
    with w.client() as c:
        for te in (["TE: trailers", "Connection: TE"], []):
            c.send("\r\n".join(["POST /x HTTP/1.1", "Host: hello", "Transfer-Encoding: chunked", *te]).encode() + b"\r\n\r\n" +
                   chunks_of(data, rng, extension=True) + b"0\r\nX-Up: 1\r\nHost: evil\r\nTransfer-Encoding: gzip\r\n\r\n")
            a = c.answer()
            assert a.status == 200 and a.body == data
            assert a.trailers == (["X-Sum: 5"] if te else [])
            r = box.requests[-1]
            assert r["body"] == data and r["trailers"] == ["X-Up: 1"]
            assert "content-length" not in r["h"] and ("te" in r["h"]) == bool(te)


def test_chunks_in_single_bytes(world):
    w = world()
    w.sandbox()
    raw = b"POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n"
    with w.client() as c:
        for i in range(len(raw)):
            c.send(raw[i:i + 1])
            time.sleep(0.0005)
        assert c.answer().body == b"hello!"
        assert c.call().status == 200


def test_answer_in_single_bytes(world):
    w = world()

    def handler(c):
        while c.request() is not None:
            for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n":
                c.send(bytes([byte]))
                time.sleep(0.0005)
    w.sandbox(handler)
    with w.client() as c:
        assert c.call().body == b"hello"
        assert c.call().body == b"hello"


def test_http_1_0_clients(world):
    w = world()

    def handler(c):
        while (r := c.request()) is not None:
            if r["target"] == "/chunked":
                c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nT: 1\r\n\r\n")
            else:
                c.answer(b"ok")
    box = w.sandbox(handler)
    with w.client() as c:
        c.send(b"GET / HTTP/1.0\r\nHost: hello\r\n\r\n")
        a = c.answer()
        assert a.body == b"ok" and a.h["connection"] == "close" and c.at_end()
    with w.client() as c:
        for _ in range(2):
            c.send(b"GET / HTTP/1.0\r\nHost: hello\r\nConnection: keep-alive\r\n\r\n")
            a = c.answer()
            assert a.body == b"ok" and a.h["connection"] == "keep-alive"
        c.send(b"GET /chunked HTTP/1.0\r\nHost: hello\r\nConnection: keep-alive\r\n\r\n")
        a = c.answer()
        assert a.body == b"hello world" and "transfer-encoding" not in a.h and a.h["connection"] == "close"
    with w.client() as c:  # without Host, by path: the function hears its own name
        c.send(b"GET /function/hello/x HTTP/1.0\r\n\r\n")
        assert c.answer().status == 200
    assert box.requests[-1]["version"] == "HTTP/1.1" and box.requests[-1]["h"]["host"] == "hello"


def test_answer_that_ends_with_its_connection(world):
    w = world()

    def handler(c):
        c.request()
        c.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nsome ")
        time.sleep(0.02)
        c.send(b"text")
    w.sandbox(handler)
    with w.client() as c:
        for _ in range(2):  # the client's connection stays: it is told in chunks
            a = c.call()
            assert a.body == b"some text" and a.h["transfer-encoding"] == "chunked"
        c.send(b"GET / HTTP/1.0\r\nHost: hello\r\n\r\n")
        assert c.answer().body == b"some text"


@pytest.mark.parametrize("head, length", [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n", "12345"),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    (b"HTTP/1.1 204 No Content\r\n\r\n", None),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", "99"),
])
def test_answers_without_body(world, head, length):
    w = world()

    def handler(c):
        while c.request() is not None:
            c.send(head)
    box = w.sandbox(handler)
    with w.client() as c:
        for _ in range(3):
            a = c.call("HEAD")
            assert a.h.get("content-length") == length
    assert box.accepted == 1


def test_interim_answers(world):
    w = world()

    def handler(c):
        while c.request() is not None:
            c.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
            time.sleep(0.01)
            c.send(b"HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    w.sandbox(handler)
    with w.client() as c:
        for _ in range(2):
            interim = []
            c.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
            assert c.answer(interim=interim).body == b"ok"
            assert [(s, dict(h).get("Link")) for s, h in interim] == [(103, "</a.css>"), (103, "</b.css>")]
        c.send(b"GET / HTTP/1.0\r\nHost: hello\r\n\r\n")
        interim = []
        assert c.answer(interim=interim).body == b"ok" and interim == []


def test_expect_continue_is_answered_when_a_slot_is_there(world):
    w = world()
    with w.client() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        w.wait_waiting(1)
        c.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            c.sock.recv(1)
        c.sock.settimeout(20)
        box = w.sandbox()
        assert c.head()[0] == 100
        c.send(b"hello")
        assert c.answer().body == b"hello"
        assert "expect" not in box.requests[-1]["h"]
        # a client that does not wait is not told to go on
        c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello")
        interim = []
        assert c.answer(interim=interim).body == b"hello" and interim == []


def test_pipelined_requests_are_answered_in_order_one_at_a_time(world):
    w = world()
    box = w.sandbox(delay=0.01)
    with w.client() as c:
        c.send(b"".join(b"POST /%d HTTP/1.1\r\nHost: %s\r\nContent-Length: 3\r\n\r\n%03d" %
                        (i, b"nobody" if i % 5 == 4 else b"hello", i) for i in range(30)))
        for i in range(30):
            a = c.answer()
            assert (a.status, a.body) == (200, b"%03d" % i) if i % 5 != 4 else a.status == 404
    assert box.busy_max == 1
    with w.client() as c:  # thousands of small ones that are answered by the data plane itself: no recursion
        c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
        assert all(c.answer().status == 404 for _ in range(5000))


def upload(sock, total):
    piece = bytes(range(256)) * 1024
    left = total
    while left:
        left -= sock.send(piece[:min(left, len(piece))])


@pytest.mark.parametrize("size", [128 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_pass_with_flat_memory(world, size, chunked):
    w = world(timeout_ms=240000, threads=1)
    piece = bytes(range(256)) * 4096

    def handler(c):
        r = c.request(body=False)
        got = len(c.buffered)
        c.buffered = b""
        view = memoryview(bytearray(1 << 20))
        if not chunked:
            while got < int(r["h"]["content-length"]):
                got += c.sock.recv_into(view)
        else:
            tail = b""
            while not tail.endswith(b"0\r\n\r\n"):
                n = c.sock.recv_into(view)
                got += n
                tail = (tail + bytes(view[max(0, n - 8):n]))[-8:]
        c.got = got
        c.send(b"HTTP/1.1 200 OK\r\n" + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"Content-Length: %d\r\n\r\n" % size))
        for _ in range(size // len(piece)):
            if chunked:
                c.send(b"%x\r\n" % len(piece))
                c.send(piece)
                c.send(b"\r\n")
            else:
                c.send(piece)
        if chunked:
            c.send(b"0\r\n\r\n")
    box = w.sandbox(handler)
    assert w.call(host="nobody").status == 404
    before, most = w.dp.rss(), 0
    done = threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.05):
            most = max(most, w.dp.rss())
    watcher = threading.Thread(target=watch)
    watcher.start()
    with w.client() as c:
        c.sock.settimeout(240)
        if chunked:
            c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(size // len(piece)):
                c.send(b"%x\r\n" % len(piece))
                c.send(piece)
                c.send(b"\r\n")
            c.send(b"0\r\n\r\n")
        else:
            c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: %d\r\n\r\n" % size)
            upload(c.sock, size)
        status, _ = c.head()
        assert status == 200
        got, view = len(c.buffered), memoryview(bytearray(1 << 20))
        time.sleep(0.3)  # a client that does not read: the sandbox waits, nothing piles up
        while got < size:
            got += c.sock.recv_into(view)
    done.set()
    watcher.join()
    assert box.connections[-1].got >= size
    grown = most - before
    assert grown < (64 << 20 if SANITIZED else 4 << 20), grown


# ---- waiting ----


def test_cold_request_waits_and_is_served_with_a_receipt(world):
    w = world()
    with w.client() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: hello\r\nDirigent-Receipt: 1\r\n\r\n")
        w.wait_waiting(1)
        box = w.sandbox()
        a = c.answer()
        assert a.status == 200 and a.h["dirigent-cold"] == "1"
        assert a.h["dirigent-sandbox"] == "%016x" % box.number and a.h["dirigent-worker"] == "worker-1"
        parts = dict(re.fullmatch(r"([a-z-]+);dur=([0-9.]+)", p).groups() for p in a.h["server-timing"].split(", "))
        assert {"queue", "place", "create", "exec", "listen", "connect", "first-byte", "total"} == set(parts)
        assert (parts["place"], parts["create"], parts["exec"], parts["listen"]) == ("0.011", "0.222", "0.333", "0.444")
        assert float(parts["queue"]) + float(parts["first-byte"]) <= float(parts["total"]) + 0.002
        a = c.call(headers=["Dirigent-Receipt: 1"])
        assert a.h["dirigent-cold"] == "0" and "place" not in a.h["server-timing"] and "connect" not in a.h["server-timing"]
        a = c.call()
        assert "server-timing" not in a.h and "dirigent-sandbox" not in a.h


def test_waiting_requests_are_served_oldest_first_over_all_threads(world):
    w = world()
    clients = [w.client() for _ in range(30)]
    for i, c in enumerate(clients):
        c.send(b"GET /%d HTTP/1.1\r\nHost: hello\r\n\r\n" % i)
        w.wait_waiting(i + 1)
    box = w.sandbox()
    assert all(c.answer().status == 200 for c in clients)
    assert [r["target"] for r in box.requests] == [f"/{i}" for i in range(30)]


@pytest.mark.parametrize("concurrency, boxes", [(1, 1), (1, 4), (3, 2)])
def test_concurrency_of_a_sandbox_is_hard(world, concurrency, boxes):
    w = world(concurrency=concurrency)
    made = [w.sandbox(delay=0.003) for _ in range(boxes)]

    def client(i):
        with w.client() as c:
            return [c.call("POST", body=b"%d-%d" % (i, k)).body for k in range(20)]
    results = in_parallel(24, client)
    assert all(r == [b"%d-%d" % (i, k) for k in range(20)] for i, r in enumerate(results))
    assert [b.busy_max <= concurrency for b in made] == [True] * boxes
    assert sum(len(b.requests) for b in made) == 480
    assert all(len(b.requests) > 20 for b in made)


def test_full_queue_is_503_with_retry_after(world):
    w = world(queue=3)
    clients = [w.client() for _ in range(3)]
    for i, c in enumerate(clients):
        c.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        w.wait_waiting(i + 1)
    a = w.call()
    assert (a.status, a.code, a.h["retry-after"]) == (503, "queue_full", "1")
    w.sandbox()
    assert all(c.answer().status == 200 for c in clients)


def test_client_that_leaves_while_it_waits_leaves_the_queue(world):
    """F40, while queued"""
    w = world()
    clients = [w.client() for _ in range(3)]
    for i, c in enumerate(clients):
        c.send(b"GET /%d HTTP/1.1\r\nHost: hello\r\n\r\n" % i)
        w.wait_waiting(i + 1)
    clients[0].sock.close()
    w.wait_waiting(2)
    box = w.sandbox()
    assert clients[1].answer().status == 200 and clients[2].answer().status == 200
    assert [r["target"] for r in box.requests] == ["/1", "/2"]


def test_client_that_leaves_with_a_large_body_half_sent_leaves_the_queue(world):
    """F40, within the request"""
    w = world()
    with w.client() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 100000000\r\n\r\n")
        w.wait_waiting(1)
        for _ in range(6):  # more than it keeps, so that it is paused; less than the kernel keeps: the end can arrive
            c.send(b"x" * 16384)
            time.sleep(0.02)
    w.wait_waiting(0)
    box = w.sandbox()
    assert w.call().status == 200 and len(box.requests) == 1


def test_wait_and_answer_have_the_functions_timeout(world):
    w = world(timeout_ms=400)
    begin = time.monotonic()
    a = w.call()
    took = time.monotonic() - begin
    assert (a.status, a.code) == (504, "wait_timeout") and "no sandbox was free" in a.body.decode()
    assert 0.39 < took < 2
    w.wait_waiting(0)

    def handler(c):
        r = c.request()
        if r["target"] == "/begun":
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegin")
        time.sleep(2)
    box = w.sandbox(handler)
    a = w.call()
    assert (a.status, a.code) == (504, "answer_timeout") and "did not begin to answer" in a.body.decode()
    with w.client() as c, pytest.raises(Cut) as cut:
        c.call(path="/begun")
    assert cut.value.reset
    assert len(box.requests) == 2


def test_failed_start_is_told_to_all_who_wait(world):
    w = world()
    clients = [w.client() for _ in range(5)]
    for i, c in enumerate(clients):
        c.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        w.wait_waiting(i + 1)
    w.cp.fail_waiting(HELLO, 502, "sandbox_exited", 'it ended with code 3 "at once"', b"Traceback\n \xff\x00 boom\n", 7)
    for c in clients:
        a = c.answer()
        assert (a.status, a.code, a.h["retry-after"]) == (502, "sandbox_exited", "7")
        import json
        error = json.loads(a.body)["error"]
        assert error["code"] == "sandbox_exited" and error["function"] == "hello"
        assert error["message"] == 'it ended with code 3 "at once"'
        assert error["last_output"] == "Traceback\n \ufffd\x00 boom\n"
    w.wait_waiting(0)
    w.sandbox()
    assert clients[0].call().status == 200  # the connection stays


def test_demand_is_told_at_once_and_rest_is_told_too(world):
    w = world(concurrency=1)
    w.sandbox(delay=1.2)
    with w.client() as a, w.client() as b:
        a.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        w.cp.wait(lambda: w.cp.demands.get(HELLO, {}).get("in_flight") == 1, "in flight")
        begin = time.monotonic()
        b.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        w.wait_waiting(1)
        assert time.monotonic() - begin < 0.25
        w.cp.wait(lambda: w.cp.demands.get(HELLO, {}).get("average", 0) > 0.9, "average")
        w.cp.wait(lambda: w.cp.loads.get(100) == 1, "load")
        assert a.answer().status == 200 and b.answer().status == 200
        w.cp.wait(lambda: w.cp.demands[HELLO] == {"in_flight": 0, "waiting": 0, "total": 2, "average": 0.0}, "rest")
        w.cp.wait(lambda: w.cp.loads.get(100) == 0, "load")
    count = len(w.cp.demand_history)
    time.sleep(1.2)
    assert len(w.cp.demand_history) == count  # nothing happens, nothing is told


def test_body_limit(world):
    w = world(body=1000)
    box = w.sandbox()
    assert w.call("POST", body=b"x" * 1000).status == 200
    with w.client() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 5000000\r\n\r\n")
        a = c.answer()
        assert (a.status, a.code, a.h["connection"]) == (413, "body_too_large", "close")
    with w.client() as c:  # small enough to be here already: the connection stays
        assert c.call("POST", body=b"x" * 1001).status == 413
        assert c.call("POST", body=b"x").status == 200
    with w.client() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
        assert c.answer().status == 413
    with w.client() as c:  # found out while it is passed on
        c.send(b"POST /slow HTTP/1.1\r\nHost: hello\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not any(r["target"] == "/slow" for r in box.requests):
            time.sleep(0.01)
        for _ in range(3):
            c.send(b"1f4\r\n" + b"x" * 500 + b"\r\n")
            time.sleep(0.02)
        assert c.answer().status == 413
    assert w.call("POST", body=b"y").body == b"y"


# ---- sandboxes that fail ----


def dying(connection):
    connection.request()
    connection.close()


@pytest.mark.parametrize("method, status", [("GET", 200), ("PUT", 200), ("DELETE", 200), ("POST", 502), ("PATCH", 502)])
def test_sandbox_that_dies_before_it_answers(world, method, status):
    w = world(policy=4)  # first-free: the dying one comes first
    bad, good = w.sandbox(dying), w.sandbox()
    body = b"data" if method in ("PUT", "POST", "PATCH") else None
    for i in range(1, 6):
        a = w.call(method, body=body)
        assert a.status == status, a
        assert len(bad.requests) == i
        assert len(good.requests) == (i if status == 200 else 0)  # at most once, unless idempotent
        if status == 502:
            assert a.code == "sandbox_closed"
        # a slot may be given back after its answer has come, and the next call would find the other sandbox
        wait_until(lambda: w.metric("dirigent_function_in_flight") == 0, 5, "both slots to be free")


def test_only_one_other_sandbox_is_tried(world):
    w = world()
    boxes = [w.sandbox(dying) for _ in range(4)]
    a = w.call()
    assert (a.status, a.code) == (502, "sandbox_closed")
    assert sum(len(b.requests) for b in boxes) == 2


def test_body_that_went_through_is_not_sent_again(world):
    w = world(policy=4)

    def handler(c):
        r = c.request(body=False)
        c.exactly(int(r["h"]["content-length"]) // 2)
        c.reset()
    bad, good = w.sandbox(handler), w.sandbox()
    a = w.call("PUT", body=b"x" * (4 << 20))
    assert (a.status, a.code) == (502, "sandbox_closed")
    assert len(good.requests) == 0
    a = w.call("PUT", body=b"x" * 10000)  # kept with the head: can be sent again
    assert a.status == 200 and len(good.requests) == 1 and good.requests[0]["body"] == b"x" * 10000


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_kept_connection_that_was_just_closed_is_no_failure(world, method):
    """The sandbox closes its idle connection in the moment in which the next request comes. The data plane is stopped
    meanwhile, so that it finds both at once, in either order."""
    w = world(threads=1)
    box = w.sandbox()
    with w.client() as c:
        for i in range(20):
            assert c.call(method, body=b"x").status == 200
            os.kill(w.dp.process.pid, signal.SIGSTOP)
            while " T " not in open(f"/proc/{w.dp.process.pid}/stat").read():
                pass
            if i % 2:
                box.connections[-1].close()
            c.send(b"%s /%d HTTP/1.1\r\nHost: hello\r\nContent-Length: 1\r\n\r\ny" % (method.encode(), i))
            if not i % 2:
                box.connections[-1].close()
            os.kill(w.dp.process.pid, signal.SIGCONT)
            assert c.answer().body == b"y"
    assert len(box.requests) == 40  # each exactly once


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it",
                                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
                                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
                                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"])
@pytest.mark.parametrize("reset", [False, True])
def test_cut_answer_never_looks_complete(world, answer, reset):
    """F41"""
    w = world()

    def handler(c):
        c.request()
        c.send(answer)
        time.sleep(0.05)
        c.reset() if reset else c.close()
    w.sandbox(handler)
    for _ in range(3):
        with w.client() as c, pytest.raises(Cut) as cut:
            c.call()
        assert cut.value.reset
    with w.client() as c:  # 1.0: no chunks tell the end, only the reset
        c.send(b"GET / HTTP/1.0\r\nHost: hello\r\n\r\n")
        with pytest.raises(Cut) as cut:
            c.answer()
        assert cut.value.reset


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n",
                                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
                                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
                                    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 50000 + b"\r\n\r\n",
                                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"])
def test_garbled_answer_is_502_and_its_connection_is_closed(world, answer):
    w = world()

    def handler(c):
        while c.request() is not None:
            c.send(answer)
    box = w.sandbox(handler)
    with w.client() as c:
        for i in range(1, 4):
            a = c.call()
            assert a.status == 502 and a.code in ("bad_answer", "bad_upgrade"), a
            assert box.accepted == i  # never used again


def test_more_than_was_announced_is_dropped_with_its_connection(world):
    w = world()

    def handler(c):
        while c.request() is not None:
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    box = w.sandbox(handler)
    with w.client() as c:
        for i in range(1, 6):
            assert c.call().body == b"ok"
            assert box.accepted == i

    def late(c):
        while c.request() is not None:
            c.answer(b"ok")
            time.sleep(0.03)
            c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
    w.cp.remove(box.number)
    box = w.sandbox(late)
    with w.client() as c:
        for i in range(1, 6):
            assert c.call().body == b"ok"
            time.sleep(0.08)


def test_answer_before_the_end_of_the_request(world):
    w = world()

    def handler(c):
        r = c.request(body=False)
        c.answer(b"no, thanks", "413 Content Too Large" if r["h"].get("content-length") == "1000000" else "200 OK")
        c.more()
    box = w.sandbox(handler)
    with w.client() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 20000)
        a = c.answer()
        assert (a.status, a.body, a.h["connection"]) == (413, b"no, thanks", "close")
        c.send(b"x" * 1000)  # still thrown away, no reset that destroys the answer
        assert c.at_end()
    assert w.call().status == 200
    assert box.accepted == 2


def test_sandbox_that_cannot_be_connected_is_taken_out_and_reported(world):
    w = world(policy=4)
    bad, good = w.sandbox(), w.sandbox()
    bad.refuse()
    a = w.call("POST", body=b"x")
    assert a.status == 200 and a.h["x-sandbox"] == str(good.number)
    w.cp.wait(lambda: w.cp.failures, "report")
    assert w.cp.failures[0][0] == bad.number and "refused" in w.cp.failures[0][1]
    assert len(good.requests) == 1


def test_sandbox_that_cannot_be_connected_alone_lets_requests_wait_for_another(world):
    w = world()
    bad = w.sandbox()
    bad.refuse()
    with w.client() as c:
        c.send(b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 1\r\n\r\nx")
        w.cp.wait(lambda: w.cp.failures and w.cp.demands.get(HELLO, {}).get("waiting") == 1, "report and demand")
        w.cp.remove(bad.number)
        w.sandbox()
        assert c.answer().status == 200


def test_client_that_leaves_within_an_answer_frees_the_slot(world):
    """F40, within the answer"""
    w = world()
    left = threading.Event()

    def handler(c):
        while (r := c.request()) is not None:
            if r["target"] == "/long":
                c.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
                try:
                    while True:
                        c.send(b"x" * 65536)
                finally:
                    left.set()
            c.answer()
    w.sandbox(handler)
    for reset in (False, True):
        left.clear()
        with w.client() as c:
            c.send(b"GET /long HTTP/1.1\r\nHost: hello\r\n\r\n")
            c.exactly(100000)
            if reset:
                import struct
                c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert left.wait(5)
        assert w.call().status == 200
    with w.client() as c:  # before the answer
        c.send(b"POST /x HTTP/1.1\r\nHost: hello\r\nContent-Length: 10\r\n\r\nabc")
        time.sleep(0.05)
    assert w.call().status == 200
    w.cp.wait(lambda: w.cp.demands.get(HELLO, {}).get("in_flight") == 0, "rest")


def test_one_connection_at_a_time_is_enough_for_concurrency_1(world):
    """A program that serves one connection until it ends: connections kept by one thread must not starve another's."""
    w = world(threads=2)
    w.sandbox(serial=True)
    begin = time.monotonic()
    for _ in range(60):  # each connection of a client may land on either thread
        assert w.call().status == 200
    assert time.monotonic() - begin < 5


# ---- upgrade ----

UPGRADE = (b"GET /ws HTTP/1.1\r\nHost: hello\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: abc\r\n"
           b"Sec-WebSocket-Version: 13\r\n\r\n")


def test_websocket(world):
    w = world(concurrency=1)

    def handler(c):
        r = c.request()
        assert r["h"]["upgrade"] == "websocket" and r["h"]["connection"].lower() == "upgrade"
        assert r["h"]["sec-websocket-key"] == "abc"
        c.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nfirst")
        while True:
            if c.buffered:
                c.send(c.buffered.upper())
                c.buffered = b""
            if not c.more():
                c.send(b"bye")
                return
    w.sandbox(handler)
    with w.client() as c:
        c.send(UPGRADE + b"early ")
        a = c.answer()
        assert a.status == 101 and a.h["upgrade"] == "websocket" and a.h["sec-websocket-accept"] == "x"
        assert c.exactly(11) in (b"firstEARLY ",)
        big = os.urandom(3 << 20).hex().encode()
        sender = threading.Thread(target=c.send, args=(big,))
        sender.start()
        assert c.exactly(len(big)) == big.upper()
        sender.join()
        w.cp.wait(lambda: w.cp.demands.get(HELLO, {}).get("in_flight") == 1, "the slot is held")
        c.sock.shutdown(socket.SHUT_WR)
        assert c.rest() == b"bye"
    w.cp.wait(lambda: w.cp.demands.get(HELLO, {}).get("in_flight") == 0, "the slot is free")


def test_upgrade_that_is_refused_is_an_answer(world):
    w = world()
    w.sandbox()
    with w.client() as c:
        c.send(UPGRADE)
        assert c.answer().status == 200
        assert c.call().status == 200


@pytest.mark.parametrize("head", [b"HTTP/1.1 101 X\r\n\r\n", b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
                                  b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\n\r\n"])
def test_upgrade_that_is_not_valid_is_502(world, head):
    w = world()

    def handler(c):
        c.request()
        c.send(head)
        c.more()
    w.sandbox(handler)
    with w.client() as c:
        c.send(UPGRADE)
        a = c.answer()
        assert (a.status, a.code) == (502, "bad_upgrade")


def test_tunnel_broken_by_either_side(world):
    w = world()

    def handler(c):
        r = c.request()
        c.send(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        if "die" in r["target"]:
            c.reset()
        while c.more():
            pass
    w.sandbox(handler)
    with w.client() as c:
        c.send(UPGRADE)
        assert c.answer().status == 101
    w.cp.wait(lambda: w.cp.demands.get(HELLO, {}).get("in_flight") == 0 and w.cp.demands[HELLO]["total"] == 1, "slot")
    with w.client() as c:
        c.send(UPGRADE.replace(b"/ws", b"/die"))
        with pytest.raises(Cut):
            c.answer()
            c.exactly(1)


# ---- endpoints and functions that change ----


def test_drained_sandbox_ends_its_requests_and_is_told(world):
    w = world()
    old = w.sandbox(delay=0.4)
    with w.client() as c:
        c.send(b"GET /old HTTP/1.1\r\nHost: hello\r\n\r\n")
        while not old.requests:
            time.sleep(0.01)
        w.cp.drain(old.number)
        new = w.sandbox()
        assert w.call().h["x-sandbox"] == str(new.number)
        assert w.cp.drained == []
        assert c.answer().h["x-sandbox"] == str(old.number)
        w.cp.wait(lambda: w.cp.drained == [old.number], "drained")
        w.cp.drain(old.number)  # asked again, told again
        w.cp.wait(lambda: w.cp.drained == [old.number] * 2, "drained")
        w.cp.drain(9999)  # unknown: nothing of it is in flight here
        w.cp.wait(lambda: w.cp.drained[-1] == 9999, "drained")
        for _ in range(3):
            assert c.call().h["x-sandbox"] == str(new.number)


def test_idle_sandbox_is_drained_at_once_and_its_connections_are_closed(world):
    w = world()
    box = w.sandbox()
    assert w.call().status == 200
    w.cp.drain(box.number)
    w.cp.wait(lambda: w.cp.drained == [box.number], "drained")
    connection = box.connections[0]
    for _ in range(200):
        if connection.sock.fileno() < 0:
            break
        time.sleep(0.01)
    assert connection.sock.fileno() < 0


def test_removed_sandbox_that_says_nothing_more_is_given_up(world):
    w = world(policy=4, timeout_ms=20000)

    def silent(c):
        c.request()
        time.sleep(20)
    dead, good = w.sandbox(silent), w.sandbox()
    with w.client() as c, w.client() as p:
        c.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        while not dead.requests:
            time.sleep(0.01)
        w.cp.remove(dead.number)
        begin = time.monotonic()
        a = c.answer()
        assert a.status == 200 and a.h["x-sandbox"] == str(good.number) and time.monotonic() - begin < 4


def test_removed_sandbox_that_has_answered_is_heard_to_the_end(world):
    w = world()
    box = w.sandbox(delay=0.3)
    with w.client() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        while not box.requests:
            time.sleep(0.01)
        w.cp.remove(box.number)
        assert c.answer().status == 200


def test_deleted_function_answers_who_waits_and_lets_others_end(world):
    """F48"""
    w = world()
    box = w.sandbox(delay=0.5)
    with w.client() as served, w.client() as waits:
        served.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        while not box.requests:
            time.sleep(0.01)
        waits.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        w.wait_waiting(1)
        w.cp.remove_function(HELLO)
        a = waits.answer()
        assert (a.status, a.code) == (404, "function_deleted")
        assert served.answer().status == 200
        assert waits.call().code == "function_unknown"
        w.cp.wait(lambda: box.number in w.cp.drained, "drained")
    w.cp.function(HELLO + 1, "hello")  # the name again, another function
    w.sandbox(function=HELLO + 1)
    for _ in range(100):
        if w.call().status == 200:
            break
    assert w.call().status == 200


def test_new_concurrency_takes_effect_at_once(world):
    w = world(concurrency=1)
    box = w.sandbox(delay=0.3)
    clients = [w.client() for _ in range(4)]
    for c in clients:
        c.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
    w.wait_waiting(3)
    w.cp.function(HELLO, "hello", concurrency=4)
    assert all(c.answer().status == 200 for c in clients)
    assert box.busy_max >= 3


# ---- the control plane goes and comes ----


def test_warm_requests_go_on_without_control_plane(world):
    w = world(timeout_ms=2500)
    w.sandbox()
    w.cp.function(8, "cold", timeout_ms=2500)
    assert w.call().status == 200
    w.cp.close()
    for _ in range(50):
        assert w.call().status == 200
    while w.call(host="localhost", path="/metrics").body.count(b"dirigent_data_plane_control_plane_up 1"):
        time.sleep(0.02)
    a = w.call(host="cold")
    assert (a.status, a.code) == (504, "wait_timeout") and "control plane cannot be reached" in a.body.decode()
    # it comes back, as a new leader, with a snapshot
    again = FakeControlPlane(w.cp.port, epoch=2)
    again.routes, again.endpoints = dict(w.cp.routes), dict(w.cp.endpoints)
    with w.client() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: cold\r\n\r\n")
        again.wait(lambda: again.demands.get(8, {}).get("waiting") == 1, "demand is told anew")
        assert again.hellos[0]["known"] == [100]
        box = Sandbox(300)
        w.sandboxes.append(box)
        again.endpoint(300, 8, box.address)
        assert c.answer().status == 200
    w.cp = again


def test_a_snapshot_in_parts_takes_nothing_away_before_its_end(world):
    w = world()
    w.sandbox()
    for number in (8, 9):
        w.cp.function(number, f"other-{number}")
    box = Sandbox(300)
    w.sandboxes.append(box)
    w.cp.endpoint(300, 9, box.address)
    assert w.call(host="other-9").status == 200
    w.cp.routes.pop(8)
    with w.client() as c:
        c.send(b"GET / HTTP/1.1\r\nHost: other-8\r\n\r\n")  # waits, for a function that is gone
        w.cp.wait(lambda: w.cp.demands.get(8, {}).get("waiting") == 1, "its demand")

        def pause():
            for _ in range(20):
                assert w.call(host="other-9").status == 200, "it comes with the next part"
                time.sleep(0.01)
        with w.cp.changed:
            w.cp.send_snapshot_in_parts(pause)
        assert c.answer().status == 404
    assert w.call(host="other-9").status == 200 and w.call().status == 200


def test_snapshot_replaces_what_was_known(world):
    w = world()
    w.sandbox(), w.sandbox()
    w.cp.function(8, "other")
    assert w.call(host="hello").status == 200
    w.cp.routes.pop(8)
    w.cp.endpoints.pop(100)
    w.cp.disconnect()
    w.cp.wait(lambda: len(w.cp.hellos) == 2, "second hello")
    assert sorted(w.cp.hellos[1]["known"]) == [100, 101]
    for _ in range(300):
        if w.call(host="other").status == 404:
            break
        time.sleep(0.01)
    assert w.call(host="other").code == "function_unknown"
    assert {w.call().h["x-sandbox"] for _ in range(10)} == {"101"}


def test_orders_of_an_older_epoch_are_refused(world):
    w = world()
    w.sandbox()
    w.cp.epoch = 5
    w.cp.function(8, "new")
    for _ in range(200):
        if w.call(host="new", path="/", headers=["X: 1"]).code != "function_unknown":
            break
        w.cp.endpoint(101, 8, w.sandboxes[0].address)
        time.sleep(0.01)
    w.cp.epoch = 4
    w.cp.remove_function(HELLO)
    w.cp.wait(lambda: w.cp.connection is None or len(w.cp.hellos) > 1, "it hangs up")
    assert w.call().status == 200
    w.cp.epoch = 6


def test_refused_by_the_control_plane(build):
    cp = FakeControlPlane()
    cp.refuse = "another cluster"
    dp = DataPlane(cp)
    try:
        cp.wait(lambda: cp.hellos, "hello")
        for _ in range(200):
            if "another cluster" in dp.log():
                break
            time.sleep(0.01)
        assert "another cluster" in dp.log()
        a = dp.call()
        assert (a.status, a.code) == (503, "not_ready")
        assert dp.call(host="localhost", path="/readyz").status == 503
        assert dp.call(host="localhost", path="/healthz").status == 200
    finally:
        assert dp.close() == 0
        cp.close()


# ---- start and end ----


def test_stop_ends_requests_and_says_goodbye(world):
    w = world()
    box = w.sandbox(delay=0.7)
    with w.client() as busy, w.client() as idle, w.client() as waits:
        assert idle.call(host="nobody").status == 404
        busy.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        while not box.requests:
            time.sleep(0.01)
        waits.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        w.wait_waiting(1)
        w.dp.process.send_signal(signal.SIGTERM)
        assert idle.at_end()
        for c in (busy, waits):
            a = c.answer()
            assert a.status == 200 and a.h["connection"] == "close" and c.at_end()
        assert w.dp.process.wait(10) == 0
    assert w.cp.goodbyes == 1


def test_stop_has_a_deadline(world):
    w = world("--drain-deadline", "500ms", timeout_ms=60000)

    def handler(c):
        c.request()
        time.sleep(30)
    box = w.sandbox(handler)
    with w.client() as c, w.client() as waits:
        c.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        while not box.requests:
            time.sleep(0.01)
        waits.send(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
        w.wait_waiting(1)
        begin = time.monotonic()
        assert w.dp.stop() == 0
        assert 0.4 < time.monotonic() - begin < 5
        with pytest.raises(Cut):
            c.answer()


def test_refusals_at_start(world, build, tmp_path):
    """F57, among others"""
    w = world()
    directories = ["--data-dir", tmp_path / "d", "--run-dir", tmp_path / "r"]
    os.chmod(tmp_path, 0o755)
    taken = run_cli("data-plane", "--listen", f"127.0.0.1:{w.dp.port}", *directories)
    assert taken.code == 1 and str(w.dp.port) in taken.err and "another program" in taken.err
    twice = run_cli("data-plane", "--listen", "127.0.0.1:0", "--data-dir", w.dp.directory / "data", "--run-dir", tmp_path / "r")
    assert twice.code == 1 and "in use by another instance" in twice.err
    for flags, word in ((["--threads", "1000"], "--threads"), (["--log-level", "loud"], "--log-level"),
                        (["--drain-deadline", "2h"], "--drain-deadline"), (["--nonsense"], "nonsense"),
                        (["--listen", "nowhere"], "listen")):
        bad = run_cli("data-plane", *flags, *directories)
        assert bad.code == 2 and word in bad.err, bad


def test_too_many_connections_are_turned_away(world):
    w = world("--connections", "32", threads=1)
    w.sandbox()
    held = [w.client() for _ in range(32)]
    for c in held:
        assert c.call().status == 200
    with w.client() as c:
        with pytest.raises((Cut, ConnectionError)):
            c.call()
    held.pop().sock.close()
    for _ in range(100): # its place is free when the data plane has noticed
        try:
            status = w.call().status
            break
        except (Cut, ConnectionError):
            status = 0
            time.sleep(0.01)
    assert status == 200
    for c in held:
        c.sock.close()


@pytest.mark.slow
def test_slow_heads_and_idle_connections_end(world):
    w = world()
    with w.client() as slow, w.client() as idle:
        begin = time.monotonic()
        slow.send(b"GET / HTTP/1.1\r\nHost: hel")
        a = slow.answer()
        assert (a.status, a.code) == (408, "head_timeout") and 9 < time.monotonic() - begin < 13
        assert idle.at_end()


# ---- everything at once ----


@pytest.mark.parametrize("seed", [1, 2])
def test_no_answer_reaches_another_request(world, seed):
    """Clients of all kinds, sandboxes that come, go, die and misbehave: whatever is answered with 200 is whole and is the
    answer to its own request; the books balance at the end."""
    w = world(concurrency=2, timeout_ms=8000, threads=2)
    rng = random.Random(seed)

    def handler(c):
        mine = random.Random(rng.random())
        while (r := c.request()) is not None:
            fate = mine.random()
            body = hashlib.sha256(r["h"]["x-nonce"].encode() + r["body"]).hexdigest().encode() * mine.choice([1, 50, 4000])
            if fate < 0.05:
                return
            if fate < 0.10:
                c.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:len(body) // 2])
                c.reset()
                return
            if fate < 0.5:
                c.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks_of(body, mine) + b"0\r\n\r\n")
            else:
                c.answer(body)
            if fate > 0.95:
                return
    for _ in range(3):
        w.sandbox(handler)
    stop = threading.Event()

    def churn():
        while not stop.wait(0.05):
            w.sandbox(handler)
            victim = rng.choice(w.sandboxes[:-1])
            if rng.random() < 0.5:
                w.cp.drain(victim.number)
            else:
                victim.close()
                w.cp.remove(victim.number)
    churner = threading.Thread(target=churn)
    churner.start()

    def client(i):
        mine, good, odd = random.Random(seed * 1000 + i), 0, 0
        c = w.client()
        for k in range(60):
            nonce, body = f"{i}-{k}-{mine.random()}", mine.randbytes(mine.choice([0, 10, 3000, 100000]))
            method = mine.choice(["GET", "POST", "PUT"])
            expected = hashlib.sha256(nonce.encode() + body).hexdigest().encode()
            lines = [f"{method} /{k} HTTP/1.1", "Host: hello", f"X-Nonce: {nonce}"]
            try:
                if mine.random() < 0.5:
                    lines.append(f"Content-Length: {len(body)}")
                    data = body
                else:
                    lines.append("Transfer-Encoding: chunked")
                    data = chunks_of(body, mine) + b"0\r\n\r\n"
                c.send(("\r\n".join(lines) + "\r\n\r\n").encode() + data)
                if mine.random() < 0.03:
                    raise Cut(False, b"")  # we leave
                a = c.answer()
                if a.status == 200:
                    assert len(a.body) % 64 == 0 and len(a.body) > 0 and a.body == expected * (len(a.body) // 64)
                    good += 1
                else:
                    assert a.status == 502, a
                    odd += 1
                if a.h.get("connection") == "close":
                    raise Cut(False, b"")
            except (Cut, ConnectionError):
                odd += 1
                c.sock.close()
                c = w.client()
        c.sock.close()
        return good
    try:
        good = in_parallel(24, client)
    finally:
        stop.set()
        churner.join()
    assert sum(good) > 24 * 60 * 0.6
    w.cp.wait(lambda: w.cp.demands.get(HELLO, {}).get("in_flight") == 0 and w.cp.demands.get(HELLO, {}).get("waiting") == 0, "rest")


def test_herd_on_a_cold_function(world):
    """F37: all of many requests to one cold function are served, none is forgotten."""
    w = world(concurrency=10, timeout_ms=30000, queue=100000)
    count = 300 if SANITIZED else 1500
    clients = [w.client() for _ in range(count)]
    for i, c in enumerate(clients):
        c.send(b"GET /%d HTTP/1.1\r\nHost: hello\r\n\r\n" % i)
    w.cp.wait(lambda: w.cp.demands.get(HELLO, {}).get("waiting") == count, "all wait", timeout=30)
    boxes = [w.sandbox(delay=0.001) for _ in range(5)]
    assert all(c.answer().status == 200 for c in clients)
    assert sum(len(b.requests) for b in boxes) == count and max(b.busy_max for b in boxes) <= 10
    for c in clients:
        c.sock.close()

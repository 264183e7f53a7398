"""A control plane and sandboxes that do exactly what a test says, around a real data plane. Standard library only.

The cluster protocol is protobuf in length-prefixed frames (src/wire/dirigent.proto); the few messages that are needed are
written and read here by their field numbers."""
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

from cluster import BUILD, free_ports

# ---- protobuf ----


def varint(value):
    value &= (1 << 64) - 1
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def message(fields):
    """[(number, value)]: int as varint, str, bytes and nested lists length-delimited; what is empty is left out."""
    out = b""
    for number, value in fields:
        if isinstance(value, (bool, int)):
            if value:
                out += varint(number << 3) + varint(int(value))
            continue
        data = message(value) if isinstance(value, list) else value.encode() if isinstance(value, str) else value
        if data or isinstance(value, list):
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def parse(data):
    """{number: [values]}: varints as int, the rest as bytes, doubles as float."""
    fields, at = {}, 0

    def take_varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value
    while at < len(data):
        key = take_varint()
        kind = key & 7
        if kind == 0:
            value = take_varint()
        elif kind == 1:
            value = struct.unpack_from("<d", data, at)[0]
            at += 8
        else:
            length = take_varint()
            value = data[at:at + length]
            at += length
        fields.setdefault(key >> 3, []).append(value)
    return fields


def packed(values):
    """Repeated numbers come packed."""
    out = []
    for value in values:
        if isinstance(value, int):
            out.append(value)
            continue
        while value:
            number = shift = 0
            for i, byte in enumerate(value):
                number |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
            out.append(number)
            value = value[i + 1:]
    return out


# ---- control plane ----


class FakeControlPlane:
    def __init__(self, port=None, epoch=1):
        self.epoch = epoch
        self.routes, self.endpoints = {}, {}
        self.demands = {}         # function id -> newest {in_flight, waiting, total, average}
        self.demand_history = []  # (function id, waiting, in_flight)
        self.sync = self.synced = 0
        self.drained, self.failures, self.hellos, self.goodbyes, self.loads = [], [], [], 0, {}
        self.changed = threading.Condition()
        self.connection = None
        self.refuse = ""
        self.listener = socket.create_server(("127.0.0.1", port or 0))
        self.port = self.listener.getsockname()[1]
        self.closed = False
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self):
        while not self.closed:
            time.sleep(0.4)
            with self.changed:
                try:
                    if self.connection is not None:
                        self.connection.sendall(bytes(4))
                except OSError:
                    pass

    def _accept(self):
        while not self.closed:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        buffered = b""
        try:
            while True:
                data = connection.recv(65536)
                if not data:
                    return
                buffered += data
                while len(buffered) >= 4:
                    size = struct.unpack(">I", buffered[:4])[0]
                    if len(buffered) < 4 + size:
                        break
                    frame, buffered = buffered[4:4 + size], buffered[4 + size:]
                    if frame:
                        self._take(connection, parse(frame))
        except OSError:
            pass
        finally:
            with self.changed:
                if self.connection is connection:
                    self.connection = None
                self.changed.notify_all()

    def _take(self, connection, m):
        with self.changed:
            if 1 in m:
                hello = parse(m[1][0])
                self.hellos.append({"name": hello[5][0].decode(), "listen": hello[20][0].decode(),
                                    "known": packed(hello.get(21, []))})
                self.connection = connection
                if self.refuse:
                    self.send([(2, [(5, self.refuse)])])
                    connection.close()
                    return
                self.send([(2, [(1, 1), (2, 500), (3, 2000)])])
                self.send_snapshot()
            for data in m.get(4, []):
                d = parse(data)
                function = d[1][0]
                now = {"in_flight": d.get(2, [0])[0], "waiting": d.get(3, [0])[0], "total": d.get(4, [0])[0],
                       "average": d.get(5, [0.0])[0]}
                self.demands[function] = now
                self.demand_history.append((function, now["waiting"], now["in_flight"]))
            self.drained += packed(m.get(5, []))
            for data in m.get(6, []):
                f = parse(data)
                self.failures.append((f[1][0], f.get(2, [b""])[0].decode()))
            for data in m.get(10, []):
                f = parse(data)
                self.loads[f[1][0]] = f.get(2, [0])[0]
            self.goodbyes += len(m.get(11, []))
            self.synced = max([self.synced, *m.get(12, [])])
            self.changed.notify_all()

    def send(self, fields):
        frame = message([(1, self.epoch), *fields])
        if self.connection is not None:
            self.connection.sendall(struct.pack(">I", len(frame)) + frame)

    def send_snapshot(self):
        self.send([(10, True), *[(11, r) for r in self.routes.values()], *[(13, e) for e in self.endpoints.values()]])

    def send_snapshot_in_parts(self, pause):
        """One function after the other, as of a great many; `pause()` is called between two parts."""
        for i, (number, route) in enumerate(self.routes.items()):
            pause() if i > 0 else None
            own = [(13, e) for e in self.endpoints.values() if e[1][1] == number]
            self.send([(10, i == 0), (11, route), *own, (24, i < len(self.routes) - 1)])

    def wait(self, condition, what="", timeout=10):
        with self.changed:
            if not self.changed.wait_for(condition, timeout):
                raise AssertionError(f"waited {timeout} s in vain: {what}; demands {self.demands}")

    # what a control plane orders
    def function(self, number, name, concurrency=1, policy=0, timeout_ms=10000, queue=10000, body=0):
        with self.changed:
            self.routes[number] = [(1, number), (2, name), (3, concurrency), (4, policy), (5, timeout_ms), (6, queue),
                                   (7, body), (8, 100)]
            connected = self.connection is not None
            self.sync += 1
            self.send([(11, self.routes[number]), (18, self.sync)])
        self.wait_in_force(connected)  # no call before all of its threads know the function

    def wait_in_force(self, connected):
        if connected:
            self.wait(lambda: self.connection is None or self.synced >= self.sync, "the data plane's word that it is in force")

    def remove_function(self, number):
        with self.changed:
            self.routes.pop(number, None)
            self.endpoints = {k: v for k, v in self.endpoints.items() if v[1][1] != number}
            self.send([(12, varint(number))])

    def endpoint(self, sandbox, function, address, worker="worker-1"):
        with self.changed:
            self.endpoints[sandbox] = [(1, sandbox), (2, function), (3, 1), (4, address), (5, worker), (6, 11), (7, 222),
                                       (8, 333), (9, 444)]
            connected = self.connection is not None
            self.sync += 1
            self.send([(13, self.endpoints[sandbox]), (18, self.sync)])
        self.wait_in_force(connected)

    def drain(self, sandbox):
        with self.changed:
            self.endpoints.pop(sandbox, None)
            self.send([(14, varint(sandbox))])

    def remove(self, sandbox):
        with self.changed:
            self.endpoints.pop(sandbox, None)
            self.send([(15, varint(sandbox))])

    def fail_waiting(self, function, status=502, code="sandbox_exited", text="it exited", output=b"", retry_after=0):
        with self.changed:
            self.send([(16, [(1, function), (2, status), (3, code), (4, text), (5, output), (6, retry_after)])])

    def want_demand(self, function):
        with self.changed:
            self.send([(17, varint(function))])

    def disconnect(self):
        with self.changed:
            if self.connection is not None:
                self.connection.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.closed = True
        self.listener.close()
        self.disconnect()


# ---- sandboxes ----


class Connection:
    """One connection of the data plane to a sandbox."""

    def __init__(self, sock, sandbox):
        self.sock, self.sandbox, self.buffered = sock, sandbox, b""

    def more(self):
        data = self.sock.recv(1 << 18)
        self.buffered += data
        return bool(data)

    def until(self, mark):
        """None when the connection ends before anything came."""
        while mark not in self.buffered:
            if not self.more():
                if self.buffered:
                    raise EOFError
                return None
        out, self.buffered = self.buffered.split(mark, 1)
        return out

    def exactly(self, count):
        while len(self.buffered) < count:
            if not self.more():
                raise EOFError
        out, self.buffered = self.buffered[:count], self.buffered[count:]
        return out

    def request(self, body=True):
        """None at the end; else a dict."""
        head = self.until(b"\r\n\r\n")
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, target, version = lines[0].split(" ")
        headers = [tuple(line.split(": ", 1)) for line in lines[1:]]
        r = {"method": method, "target": target, "version": version, "lines": lines[1:], "headers": headers,
             "h": {k.lower(): v for k, v in headers}, "raw": head, "body": b"", "trailers": []}
        with self.sandbox.lock:
            self.sandbox.requests.append(r)
        if body:
            r["body"] = self.body(r)
        return r

    def body(self, r):
        if r["h"].get("transfer-encoding") == "chunked":
            out = b""
            while True:
                line = self.until(b"\r\n")
                if line is None:
                    raise EOFError
                size = int(line, 16)
                if size == 0:
                    break
                out += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            while (line := self.until(b"\r\n")) != b"":
                r["trailers"].append(line.decode())
            return out
        return self.exactly(int(r["h"].get("content-length", 0)))

    def send(self, data):
        self.sock.sendall(data)

    def answer(self, body=b"ok", status="200 OK", headers=()):
        extra = "".join(f"{line}\r\n" for line in headers)
        self.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body)

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self):
        """Also when another thread is in recv."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()


def echo(connection):
    """Answers each request with what it got."""
    while (r := connection.request()) is not None:
        with connection.sandbox.lock:
            connection.sandbox.busy += 1
            connection.sandbox.busy_max = max(connection.sandbox.busy_max, connection.sandbox.busy)
        if connection.sandbox.delay:
            time.sleep(connection.sandbox.delay)
        with connection.sandbox.lock:
            connection.sandbox.busy -= 1
        connection.answer(r["body"] or b"ok", headers=[f"X-Sandbox: {connection.sandbox.number}"])


class Sandbox:
    """handler(connection) runs in a thread for each connection; one at a time when `serial`."""

    def __init__(self, number, handler=echo, serial=False, delay=0):
        self.number, self.handler, self.serial, self.delay = number, handler, serial, delay
        self.requests, self.connections, self.lock = [], [], threading.Lock()
        self.accepted = self.busy = self.busy_max = 0
        self.errors = []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, self)
            self.connections.append(connection)
            if self.serial:
                self._run(connection)
            else:
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection):
        try:
            self.handler(connection)
        except (OSError, EOFError):
            pass
        except Exception as e:  # told by the test that looks
            self.errors.append(e)
        finally:
            connection.close()

    def refuse(self):
        """From now on nobody can connect."""
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()

    def close(self):
        self.refuse()
        for connection in list(self.connections):
            connection.close()


# ---- data plane ----


class DataPlane:
    def __init__(self, control_plane, *flags, threads=2):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="dirigent-dp-"))
        os.chmod(self.directory, 0o755)
        self.port = free_ports(1)[0]
        self.log_path = self.directory / "log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [BUILD / "dirigent", "data-plane", "--listen", f"127.0.0.1:{self.port}", "--control-plane",
                 f"127.0.0.1:{control_plane.port}", "--data-dir", self.directory / "data", "--run-dir",
                 self.directory / "run", "--threads", str(threads), *map(str, flags)],
                stdout=subprocess.DEVNULL, stderr=log)

    def log(self):
        return self.log_path.read_text(errors="replace")

    def connect(self, timeout=20):
        sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def call(self, *arguments, **more):
        with Client(self) as c:
            return c.call(*arguments, **more)

    def rss(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024

    def stop(self, timeout=30):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def close(self):
        code = self.stop()
        print(self.log())
        shutil.rmtree(self.directory, ignore_errors=True)
        return code


class HttpAnswer:
    def __init__(self, status, headers, body, trailers=()):
        self.status, self.headers, self.body, self.trailers = status, headers, body, list(trailers)
        self.h = {k.lower(): v for k, v in headers}

    @property
    def code(self):
        return self.h.get("dirigent-error")

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:300]!r}"


class Cut(Exception):
    """The connection ended within an answer. `reset`: by a reset."""

    def __init__(self, reset, got):
        super().__init__(f"cut after {len(got)} bytes")
        self.reset, self.got = reset, got


class Client:
    """One connection to the data plane, read by hand: what is sent and what comes is exact."""

    def __init__(self, data_plane, timeout=20):
        self.sock, self.buffered = data_plane.connect(timeout), b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def _more(self):
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionResetError:
            raise Cut(True, self.buffered) from None
        if not data:
            raise Cut(False, self.buffered)
        self.buffered += data

    def until(self, mark):
        while mark not in self.buffered:
            self._more()
        out, self.buffered = self.buffered.split(mark, 1)
        return out

    def exactly(self, count):
        while len(self.buffered) < count:
            self._more()
        out, self.buffered = self.buffered[:count], self.buffered[count:]
        return out

    def rest(self):
        try:
            while True:
                self._more()
        except Cut as cut:
            if cut.reset:
                raise
        out, self.buffered = self.buffered, b""
        return out

    def at_end(self):
        """The data plane has closed, and nothing more came."""
        return self.rest() == b""

    def head(self):
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        return int(lines[0].split(" ")[1]), [tuple(line.split(": ", 1)) for line in lines[1:]]

    def answer(self, head_only=False, interim=None):
        while True:
            status, headers = self.head()
            if status >= 200 or status == 101:
                break
            if interim is not None:
                interim.append((status, headers))
        h = {k.lower(): v for k, v in headers}
        if head_only or status in (101, 204, 304):
            return HttpAnswer(status, headers, b"")
        if h.get("transfer-encoding") == "chunked":
            body, trailers = b"", []
            while (size := int(self.until(b"\r\n"), 16)) > 0:
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            while (line := self.until(b"\r\n")) != b"":
                trailers.append(line.decode())
            return HttpAnswer(status, headers, body, trailers)
        if "content-length" in h:
            return HttpAnswer(status, headers, self.exactly(int(h["content-length"])))
        return HttpAnswer(status, headers, self.rest())

    def call(self, method="GET", path="/", host="hello", headers=(), body=None, version="1.1"):
        lines = [f"{method} {path} HTTP/{version}", f"Host: {host}", *headers]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b""))
        return self.answer(head_only=method == "HEAD")

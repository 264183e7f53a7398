"""A cluster whose programs speak TLS: joining by tokens, who is refused and what they are told, renewal, rotation."""
import json
import os
import pathlib
import re
import shutil
import socket
import ssl
import struct
import subprocess
import time

import pytest

from callers import KeptCalls
from cluster import BUILD, Result, free_ports, run_cli, wait_until
from fake_control_plane import message, parse
from replicated import Program, Replicated, started, there_is_etcd
from test_user_path import APP

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
              pytest.mark.skipif(not there_is_etcd(), reason="needs etcd")]


class Secured(Replicated):
    """All links with TLS, although they are on loopback."""

    def __init__(self, *arguments, flags=(), **more):
        super().__init__(*arguments, flags=("--tls", "on", *flags), **more)
        for program in [*self.data_planes, *self.workers]:  # they know from joining
            at = program.command.index("--control-plane")
            del program.command[at:at + 2]

    def data_dir(self, program):
        return program.command[program.command.index("--data-dir") + 1]

    def kind(self, program):
        return "worker" if program in self.workers else "data-plane"

    def token(self, role, *flags):
        return json.loads(self.ok("token", "create", "--role", role, "-o", "json", *flags, at=self.leader() or 0).out)

    def join(self, program, *flags, token=None, ca_hash=None, addresses=None, wrap=()):
        """Runs the join command in the data directory of the program."""
        made = token if isinstance(token, dict) else self.token(self.kind(program)) if token is None else None
        text, pin = (made["token"], made["ca_hash"]) if made else (token, None)
        pin = ca_hash or pin or json.loads(self.ok("ca", "show", "-o", "json").out)["ca_hash"]
        name = program.command[program.command.index("--name") + 1]
        arguments = [self.kind(program), "join", "--token", text, "--ca-hash", pin, "--data-dir", self.data_dir(program),
                     *([] if "--name" in flags else ["--name", name]), *flags, addresses or ",".join(self.cluster_addresses)]
        return run_cli(*arguments) if not wrap else run_wrapped(wrap, *arguments)

    def start(self):
        for program in [*self.etcds, *self.control_planes]:
            program.start()
        self.wait_leader()
        wait_until(lambda: "ca_hash" in self.ok("ca", "show", "-o", "json").out, 20, "the authority")
        for program in [*self.data_planes, *self.workers]:
            joined = self.join(program)
            assert joined.code == 0, joined
            program.start()
        wait_until(lambda: self.alive("/v1/workers") == len(self.workers), 60, "the workers")
        wait_until(lambda: self.alive("/v1/data-planes") == len(self.data_planes), 60, "the data planes")
        return self


def run_wrapped(wrap, *arguments):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DIRIGENT_")}
    done = subprocess.run([*wrap, BUILD / "dirigent", *arguments], env=clean, timeout=120, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def make():
    with started(Secured) as make_one:
        yield make_one


# ---- a connection of our own ----

TO_HELLO, TO_DEMANDS, TO_SANDBOXES, TO_JOIN = 1, 4, 3, 22
WORKER, DATA_PLANE, CONTROL_PLANE = 1, 2, 3


def hello(role, name, protocol=(1, 1), address=""):
    return message([(TO_HELLO, [(1, protocol[0]), (2, protocol[1]), (4, role), (5, name), (10, address), (20, "127.0.0.1:1"),
                                (11, 1000), (12, 1 << 30), (13, 10)])])


class Peer:
    """Speaks the cluster protocol, with the certificate of a program, or none."""

    def __init__(self, cluster, address, program=None):
        host, port = address.rsplit(":", 1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if program is not None:
            tls = pathlib.Path(cluster.data_dir(program)) / cluster.kind(program) / "tls"
            context.load_cert_chain(tls / "cert.pem", tls / "key.pem")
        self.socket = context.wrap_socket(socket.create_connection((host, int(port)), timeout=10))

    def send(self, data):
        try:
            self.socket.sendall(struct.pack(">I", len(data)) + data)
        except (ConnectionError, ssl.SSLError):
            pass  # closed before all was said: what it said first is to be read still
        return self

    def read(self):
        """The next message, or None at the end."""
        data = b""
        while len(data) < 4 or len(data) < 4 + struct.unpack(">I", data[:4])[0]:
            try:
                part = self.socket.recv(4 - len(data) if len(data) < 4 else 4 + struct.unpack(">I", data[:4])[0] - len(data))
            except (ConnectionError, ssl.SSLError):
                return None
            if not part:
                return None
            data += part
        return parse(data[4:])

    def refused(self):
        """The sentence of the Welcome that refuses, or of a Certificate."""
        while (m := self.read()) is not None:
            if 2 in m and 5 in parse(m[2][0]):
                return parse(m[2][0])[5][0].decode()
            if 22 in m:
                return parse(m[22][0]).get(3, [b""])[0].decode()
        return None

    def is_closed(self):
        while self.read() is not None:
            pass
        return True


def calls_go_on(cluster, name="hello"):
    answer = cluster.call(name)
    assert answer.status == 200, answer


def test_a_cluster_with_tls_from_joining_to_the_death_of_its_leader(make):
    cluster = make()
    cluster.deploy("hello", {"app.py": APP})
    calls_go_on(cluster)
    with KeptCalls(cluster.invoke_ports[0], "hello") as calls:
        old = cluster.leader()
        cluster.control_planes[old].kill()
        cluster.wait_leader(other_than=old)
        cluster.control_planes[old].start()
        cluster.deploy("second", {"app.py": APP}, at=cluster.leader())
        calls_go_on(cluster, "second")
        time.sleep(1)
    assert calls.bad == [] and calls.good > 20
    # all three are in it again, by certificates of their own
    wait_until(lambda: len(re.findall("member.up", cluster.control_planes[old].log().rsplit("control_plane.up ", 1)[-1])) >= 2,
               20, "the members")
    # nothing that a cluster's programs say to each other is readable
    assert "tls.off" not in "".join(p.log() for p in cluster.control_planes)
    worker = cluster.workers[0]
    worker.kill()  # its certificate outlives it
    worker.start()
    wait_until(lambda: cluster.alive("/v1/workers") == 1, 20, "the worker")
    calls_go_on(cluster)


def test_tokens_are_good_for_one_machine_and_one_role_and_say_what_is_wrong(make):
    cluster = make(control_planes=1, etcd_members=3, workers=0)
    plane = cluster.data_planes[0]
    other = Program(cluster, "other", list(plane.command))
    other.command[other.command.index("--data-dir") + 1] = str(cluster.directory / "other")
    other.command[other.command.index("--name") + 1] = "plane-9"
    cluster.data_planes.append(other)
    good = cluster.token("data-plane")

    def refused(*words, **more):
        result = cluster.join(other, *more.pop("flags", ()), **more)
        assert result.code == more.pop("code", result.code) and result.code in (1, 2, 3), result
        for word in words:
            assert word in result.err, (word, result)
        assert not (cluster.directory / "other" / "data-plane" / "tls").exists()
        return result

    worker_token = cluster.token("worker")
    refused("worker", "data-plane", token=worker_token)
    refused("removed", token="a" * 10 + "." + "b" * 51 + "a")
    refused("token", token="nonsense")
    refused("hash of the cluster", token=good, ca_hash="sha256:12")
    refused("hash", token=good, ca_hash="sha256:" + "0" * 64)
    wrong = good["token"][:-1] + ("a" if good["token"][-1] != "a" else "b")
    refused("token", token=wrong, ca_hash=good["ca_hash"])
    refused("plane-0", "--name", token=good, flags=("--name", "plane-0"))
    nobody = free_ports(1)[0]
    started = time.monotonic()
    refused(f"127.0.0.1:{nobody}", token=good, addresses=f"127.0.0.1:{nobody}")
    assert time.monotonic() - started < 10
    refused("ADDRESS:PORT", token=good, addresses="here")
    short = cluster.token("data-plane", "--ttl", "1s")
    time.sleep(1.2)
    refused("expired", token=short)
    named = cluster.token("data-plane", "--name", "plane-7")
    refused("plane-7", token=named)
    removed = cluster.token("data-plane")
    cluster.ok("token", "remove", removed["id"])
    refused("removed", token=removed)
    # none of this has used the good one up
    result = cluster.join(other, token=good)
    assert result.code == 0 and "data-plane 'plane-9'" in result.out, result
    assert "already" in cluster.join(other, token=cluster.token("data-plane")).err
    third = Program(cluster, "third", list(other.command))
    third.command[third.command.index("--data-dir") + 1] = str(cluster.directory / "third")
    cluster.data_planes.append(third)
    assert "was used" in cluster.join(third, token=good).err
    listed = {t["id"]: t for t in json.loads(cluster.ok("token", "list", "-o", "json").out)["items"]}
    assert listed[good["id"]]["used_by"] == "plane-9" and listed[worker_token["id"]]["used_by"] == ""
    assert good["token"] not in json.dumps(listed), "the secret is not kept"
    cluster.data_planes.remove(third)
    # a lost machine's place is taken by one that has a token for its name
    again = cluster.token("data-plane", "--name", "plane-9")
    assert cluster.join(other, "--again", token=again).code == 0
    assert cluster.alive("/v1/data-planes") == 1, "nothing was disturbed"


def test_strangers_and_liars_are_refused_with_the_reason(make):
    cluster = make(control_planes=1)
    address, log = cluster.cluster_addresses[0], cluster.control_planes[0].log
    worker, plane = cluster.workers[0], cluster.data_planes[0]
    cluster.deploy("hello", {"app.py": APP})
    refusal = Peer(cluster, address, worker).send(hello(DATA_PLANE, "worker-0")).refused()
    assert "certificate is that of worker 'worker-0'" in refusal
    refusal = Peer(cluster, address, plane).send(hello(WORKER, "plane-0")).refused()
    assert "certificate is that of data-plane 'plane-0'" in refusal
    refusal = Peer(cluster, address, worker).send(hello(WORKER, "worker-1")).refused()
    assert "certificate is that of worker 'worker-0'" in refusal
    refusal = Peer(cluster, address, worker).send(hello(WORKER, "worker-0", protocol=(98, 99))).refused()
    assert "98 to 99" in refusal and "upgrade" in refusal
    refusal = Peer(cluster, address).send(hello(WORKER, "worker-0")).refused()
    assert "no certificate" in refusal
    # whoever has none says nothing but that it wants to join, and at no great length
    assert Peer(cluster, address).send(message([(TO_SANDBOXES, [(1, 1)])])).is_closed()
    assert Peer(cluster, address).send(b"\xff" * 100_000).is_closed()
    refusal = Peer(cluster, address).send(message([(TO_JOIN, [(1, "x"), (2, CONTROL_PLANE), (3, "me")])])).refused()
    assert "only workers and data planes" in refusal
    # frames that are too large, or are no messages
    big = Peer(cluster, address, worker)
    big.socket.sendall(struct.pack(">I", 1 << 30))
    assert big.is_closed()
    assert Peer(cluster, address, worker).send(b"\x07garbage").is_closed()
    # what only the other role may say
    liar = Program(cluster, "liar", list(plane.command))
    liar.command[liar.command.index("--data-dir") + 1] = str(cluster.directory / "liar")
    liar.command[liar.command.index("--name") + 1] = "liar"
    cluster.data_planes.append(liar)
    assert cluster.join(liar).code == 0
    peer = Peer(cluster, address, liar).send(hello(DATA_PLANE, "liar"))
    assert 2 in peer.read()
    peer.send(message([(TO_SANDBOXES, [(1, 5), (2, 1), (3, 1)])]))
    assert peer.is_closed()
    assert "only a worker may say" in log()
    # bytes that are no TLS, and a program that speaks none
    with socket.create_connection(tuple(address.rsplit(":", 1)), timeout=10) as plain:
        plain.sendall(struct.pack(">I", 3) + b"\x0a\x01\x00")
        assert b"join it first" in plain.recv(4096)
    # a certificate in the wrong place
    stolen = cluster.directory / "stolen" / "data-plane"
    stolen.mkdir(parents=True)
    shutil.copytree(pathlib.Path(cluster.data_dir(worker)) / "worker" / "tls", stolen / "tls")
    for path in [stolen, *stolen.rglob("*")]:
        os.chown(path, 61991, 61991)
    result = run_cli("data-plane", "--data-dir", stolen.parent, "--run-dir", stolen.parent / "run", "--listen", "127.0.0.1:0",
                     timeout=20)
    assert result.code != 0 and "worker" in result.err and "cert.pem" in result.err, result
    # whoever has not joined hears how
    result = run_cli("data-plane", "--data-dir", cluster.directory / "new", "--run-dir", cluster.directory / "new-run",
                     "--control-plane", "192.0.2.1:9090", "--listen", "127.0.0.1:0", timeout=20)
    assert result.code != 0 and "dirigent token create --role data-plane" in result.err, result
    cluster.data_planes.remove(liar)
    calls_go_on(cluster)
    assert cluster.alive("/v1/workers") == 1 and cluster.alive("/v1/data-planes") == 1


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
@pytest.mark.skipif("asan" in str(BUILD) or "tsan" in str(BUILD), reason="two libraries that must both be the first")
def test_a_clock_that_is_an_hour_off_is_named(make):
    cluster = make(control_planes=1, workers=0)
    other = Program(cluster, "other", list(cluster.data_planes[0].command))
    other.command[other.command.index("--data-dir") + 1] = str(cluster.directory / "other")
    other.command[other.command.index("--name") + 1] = "plane-9"
    cluster.data_planes.append(other)
    result = cluster.join(other, wrap=("faketime", "-f", "-1h"))
    assert result.code == 3 and "this machine's clock says" in result.err, result
    result = cluster.join(other, wrap=("faketime", "-f", "+25h"))
    assert result.code == 3 and "this machine's clock says" in result.err, result
    cluster.data_planes.remove(other)
    assert cluster.alive("/v1/data-planes") == 1


@pytest.mark.slow
def test_certificates_are_renewed_and_the_authority_is_changed_while_calls_go_on(make):
    cluster = make(control_planes=2, flags=("--certificate-lifetime", "1m"))
    cluster.deploy("hello", {"app.py": APP})
    calls_go_on(cluster)
    nodes = [*cluster.data_planes, *cluster.workers]
    with KeptCalls(cluster.invoke_ports[0], "hello", threads=1) as calls:
        first = json.loads(cluster.ok("ca", "rotate", "-o", "json").out)
        assert [r["signs"] for r in first["roots"]] == [True, False]
        early = cluster.cli("ca", "rotate")
        assert early.code == 1 and "too early" in early.err, early
        wait_until(lambda: all("roots.installed" in p.log() for p in nodes), 10, "the new root everywhere")
        second = json.loads(cluster.ok("ca", "rotate", "--force", "-o", "json").out)
        assert [r["signs"] for r in second["roots"]] == [False, True]
        wait_until(lambda: all("certificate.renewed" in p.log() for p in nodes), 20, "new certificates")
        third = json.loads(cluster.ok("ca", "rotate", "--force", "-o", "json").out)
        assert len(third["roots"]) == 1 and third["ca_hash"] == second["ca_hash"] != first["ca_hash"]
        # nobody knows the old authority any more: a new leader, and all come to it
        renewed = [p.log().count("certificate.renewed") for p in nodes]
        old = cluster.leader()
        cluster.control_planes[old].kill()
        cluster.wait_leader(other_than=old)
        cluster.control_planes[old].start()
        wait_until(lambda: cluster.alive("/v1/workers") == 1, 20, "the worker")
        # by time: within 30 s of the last
        wait_until(lambda: all(p.log().count("certificate.renewed") > n for p, n in zip(nodes, renewed)), 60, "renewal by time")
    assert calls.bad == [] and calls.good > 20
    cluster.deploy("second", {"app.py": APP}, at=cluster.leader())
    calls_go_on(cluster, "second")
    for program in nodes:  # what they have on disk is of the new authority
        roots = (pathlib.Path(cluster.data_dir(program)) / cluster.kind(program) / "tls" / "roots.pem").read_text()
        assert roots.count("BEGIN CERTIFICATE") == 1


def test_up_needs_no_certificates_and_tokens_say_so(cluster):
    result = cluster.cli("token", "create", "--role", "worker")
    assert result.code == 1 and "talk in the clear" in result.err, result
    result = cluster.cli("ca", "show")
    assert result.code == 0 and "no TLS" in result.out, result

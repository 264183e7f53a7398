"""Bad input gets a clear error that names the field or the cause, and nothing is lost or half done."""
import io
import json
import os
import pathlib
import socket
import stat
import subprocess
import tarfile
import time
import zipfile
import zlib

import pytest

from cluster import BUILD, SANITIZED, Cluster, http_call, run_cli, wait_until
from test_user_path import APP


def error_of(answer, status=None):
    assert answer.status >= 400, answer
    if status is not None:
        assert answer.status == status, answer
    return answer.json["error"]


# ---- specs ----

@pytest.mark.parametrize("spec, field", [
    ({}, "command"),
    ({"command": []}, "command"),
    ({"command": ""}, "command"),
    ({"command": ["x"], "memroy": "1Mi"}, "memroy"),
    ({"command": ["x"], "port": 0}, "port"),
    ({"command": ["x"], "port": 65536}, "port"),
    ({"command": ["x"], "port": "http"}, "port"),
    ({"command": ["x"], "memory": "-1"}, "memory"),
    ({"command": ["x"], "memory": "1"}, "memory"),
    ({"command": ["x"], "cpu": 0}, "cpu"),
    ({"command": ["x"], "timeout": "0s"}, "timeout"),
    ({"command": ["x"], "scaling": {"min": 5, "max": 2}}, "scaling.min"),
    ({"command": ["x"], "scaling": {"min": -1}}, "scaling.min"),
    ({"command": ["x"], "scaling": {"max": 0}}, "scaling.max"),
    ({"command": ["x"], "scaling": {"speed": 1}}, "scaling.speed"),
    ({"command": ["x"], "env": {"A=B": "1"}}, "env"),
    ({"command": ["x"], "network": "lan"}, "network"),
    ({"command": ["x"], "contract": "lambda"}, "contract"),
    ({"command": ["x"], "image": "nginx"}, "image"),
    ({"command": ["x"], "code": "sha256:" + "0" * 64}, "code"),
    ({"command": ["x"], "name": "other"}, "name"),
])
def test_a_wrong_spec_is_refused_by_field(cluster, spec, field):
    error = error_of(cluster.api("PUT", "/v1/functions/bad", spec))
    assert error["field"].startswith(field) or field in error["message"], error
    assert len(error["message"]) > 10
    assert cluster.items("/v1/functions") == []


@pytest.mark.parametrize("name", ["Hello", "a.b", "-a", "a-", "a_b", "a" * 64, "%00", "%2e%2e", "é"])
def test_names_that_are_no_dns_labels_are_refused(cluster, name):
    from urllib.parse import quote
    answer = cluster.api("PUT", f"/v1/functions/{name if '%' in name else quote(name)}", {"command": ["x"]})
    assert answer.status in (400, 404), answer
    assert cluster.items("/v1/functions") == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"command":["x"]} more', b'{"command":["x"],"command":["y"]}',
                                  b"\xff\xfe", b"[" * 5000, b'{"a":' * 100 + b"1" + b"}" * 100])
def test_a_body_that_is_no_json_object_is_refused(cluster, body):
    assert error_of(cluster.api("PUT", "/v1/functions/bad", body), 400)["message"]


def test_a_body_that_is_too_large_is_refused(cluster):
    answer = cluster.api("PUT", "/v1/functions/bad", b'{"env":{"A":"' + b"x" * (2 << 20) + b'"}}')
    assert answer.status == 413, answer


def test_wrong_paths_and_methods(cluster):
    assert cluster.api("GET", "/v1/nothing").status == 404
    assert cluster.api("GET", "/v1/functions/nobody").status == 404
    assert cluster.api("DELETE", "/v1/functions/nobody").status == 404
    answer = cluster.api("DELETE", "/v1/status")
    assert answer.status == 405 and "GET" in answer.headers["Allow"]


# ---- archives ----

def tar_of(*entries):
    """(name, type, content or link) -> bytes"""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = content
                tar.addfile(info)
            else:
                data_of = content.encode() if isinstance(content, str) else content
                info.size = len(data_of)
                tar.addfile(info, io.BytesIO(data_of))
    return data.getvalue()


FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
GOOD = ("app.py", FILE, APP)


def bomb():
    """1 MiB that unpacks to more than any function may have."""
    data = io.BytesIO()
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    info = tarfile.TarInfo("zeros")
    info.size = 3 << 30
    data.write(compressor.compress(info.tobuf()))
    piece = bytes(1 << 20)
    for _ in range(3 << 10):
        data.write(compressor.compress(piece))
    data.write(compressor.flush())
    return data.getvalue()


BAD_ARCHIVES = [
    ("empty", b""),
    ("no archive", b"this is no archive at all, really not"),
    ("no entries", tar_of()),
    ("truncated", tar_of(GOOD)[:700]),
    ("truncated gzip", zlib.compressobj(9, zlib.DEFLATED, 31).compress(tar_of(GOOD)) + b"\x1f"),
    ("dot dot", tar_of(GOOD, ("../evil", FILE, "x"))),
    ("dot dot inside", tar_of(GOOD, ("a/../../evil", FILE, "x"))),
    ("absolute", tar_of(GOOD, ("/etc/evil", FILE, "x"))),
    ("device", tar_of(GOOD, ("null", tarfile.CHRTYPE, ""))),
    ("fifo", tar_of(GOOD, ("pipe", tarfile.FIFOTYPE, ""))),
    ("escaping link", tar_of(GOOD, ("link", LINK, "../../etc/passwd"))),
    ("absolute link", tar_of(GOOD, ("link", LINK, "/etc/passwd"))),
    ("escaping hard link", tar_of(GOOD, ("link", HARD, "../../etc/passwd"))),
    ("file below a link", tar_of(GOOD, ("link", LINK, ".."), ("link/evil", FILE, "x"))),
]


def kept_archives(cluster):
    return cluster.api("GET", "/v1/status").json["code"]["archives"]


@pytest.mark.parametrize("data", [data for _, data in BAD_ARCHIVES], ids=[what for what, _ in BAD_ARCHIVES])
def test_a_bad_archive_is_refused_with_its_reason(cluster, data):
    before = kept_archives(cluster)
    answer = cluster.api("PUT", "/v1/functions/bad/code?stage=1", data)
    error = error_of(answer)
    assert answer.status in (400, 413, 422), answer
    assert len(error["message"]) > 10, error
    assert cluster.items("/v1/functions") == []
    assert kept_archives(cluster) == before


@pytest.mark.slow
def test_an_archive_that_is_a_bomb_is_refused_and_nothing_of_it_stays(cluster):
    before = sum(p.stat().st_size for p in cluster.data_dir.rglob("*") if p.is_file())
    answer = cluster.api("PUT", "/v1/functions/bad/code?stage=1", bomb(), timeout=300)
    error_of(answer)
    after = sum(p.stat().st_size for p in cluster.data_dir.rglob("*") if p.is_file())
    assert after - before < 50 << 20


def test_an_upload_that_breaks_off_leaves_nothing(cluster):
    before = kept_archives(cluster)
    with socket.create_connection(("127.0.0.1", cluster.api_port)) as s:
        s.sendall(b"PUT /v1/functions/bad/code?stage=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + tar_of(GOOD)[:5000])
    time.sleep(0.2)
    assert kept_archives(cluster) == before
    assert cluster.api("GET", "/healthz").status == 200


# ---- programs ----

def test_a_command_that_does_not_exist(cluster):
    result = cluster.deploy("bad", {"app.py": APP}, "--command", "./no-such-program", check=False)
    assert result.code == 1
    assert "no-such-program" in result.err and "No such file" in result.err, result


def test_a_command_that_is_not_executable(cluster):
    result = cluster.deploy("bad", {"app.py": APP}, "--command", "./app.py", check=False)
    assert result.code == 1 and "ermission denied" in result.err, result


def test_a_program_that_exits_at_once_shows_its_output_and_code(cluster):
    started = time.monotonic()
    result = cluster.deploy("bad", {"app.py": "import sys\nprint('one')\nprint('two', file=sys.stderr)\nsys.exit(42)"}, check=False)
    assert result.code == 1
    assert "42" in result.err and "one" in result.err and "two" in result.err, result
    assert time.monotonic() - started < 20 # it does not wait for the deadline
    assert cluster.function("bad")["state"] == "failed"


def test_a_program_that_is_killed_tells_the_signal(cluster):
    result = cluster.deploy("bad", {"app.py": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"}, check=False)
    assert result.code == 1 and ("11" in result.err or "egmentation" in result.err), result


def test_a_program_that_never_listens_names_the_deadline(cluster):
    result = cluster.deploy("bad", {"app.py": "import time\nprint('thinking', flush=True)\ntime.sleep(1000)"},
                            "--start-deadline", "2s", check=False)
    assert result.code == 1
    assert "2" in result.err and "listen" in result.err and "8080" in result.err, result
    assert "thinking" in result.err


def test_a_program_that_listens_on_another_port_is_told_which(cluster):
    result = cluster.deploy("bad", {"app.py": APP.replace('int(os.environ["PORT"])', "9999")}, "--start-deadline", "3s",
                            check=False)
    assert result.code == 1 and "9999" in result.err and "8080" in result.err, result


def test_a_program_that_needs_more_memory_than_it_has(cluster):
    result = cluster.deploy("bad", {"app.py": "x = bytearray(200 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\n"},
                            "--memory", "32Mi", check=False)
    assert result.code == 1 and "memory" in result.err, result


def test_calls_of_a_function_that_cannot_start_say_why(cluster):
    cluster.deploy("bad", {"app.py": "import sys\nprint('broken today')\nsys.exit(5)"}, "--no-wait")
    answer = cluster.call("bad")
    assert answer.status in (502, 503), answer
    assert "5" in answer.text and "broken today" in answer.text, answer


def test_more_memory_than_any_worker_has(cluster):
    result = cluster.deploy("bad", {"app.py": APP}, "--memory", "900Gi", "--wait", "3s", check=False)
    assert result.code == 1, result
    assert "memory" in result.err or "room" in result.err, result


# ---- requests ----

def test_a_body_larger_than_the_limit_is_refused(cluster):
    cluster.deploy("small", {"app.py": APP}, "--max-body", "1Ki")
    assert cluster.call("small", method="POST", body=b"x" * 1024).status == 200
    answer = cluster.call("small", method="POST", body=b"x" * 1025)
    assert answer.status == 413 and answer.body, answer


@pytest.mark.parametrize("request_bytes", [
    b"NONSENSE\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: hello\r\nHost: other\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: hello\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    b"POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: hello\r\nBad Header: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: hello\r\n folded: x\r\n\r\n",
    b"GET / HTTP/1.1\nHost: hello\n\n",
])
def test_malformed_http_is_refused(cluster, request_bytes):
    for port in (cluster.invoke_port, cluster.api_port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
            s.sendall(request_bytes)
            answer = s.recv(4096)
            assert answer.startswith(b"HTTP/1.1 400"), answer


def test_a_head_without_end_is_refused(cluster):
    for port in (cluster.invoke_port, cluster.api_port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
            try:
                s.sendall(b"GET / HTTP/1.1\r\nHost: hello\r\n" + b"X-A: " + b"y" * 100000)
                answer = s.recv(4096)
            except (BrokenPipeError, ConnectionResetError):
                continue
            assert answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), answer

"""What a new user does, from the first deploy to the last sandbox's end, with each client command, on a real cluster."""
import io
import json
import os
import pathlib
import subprocess
import tarfile
import time
import zipfile

import pytest
import yaml

from cluster import http_call, wait_until

APP = '''
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        print("path", self.path, flush=True)
        if self.path.startswith("/sleep/"):
            time.sleep(float(self.path[7:]))
        if self.path == "/crash":
            print("last words", file=sys.stderr, flush=True)
            os._exit(7)
        self.answer(200, (os.environ.get("GREETING", "hello") + " " + str(os.getpid()) + "\\n").encode())
    def do_POST(self):
        self.answer(200, self.rfile.read(int(self.headers.get("Content-Length", 0))))
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
print("starting", flush=True)
ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
'''


def test_deploy_call_scale_to_zero_and_back(cluster):
    result = cluster.deploy("hello", {"app.py": APP}, "--scale-to-zero-delay", "0s", "--stable-window", "2s")
    assert "hello created: version 1, ready" in result.out
    assert cluster.call("hello").text.startswith("hello ")
    assert cluster.function("hello")["state"] == "ready"
    wait_until(lambda: not cluster.sandboxes("hello"), 30, "scale to zero")
    assert cluster.function("hello")["state"] == "idle"
    answer = cluster.call("hello")
    assert answer.status == 200 and answer.text.startswith("hello ")
    assert len(cluster.sandboxes("hello")) == 1


def test_each_way_to_name_a_function(cluster):
    cluster.deploy("hello", {"app.py": APP})
    url = cluster.function("hello")["urls"][0]
    assert url == f"{cluster.url}/function/hello/"
    for path, headers in [("/function/hello/", {}), ("/function/hello", {}), ("/", {"Host": "hello"}),
                          ("/", {"Host": "hello.example.com:8080"})]:
        answer = http_call(cluster.invoke_port, "GET", path, headers=headers)
        assert answer.status == 200, (path, headers, answer)
    assert http_call(cluster.invoke_port, "GET", "/function/nobody/").status == 404
    assert cluster.call("nobody").status == 404


def test_the_examples_answer(cluster, examples):
    result = cluster.ok("apply", "-f", examples / "apply.yaml", timeout=180)
    for name, says in [("hello-python", "Hello from Python"), ("hello-node", "Hello from Node.js"), ("hello-c", "Hello from C")]:
        assert f"{name} created" in result.out
        assert says in cluster.call(name).text
        curl = subprocess.run(["curl", "-sS", f"{cluster.url}/function/{name}/"], capture_output=True, text=True, timeout=60)
        assert says in curl.stdout, curl
    assert cluster.call("hello-c", method="POST", body=b"x" * 50000).body == b"x" * 50000
    assert cluster.call("hello-node", method="POST", body=b"loud").body == b"LOUD"
    assert cluster.call("hello-python", method="POST", body=b'{"name": "you"}').text == "Hello, you\n"
    again = cluster.ok("apply", "-f", examples / "apply.yaml", timeout=180)
    assert again.out.count("unchanged: version 1") == 3


def test_an_update_keeps_what_is_not_said_and_serves_all_the_time(cluster):
    cluster.deploy("hello", {"app.py": APP}, "-e", "GREETING=one", "--memory", "64Mi", "--min", "1")
    assert cluster.call("hello").text.startswith("one ")
    result = cluster.ok("deploy", "hello", "-e", "GREETING=two")
    assert "hello updated: version 2, ready" in result.out
    assert cluster.call("hello").text.startswith("two ")
    spec = cluster.function("hello")["spec"]
    assert spec["memory"] == "64Mi" and spec["scaling"]["min"] == 1
    cluster.wait_sandboxes(1, "hello")
    assert {s["version"] for s in cluster.sandboxes("hello", "ready")} == {2}
    assert "unchanged" in cluster.ok("deploy", "hello", "-e", "GREETING=two").out


def test_a_bad_update_leaves_the_old_version_serving(cluster):
    cluster.deploy("hello", {"app.py": APP})
    result = cluster.deploy("hello", {"app.py": "import sys\nprint('about to fail')\nsys.exit(3)\n"}, check=False)
    assert result.code == 1
    assert "3" in result.err and "about to fail" in result.err and "version 1 serves on" in result.err
    assert cluster.call("hello").status == 200
    function = cluster.function("hello")
    assert function["active_version"] == 1 and function["state"] == "degraded" and function["failure"]


def test_deploy_of_a_zip_and_of_tars(cluster, tmp_path):
    archive = tmp_path / "code.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("app.py", APP)
    cluster.ok("deploy", "zipped", "--zip", archive, "--command", "python3 app.py")
    assert cluster.call("zipped").status == 200
    for mode in ("", "gz", "xz"):
        archive = tmp_path / f"code.tar.{mode}"
        with tarfile.open(archive, f"w:{mode}") as t:
            info = tarfile.TarInfo("app.py")
            info.size = len(APP)
            t.addfile(info, io.BytesIO(APP.encode()))
        cluster.ok("deploy", f"tarred{mode}", "--zip", archive, "--command", "python3 app.py")
        assert cluster.call(f"tarred{mode}").status == 200


def test_scale_keeps_sandboxes(cluster):
    cluster.deploy("hello", {"app.py": APP})
    assert "min 3" in cluster.ok("scale", "hello", "--min", "3").out
    cluster.wait_sandboxes(3, "hello")
    cluster.ok("scale", "hello", "--min", "0", "--max", "2")
    cluster.ok("deploy", "hello", "--stable-window", "2s")
    assert cluster.function("hello")["version"] == 1 # scaling makes no new version
    wait_until(lambda: len(cluster.sandboxes("hello")) <= 2, 40, "scale down to the maximum")


def test_concurrent_calls_start_as_many_sandboxes(cluster):
    cluster.deploy("hello", {"app.py": APP}, "--concurrency", "1", "--max", "4")
    started = time.monotonic()
    calls = [subprocess.Popen(["curl", "-sS", f"{cluster.url}/function/hello/sleep/2"], stdout=subprocess.PIPE)
             for _ in range(4)]
    pids = {call.communicate(timeout=60)[0] for call in calls}
    assert time.monotonic() - started < 7
    assert len(cluster.sandboxes("hello")) == 4, pids


def test_listings(cluster):
    cluster.deploy("hello", {"app.py": APP}, "--min", "1")
    cluster.wait_sandboxes(1, "hello")
    assert "hello" in cluster.ok("list").out
    assert json.loads(cluster.ok("list", "-o", "json").out)["items"][0]["name"] == "hello"
    assert yaml.safe_load(cluster.ok("list", "-o", "yaml").out)["items"][0]["name"] == "hello"
    text = cluster.ok("describe", "hello").out
    assert "python3 app.py" in text and "ready" in text
    sandbox, = json.loads(cluster.ok("sandboxes", "hello", "-o", "json").out)["items"]
    assert sandbox["state"] == "ready" and sandbox["cold_start_us"] > 0 and len(sandbox["id"]) == 16
    assert sandbox["id"] in cluster.ok("ps").out
    worker, = json.loads(cluster.ok("workers", "-o", "json").out)["items"]
    assert worker["state"] == "alive" and worker["sandboxes"] >= 1 and worker["memory_bytes"] > 0
    plane, = json.loads(cluster.ok("data-planes", "-o", "json").out)["items"]
    assert plane["state"] == "alive" and plane["url"] == cluster.url + "/"
    status = json.loads(cluster.ok("status", "-o", "json").out)
    assert status["ready"] and status["functions"] == 1 and status["workers"] == {"alive": 1, "total": 1}
    assert "1 of 1 alive" in cluster.ok("status").out


def test_invoke(cluster):
    cluster.deploy("hello", {"app.py": APP})
    result = cluster.ok("invoke", "hello")
    assert result.out.startswith("hello ") and "200 OK" in result.err
    assert cluster.ok("invoke", "hello", "-d", "some body").out == "some body"
    assert cluster.ok("invoke", "hello", input="from a pipe").out == "from a pipe"
    assert cluster.cli("invoke", "nobody").code == 1
    direct = cluster.cli("invoke", "hello", "--data-plane", cluster.url, env={"DIRIGENT_API": "127.0.0.1:1"})
    assert direct.code == 0


def test_receipts_tell_cold_from_warm(cluster):
    cluster.deploy("hello", {"app.py": APP}, "--stable-window", "2s")
    wait_until(lambda: not cluster.sandboxes("hello"), 30, "scale to zero")
    cold = cluster.ok("invoke", "hello", "--receipt")
    warm = cluster.ok("invoke", "hello", "--receipt")
    assert "cold start, sandbox" in cold.err and "listen" in cold.err, cold
    assert "warm, sandbox" in warm.err and "listen" not in warm.err, warm


def test_logs_also_of_sandboxes_that_are_gone(cluster):
    cluster.deploy("hello", {"app.py": APP}, "--stable-window", "2s")
    cluster.call("hello", "/one")
    wait_until(lambda: "path /one" in cluster.ok("logs", "hello").out, 10, "the line")
    assert cluster.ok("logs", "hello", "--plain").out.startswith("starting\n")
    cluster.call("hello", "/two")
    wait_until(lambda: "path /two" in cluster.ok("logs", "hello").out, 10, "the line")
    assert "path /one" not in cluster.ok("logs", "hello", "--lines", "1").out
    wait_until(lambda: not cluster.sandboxes("hello"), 30, "scale to zero")
    assert "path /two" in cluster.ok("logs", "hello").out
    assert cluster.ok("logs", "hello", "--since", "1h").out.count("path") == 2


def test_logs_are_followed(cluster):
    cluster.deploy("hello", {"app.py": APP})
    follower = subprocess.Popen([cluster.command()[0], "logs", "hello", "-f", "--plain"], env={**os.environ, "DIRIGENT_API": cluster.api_url},
                                stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout.readline() == "starting\n"
        for i in range(3):
            cluster.call("hello", f"/follow/{i}")
            while "follow" not in (line := follower.stdout.readline()):
                assert line
            assert line.endswith(f"path /follow/{i}\n")
    finally:
        follower.kill()
        follower.wait()


def test_deleting_a_function_removes_its_sandboxes_and_its_route(cluster):
    cluster.deploy("hello", {"app.py": APP}, "--min", "2")
    cluster.wait_sandboxes(2, "hello")
    assert cluster.ok("delete", "hello").out == "hello deleted\n"
    wait_until(lambda: not cluster.sandboxes(), 30, "the end of the sandboxes")
    wait_until(lambda: cluster.call("hello").status == 404, 5, "404")
    assert cluster.cli("describe", "hello").code == 1
    assert cluster.cli("delete", "hello").code == 1


def test_a_crash_is_answered_told_and_got_over(cluster):
    cluster.deploy("hello", {"app.py": APP})
    answer = cluster.call("hello", "/crash")
    assert answer.status == 502, answer
    wait_until(lambda: "last words" in cluster.ok("logs", "hello").out, 10, "its last words")
    wait_until(lambda: cluster.call("hello").status == 200, 10, "an answer after the crash")


def test_a_function_of_the_host_needs_no_code(cluster):
    cluster.ok("deploy", "host", "--command", "python3 -m http.server 8080 --bind 0.0.0.0 --directory /usr/share")
    assert cluster.call("host").status == 200


def test_one_that_listens_on_loopback_only_simply_works(cluster):
    cluster.deploy("local", {"app.py": APP.replace("0.0.0.0", "127.0.0.1")})
    assert cluster.call("local").status == 200


def test_one_that_listens_on_ipv6_only_or_both_works(cluster):
    app = APP.replace('("0.0.0.0"', '("::"').replace("ThreadingHTTPServer((", "Six((").replace(
        'print("starting"', 'import socket\nclass Six(ThreadingHTTPServer): address_family = socket.AF_INET6\nprint("starting"')
    result = cluster.deploy("six", {"app.py": app}, check=False)
    assert result.code == 0, result
    assert cluster.call("six").status == 200


def test_the_sandbox_sees_what_it_should(cluster):
    probe = '''
import json, os, pathlib, socket
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        def attempt(do):
            try:
                return str(do())
            except OSError as error:
                return type(error).__name__
        facts = {
            "cwd": os.getcwd(), "uid": os.getuid(), "pid": os.getpid(), "top": sorted(os.listdir("/")),
            "write_code": attempt(lambda: open("/srv/new", "w")), "write_usr": attempt(lambda: open("/usr/new", "w")),
            "write_tmp": attempt(lambda: open("/tmp/new", "w").write("x")),
            "root": attempt(lambda: os.listdir("/root")), "home": attempt(lambda: os.listdir("/home")),
            "etc": sorted(os.listdir("/etc")), "host": attempt(lambda: open("/etc/shadow")),
            "processes": [p for p in os.listdir("/proc") if p.isdigit()],
            "netlink": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
            "env": dict(os.environ), "descriptors": len(os.listdir("/proc/self/fd")),
            "capabilities": [l for l in open("/proc/self/status") if l.startswith(("CapEff", "CapBnd", "NoNewPrivs", "Seccomp:"))],
        }
        body = json.dumps(facts).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
HTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
'''
    cluster.deploy("probe", {"app.py": probe, "data/file": "x"}, "-e", "K=V")
    answer = cluster.call("probe")
    assert answer.status == 200, answer
    facts = answer.json
    assert facts["cwd"] == "/srv"
    assert facts["write_code"] in ("OSError", "PermissionError") and facts["write_usr"] in ("OSError", "PermissionError")
    assert facts["write_tmp"] == "1"
    assert facts["env"]["K"] == "V" and facts["env"]["PORT"] == "8080"
    assert "shadow" not in facts["etc"] and facts["host"] == "FileNotFoundError"
    assert "home" not in facts["top"] or facts["home"] in ("[]", "FileNotFoundError")
    assert len(facts["processes"]) <= 4, facts["processes"]
    assert "socket" not in facts["netlink"], facts
    assert any("CapEff:\t0000000000000000" in line for line in facts["capabilities"])
    assert any("NoNewPrivs:\t1" in line for line in facts["capabilities"])
    assert any("Seccomp:\t2" in line for line in facts["capabilities"])

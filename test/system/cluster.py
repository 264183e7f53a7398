"""A real cluster (`dirigent up`) for a test, the client, and plain HTTP. Standard library only."""
import contextlib
import fcntl
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DIRIGENT_BUILD", ROOT / "build")).resolve()
SANITIZED = "asan" in BUILD.name or "tsan" in BUILD.name


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def run_cli(*arguments, env=None, input=None, timeout=120, cwd=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("DIRIGENT_")}
    stdin = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
    done = subprocess.run([BUILD / "dirigent", *map(str, arguments)], env={**clean, **(env or {})}, timeout=timeout,
                          cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **stdin)
    return Result(done.returncode, done.stdout, done.stderr)


def free_ports(count):
    """Ports that nobody has now. Below those that the kernel gives out by itself, so that no connection takes one before its
    program listens, and at random, so that several runs at once do not meet."""
    sockets = []
    while len(sockets) < count:
        with contextlib.suppress(OSError):
            sockets.append(socket.create_server(("127.0.0.1", random.randrange(10000, 26000))))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def text(self):
        return self.body.decode()

    def __repr__(self):
        return f"{self.status} {dict(self.headers)} {self.body[:500]!r}"


def http_call(port, method, path, body=None, headers=None, timeout=60):
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())
    finally:
        connection.close()


def wait_until(condition, seconds=30, what="the condition"):
    """Polls from outside what has no event for us; returns what the condition returned."""
    end = time.monotonic() + seconds * (3 if SANITIZED else 1)
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.01)


def children_of(pid):
    try:
        return [int(p) for p in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command_line(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def is_alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class Place:
    """Addresses and host ports that no other test cluster has, also not of another run: one of a few, kept by a lock."""
    COUNT, SLOTS = 16, 128

    def __init__(self):
        for self.number in range(self.COUNT):
            self.fd = os.open(f"/tmp/dirigent-test-place-{self.number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                os.close(self.fd)
        else:
            raise AssertionError("too many test clusters at once")
        self.pool = f"10.{210 + self.number}.0.0"
        # Above those of a cluster with the defaults, below the ports that the kernel gives out by itself.
        self.host_port_base = 26200 + self.number * self.SLOTS

    def leave(self):
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Cluster:
    """`dirigent up` with ports, directories and an address pool of its own."""
    started = 0

    def __init__(self, name, *flags, ports=None, directory=None):
        self.name, self.flags = name, list(map(str, flags))
        self.invoke_port, self.api_port, self.cluster_port = ports or free_ports(3)
        self.metrics_ports = free_ports(2)
        self.directory = pathlib.Path(directory or tempfile.mkdtemp(prefix="dirigent-test-"))
        self.directory.chmod(0o755)
        self.data_dir, self.run_dir = self.directory / "data", self.directory / "run"
        self.log_path = self.directory / "log"
        self.api_url = f"http://127.0.0.1:{self.api_port}"
        self.url = f"http://127.0.0.1:{self.invoke_port}"
        self.process, self.mark = None, 0
        self.place = Place()
        self.number = Cluster.started = Cluster.started + 1
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"
        pid = os.getpid() % 36 ** 3  # three digits tell runs apart that go on at once
        self.instance = "t" + digits[pid // 1296] + digits[pid // 36 % 36] + digits[pid % 36] + digits[self.number // 36 % 36] + digits[self.number % 36]

    # ---- life ----

    def command(self):
        defaults = {
            "--listen": f"127.0.0.1:{self.invoke_port}", "--api": f"127.0.0.1:{self.api_port}",
            "--cluster": f"127.0.0.1:{self.cluster_port}", "--data-dir": self.data_dir, "--run-dir": self.run_dir,
            "--worker-metrics": f"127.0.0.1:{self.metrics_ports[0]}", "--instance": self.instance,
            "--address-pool": self.place.pool, "--host-port-base": self.place.host_port_base,
            "--slots": self.place.SLOTS, "--blanks": 8,
        }
        command = [str(BUILD / "dirigent"), "up"]
        for flag, value in defaults.items():
            if flag not in self.flags:
                command += [flag, str(value)]
        return command + self.flags

    def launch(self):
        """Starts it and does not wait."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("DIRIGENT_")}
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean,
                                            cwd=self.directory)
        return self

    def start(self, seconds=60):
        before = len(self.log())
        self.launch()

        def ready():
            assert self.process.poll() is None, f"up ended with {self.process.returncode}:\n{self.log()[-6000:]}"
            return "Dirigent is ready" in self.log()[before:]
        try:
            wait_until(ready, seconds, "readiness of the cluster")
        except AssertionError:
            print(self.log()[-6000:])
            self.kill()
            raise
        return self

    def stop(self, seconds=90):
        """As Ctrl-C does. Returns the exit code."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            print(self.log()[-6000:])
            self.kill()
            raise AssertionError(f"up did not stop within {seconds} s") from None

    def kill(self):
        for pid in reversed(self.tree()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(30)

    def remove(self):
        self.place.leave()
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- processes ----

    def tree(self):
        """All processes below and with `up`."""
        found, waiting = [], [self.process.pid]
        while waiting:
            pid = waiting.pop(0)
            found.append(pid)
            waiting += children_of(pid)
        return found

    def pid(self, program):
        """Of "control-plane", "data-plane", "worker", "launcher", "up"."""
        if program == "up":
            return self.process.pid
        for pid in self.tree():
            words = command_line(pid)
            if program == "launcher" and words and "dirigent-launcher" in words[0]:
                return pid
            if len(words) > 1 and words[1] == program:
                return pid
        return None

    def kill_program(self, program):
        """kill -9, and waits until another process has its place (None: the launcher, which the worker restarts)."""
        old = self.pid(program)
        assert old, f"there is no {program}"
        os.kill(old, signal.SIGKILL)
        return old

    def wait_restarted(self, program, old, seconds=30):
        return wait_until(lambda: (pid := self.pid(program)) and pid != old and pid, seconds, f"restart of the {program}")

    # ---- output ----

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def mark_log(self):
        self.mark = len(self.log())

    def log_since_mark(self):
        return self.log()[self.mark:]

    # ---- talking ----

    def cli(self, *arguments, **more):
        environment = {"DIRIGENT_API": self.api_url, **more.pop("env", {})}
        return run_cli(*arguments, env=environment, **more)

    def ok(self, *arguments, **more):
        """As cli(), and it must succeed."""
        result = self.cli(*arguments, **more)
        assert result.code == 0, result
        return result

    def api(self, method, path, body=None, **more):
        return http_call(self.api_port, method, path, body, **more)

    def call(self, name, path="/", method="GET", body=None, headers=None, **more):
        """A call of a function through the data plane, by Host."""
        return http_call(self.invoke_port, method, path, body, {"Host": name, **(headers or {})}, **more)

    def items(self, path):
        answer = self.api("GET", path)
        assert answer.status == 200, answer
        return answer.json["items"]

    def sandboxes(self, name=None, state=None):
        found = self.items("/v1/sandboxes" + (f"?function={name}" if name else ""))
        return [s for s in found if state in (None, s["state"])]

    def function(self, name):
        answer = self.api("GET", f"/v1/functions/{name}")
        assert answer.status == 200, answer
        return answer.json

    def delete_all(self):
        for item in self.items("/v1/functions"):
            self.api("DELETE", f"/v1/functions/{item['name']}")
        wait_until(lambda: not self.sandboxes(), 60, "the end of all sandboxes")

    def wait_sandboxes(self, count, name=None, state="ready", seconds=30):
        return wait_until(lambda: len(found := self.sandboxes(name, state)) == count and (found or True), seconds,
                          f"{count} sandboxes {state}")

    # ---- functions for tests ----

    def project(self, files):
        """A directory with these files: {"app.py": text}; executable when it begins with #! or ELF."""
        directory = pathlib.Path(tempfile.mkdtemp(prefix="project-", dir=self.directory))
        for name, content in files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            path.write_bytes(data)
            path.chmod(0o755 if data[:2] == b"#!" or data[:4] == b"\x7fELF" else 0o644)
        return directory

    def deploy(self, name, files, *flags, check=True):
        directory = files if isinstance(files, pathlib.Path) else self.project(files)
        run = self.ok if check else self.cli
        return run("deploy", name, "--dir", directory, *flags)


# ---- what must not be left ----

def run_text(*command):
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    except OSError:
        return ""


def sanitizer_reports(text):
    """Lines of a log by which a program built with sanitizers says that it has a defect."""
    return [line for line in text.splitlines() if "Sanitizer: " in line or ": runtime error: " in line]


def cgroups_named(part):
    """Others may go while we look."""
    found = []
    for directory, names, _ in os.walk("/sys/fs/cgroup", onerror=lambda error: None):
        found += [f"{directory}/{name}" for name in names if part in name]
    return found


def leftovers(cluster):
    """What is there of a cluster that has ended, and what its sanitizers found. Its instance is in the names of all that it
    makes on the host, so that others may run beside it."""
    mine = sanitizer_reports(cluster.log())
    for pid in (p for p in map(int, filter(str.isdigit, os.listdir("/proc")))):
        if any(str(cluster.directory) in word for word in command_line(pid)):
            mine.append(f"process {pid}: {' '.join(command_line(pid))}")
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        if str(cluster.directory) in line:
            mine.append(f"mount {line}")
    named = {
        "interface": [n for n in os.listdir("/sys/class/net") if n.startswith(f"dg{cluster.instance}")],
        "namespace": [n for n in run_text("ip", "netns", "list").splitlines() if cluster.instance in n],
        "nftables": [n for n in run_text("nft", "list", "tables").splitlines() if cluster.instance in n],
        "cgroup": cgroups_named(f"dirigent-{cluster.instance}"),
        "socket": [n for n in pathlib.Path("/proc/net/unix").read_text().splitlines() if str(cluster.directory) in n],
    }
    mine += [f"{kind} {name}" for kind, names in named.items() for name in names]
    if cluster.run_dir.exists():
        mine += [f"file {p}" for p in cluster.run_dir.rglob("*")] or [f"directory {cluster.run_dir}"]
    return mine

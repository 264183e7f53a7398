"""The isolation as a program inside a sandbox finds it: each test would fail if its defence were taken away."""
import json
import socket
import subprocess

import pytest

PROBE = r'''
import ctypes, errno, http.server, json, os, resource, socket, stat, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    """A system call by its number (x86-64): the errno's name, or "ok"."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return "ok" if result != -1 else errno.errorcode.get(ctypes.get_errno(), "?")

def attempt(what):
    try:
        what()
        return "ok"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def status():
    return dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)

def probe_identity():
    return {"uid": os.getuid(), "map": open("/proc/self/uid_map").read().split(), "status": status(), "pid": os.getpid(), "groups": os.getgroups(),
            "host": socket.gethostname(), "own": [socket.getfqdn(), socket.gethostbyname(socket.gethostname())],
            "cwd": os.getcwd(), "session_tty": attempt(lambda: os.open("/dev/tty", os.O_RDWR))}

def probe_files():
    tree = {name: attempt(lambda: open(f"/{name}/x", "w")) for name in ["", "usr", "srv", "etc", "dev", "proc", "tmp", "var", "home", "run"]}
    return {"top": sorted(os.listdir("/")), "write": tree, "dev": sorted(os.listdir("/dev")), "etc": sorted(os.listdir("/etc")),
            "proc": sorted(e for e in os.listdir("/proc") if not e.isdigit()), "pids": sorted(int(e) for e in os.listdir("/proc") if e.isdigit()),
            "mounts": [line.split()[1:4] for line in open("/proc/self/mounts")] if os.path.exists("/proc/self/mounts") else [],
            "fds": {e: os.readlink(f"/proc/self/fd/{e}") for e in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{e}")},
            "mknod": attempt(lambda: os.mknod("/tmp/node", 0o666 | stat.S_IFCHR, os.makedev(1, 3))),
            "shadow": attempt(lambda: open("/etc/shadow"))}

def probe_calls():
    return {name: call(number, 0, 0, 0, 0, 0) for name, number in {
        "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "ptrace": 101, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "io_uring_setup": 425, "add_key": 248, "keyctl": 250, "request_key": 249, "init_module": 175, "kexec_load": 246,
        "open_by_handle_at": 304, "process_vm_readv": 310, "open_tree": 428, "fsopen": 430, "mount_setattr": 442, "clone3": 435, "seccomp": 317,
        "sethostname": 170, "settimeofday": 164, "reboot": 169, "swapon": 167, "unknown": 900}.items()}

def probe_clone():
    return call(56, 0x10000000 | 17, 0, 0, 0, 0)  # CLONE_NEWUSER

def probe_sockets():
    return {name: attempt(lambda: socket.socket(*kind)) for name, kind in {
        "netlink": (16, socket.SOCK_RAW), "packet": (17, socket.SOCK_RAW), "vsock": (40, socket.SOCK_STREAM), "alg": (38, 5),
        "raw": (2, socket.SOCK_RAW, socket.IPPROTO_ICMP), "inet": (2, socket.SOCK_STREAM), "unix": (1, socket.SOCK_STREAM)}.items()}

def probe_limits():
    return {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in ["CORE", "NOFILE", "MEMLOCK", "MSGQUEUE", "RTPRIO"]}

def probe_connect(host, port):
    with socket.socket() as s:
        s.settimeout(0.7)
        try:
            result = s.connect_ex((host, int(port)))
            return "ok" if result == 0 else errno.errorcode[result]
        except TimeoutError:
            return "timeout"

def probe_forks():
    """How many processes there can be at once."""
    children = []
    try:
        while len(children) < 200:
            pid = os.fork()
            if pid == 0:
                time.sleep(20)
                os._exit(0)
            children.append(pid)
    except OSError:
        pass
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return len(children)

def probe_tmp():
    try:
        with open("/tmp/large", "wb") as file:
            for i in range(64):
                file.write(b"x" * (1 << 20))
                file.flush()
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        os.unlink("/tmp/large")

def probe_orphan():
    """A grandchild whose parent has died is reaped by process 1."""
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            time.sleep(0.2)
            os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.6)
    return [e for e in os.listdir("/proc") if e.isdigit() and "Z (zombie)" in open(f"/proc/{e}/status").read()]

def probe_burn(ms):
    begin, wall = time.process_time(), time.monotonic()
    while time.process_time() - begin < int(ms) / 1000:
        pass
    return time.monotonic() - wall

def probe_abstract(name):
    with socket.socket(socket.AF_UNIX) as s:
        return attempt(lambda: s.connect("\0" + name))

def probe_kill(pid):
    return attempt(lambda: os.kill(int(pid), 0))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name, *arguments = self.path.strip("/").split("/")
        body = json.dumps(globals()["probe_" + name](*arguments)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass

http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
'''


@pytest.fixture(scope="module")
def probe(shared):
    """Asks a program in a sandbox."""
    shared.delete_all()
    shared.deploy("probe", {"app.py": PROBE}, "--min", "1", "--pids", "60", "--tmp", "8Mi", "--memory", "128Mi", "--cpu", "200m", "--concurrency", "0")

    def ask(path):
        answer = shared.call("probe", f"/{path}", timeout=60)
        assert answer.status == 200, answer
        return json.loads(answer.body)
    yield ask
    shared.delete_all()


def test_user_and_capabilities(probe):
    found = probe("identity")
    inside, outside, count = map(int, found["map"])
    assert (inside, count) == (0, 65536) and outside >= 100000 and found["uid"] == 0 and found["groups"] == []
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found["status"][name], 16) == 0, name
    assert found["status"]["NoNewPrivs"] == "1" and found["status"]["Seccomp"] == "2"
    assert found["own"] == ["probe", "127.0.1.1"], "without a question to the DNS, which may be far or silent"
    assert found["host"] == "probe" and found["cwd"] == "/srv" and found["session_tty"] != "ok"


def test_files(probe):
    found = probe("files")
    assert set(found["top"]) <= {"bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "root", "run", "sbin", "srv", "tmp", "usr", "var"}
    assert {where for where, result in found["write"].items() if result == "ok"} == {"tmp"}
    assert set(found["dev"]) == {"fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    assert "shadow" not in found["etc"] and found["shadow"] == "ENOENT" and found["mknod"] in ("EPERM", "EACCES")
    assert not {"kcore", "sysrq-trigger", "keys", "timer_list", "sys", "kmsg", "bus"} & set(found["proc"])
    assert found["pids"][0] in (1, 2) and len(found["pids"]) <= 4  # ours only
    assert found["fds"]["0"] == "/dev/null" and found["fds"]["1"].startswith("pipe:") and found["fds"]["2"].startswith("pipe:")
    assert all(target.startswith(("socket:", "pipe:", "/dev/null", "/proc/", "anon_inode:")) for target in found["fds"].values()), found["fds"]
    for place, kind, options in found["mounts"]:
        words = options.split(",")
        assert "nosuid" in words, (place, options)
        if place not in ("/tmp", "/dev/pts", "/proc"):
            assert "ro" in words, (place, options)


def test_system_calls(probe):
    found = probe("calls")
    exceptions = {"clone3": "ENOSYS", "unknown": "ENOSYS"}
    for name, result in found.items():
        assert result == exceptions.get(name, "EPERM"), (name, result)
    assert probe("clone") == "EPERM"
    sockets = probe("sockets")
    for family in ("netlink", "packet", "vsock", "alg"):
        assert sockets[family] == "EAFNOSUPPORT", sockets
    assert sockets["raw"] in ("EPERM", "EACCES") and sockets["inet"] == sockets["unix"] == "ok"


def test_limits(probe):
    limits = probe("limits")
    assert limits["CORE"] == [0, 0] and limits["NOFILE"][1] <= 1024 and limits["MSGQUEUE"] == [0, 0] and limits["RTPRIO"] == [0, 0]
    assert 20 <= probe("forks") <= 60
    assert probe("tmp") == "ENOSPC"
    assert probe("orphan") == []
    assert probe("burn/300") > 0.9  # 300 ms of processor time at a fifth of one


def test_no_way_to_others(shared, probe):
    """The service that must not be reached is there each time: what is tried fails for no other reason."""
    shared.deploy("other", {"app.py": PROBE}, "--min", "1")
    other = shared.wait_sandboxes(1, "other")[0]["address"].split(":")[0]
    own = shared.wait_sandboxes(1, "probe")[0]["address"].split(":")[0]
    unreachable = ("timeout", "EAGAIN", "ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM")
    assert probe(f"connect/{own}/8080") == "ok"
    assert probe(f"connect/{other}/8080") in unreachable
    network, last = other.rsplit(".", 1)
    routes = subprocess.run(["ip", "-4", "-o", "addr"], stdout=subprocess.PIPE, text=True, check=True).stdout
    ours = {line.split()[3].split("/")[0] for line in routes.splitlines()} - {"127.0.0.1"}
    assert ours
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        for address in sorted(ours)[:6]:
            assert probe(f"connect/{address}/{port}") in unreachable, address
    assert probe("connect/169.254.169.254/80") in unreachable
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0dirigent-isolation-test")
        abstract.listen(1)
        assert probe("abstract/dirigent-isolation-test") != "ok"
    assert probe("kill/3000") == "ESRCH"


def test_tmp_is_of_one_sandbox(shared, probe):
    first = probe("files")
    assert first["write"]["tmp"] == "ok"
    shared.deploy("other", {"app.py": PROBE}, "--min", "1")
    answer = shared.call("other", "/files")
    assert json.loads(answer.body)["write"]["tmp"] == "ok"
    listing = PROBE.replace("def probe_identity", "def probe_listing():\n    return os.listdir('/tmp')\n\ndef probe_identity")
    shared.deploy("third", {"app.py": listing}, "--min", "1")
    assert json.loads(shared.call("third", "/listing").body) == []

"""A whole cluster on one machine: each of its hosts is a network namespace with an address of its own, and all are joined by a
bridge in one more namespace. Nothing of the real host's network is touched. For `deploy/cluster`, and for the system tests.

    with Cluster(build) as cluster:      # 3 control hosts (etcd and a control plane), 2 data planes, 4 workers, 1 client
        cluster.start()                  # returns when all is there
        cluster.host("c1").cut()         # its network falls silent; heal() undoes it
        cluster.program("worker2").kill()

Hosts: c1 c2 c3 (control), d1 d2 (data planes), w1 … w4 (workers), client. Programs: etcd1, control-plane1, data-plane1, worker1 …
All programs speak TLS; etcd has an authority of its own, the cluster makes one for itself, and data planes and workers join by
tokens, as an operator makes them join. Standard library only; needs root, ip(8), nft(8), nsenter(1), openssl(1) and etcd."""
import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

CLONE_NEWNET = 0x40000000
NETWORK = "10.77.0"
API_PORT, CLUSTER_PORT, CALL_PORT = 9091, 9090, 8080
STATE_ROOT = pathlib.Path("/run/dirigent-cluster")
TABLE = "dirigent_cluster_faults"
libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """A sentence for the person at the terminal."""


def run(*command, check=True, **more):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, **more)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done


def wait_for(condition, seconds, what):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise Failed(f"{what}: not within {seconds} s")


class Host:
    """One network namespace."""

    def __init__(self, cluster, name, number):
        self.cluster, self.name, self.address = cluster, name, f"{NETWORK}.{number}"
        self.namespace = f"{cluster.tag}-{name}"

    def inside(self):
        """The command line's beginning that runs a program on this host."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]

    def run(self, *command, **more):
        return run(*self.inside(), *command, **more)

    @contextlib.contextmanager
    def entered(self):
        """This thread is on that host; sockets that are made here stay there."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(there, CLONE_NEWNET) != 0:
                raise Failed(f"enter host {self.name}: {os.strerror(ctypes.get_errno())}")
            yield
        finally:
            libc.setns(own, CLONE_NEWNET)
            os.close(own)
            os.close(there)

    def connect(self, address, port, timeout=10):
        with self.entered():
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(timeout)
        made.connect((address, port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def http(self, method, address, port, path="/", body=None, headers=None, timeout=10):
        """(status, body) of one request that is sent from this host."""
        connection = http.client.HTTPConnection(address, port, timeout=timeout)
        try:
            connection.sock = self.connect(address, port, timeout)
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    # ---- faults of its network ----

    def _rules(self, lines):
        script = f"add table inet {TABLE}\n" \
                 f"add chain inet {TABLE} i {{ type filter hook input priority -300; }}\n" \
                 f"add chain inet {TABLE} f {{ type filter hook forward priority -300; }}\n" \
                 f"add chain inet {TABLE} o {{ type filter hook output priority -300; }}\n"
        script += "".join(f"add rule inet {TABLE} {line}\n" for line in lines)
        done = subprocess.run([*self.inside(), "nft", "-f", "-"], input=script, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise Failed(f"nft on {self.name}: {done.stderr.strip()}")

    def cut(self):
        """All it sends and all that is sent to it is lost from now on: to the others it is as if its power were gone."""
        self._rules([f"{chain} {way} eth0 drop" for chain, way in [("i", "iifname"), ("o", "oifname"), ("f", "iifname"),
                                                                  ("f", "oifname")]])

    def part_from(self, *others, one_way=False):
        """Nothing goes between it and the others; `one_way`: what it sends to them is lost, what they send arrives."""
        addresses = ", ".join(o.address for o in others)
        lines = [f"{c} ip daddr {{ {addresses} }} drop" for c in "of"]
        self._rules(lines if one_way else [*lines, *(f"{c} ip saddr {{ {addresses} }} drop" for c in "if")])

    def part_from_port(self, port, *others, ways="io"):
        """Only connections to that port of the others are cut (etcd's 2379, say). `ways`: "o", what it sends to them is lost,
        "i", what they answer."""
        addresses = ", ".join(o.address for o in others)
        lines = {"o": f"o ip daddr {{ {addresses} }} tcp dport {port} drop", "i": f"i ip saddr {{ {addresses} }} tcp sport {port} drop"}
        self._rules([lines[way] for way in ways])

    def lose(self, percent):
        """So many of a hundred packets that arrive are lost."""
        self._rules([f"i iifname eth0 numgen random mod 100 < {int(percent)} drop"])

    def heal(self):
        self.run("nft", "delete", "table", "inet", TABLE, check=False)


class Program:
    """One process on a host. Its command line names the cluster's directory: that tells it from others after a pid is used
    again."""

    def __init__(self, cluster, name, host, command):
        self.cluster, self.name, self.host = cluster, name, host
        self.command = [str(c) for c in command]
        self.log_path = cluster.directory / f"{name}.log"
        self.process = None

    def start(self):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("DIRIGENT_") and not k.startswith("ETCD")}
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen([*self.host.inside(), *self.command], stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, env=clean, start_new_session=True)
        self.cluster.remember(self.name, self.process.pid)
        return self

    def pid(self):
        """Of the running process, or None. Whoever has ended ours may have started another, from another terminal."""
        is_ours = self.process is not None and self.process.poll() is None
        pid = self.process.pid if is_ours else self.cluster.remembered(self.name)
        try:
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            return None
        return pid if str(self.cluster.directory) in words and state not in "ZX" else None

    def is_running(self):
        return self.pid() is not None

    def signal(self, number):
        if (pid := self.pid()) is not None:
            os.kill(pid, number)

    def wait_end(self, seconds):
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        end = time.monotonic() + seconds
        while self.is_running() and time.monotonic() < end:
            time.sleep(0.02)
        return not self.is_running()

    def kill(self):
        self.signal(signal.SIGKILL)
        self.wait_end(10)

    def pause(self):
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)

    def stop(self, seconds=60):
        """In order; the exit code, where it is our child."""
        is_ours = self.process is not None and self.process.poll() is None
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not self.wait_end(seconds):
            self.kill()
        return self.process.returncode if is_ours else None

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


class Cluster:
    """`tag` is in the names of all that it makes: several may be there at once."""

    def __init__(self, build, tag="dg", data_planes=2, workers=4, slots=64, control_plane_flags=(), worker_flags=(),
                 data_plane_flags=()):
        self.build, self.tag = pathlib.Path(build), tag
        self.directory = STATE_ROOT / tag
        self.more = {"control-plane": control_plane_flags, "worker": worker_flags, "data-plane": data_plane_flags}
        self.slots = slots
        names = ["c1", "c2", "c3", *(f"d{i + 1}" for i in range(data_planes)), *(f"w{i + 1}" for i in range(workers)), "client"]
        self.hosts = [Host(self, name, i + 11) for i, name in enumerate(names)]
        self.controls = [h for h in self.hosts if h.name[0] == "c" and h.name != "client"]
        self.planes = [h for h in self.hosts if h.name[0] == "d"]
        self.workers = [h for h in self.hosts if h.name[0] == "w"]
        self.client = self.hosts[-1]
        self.key = None
        self.is_ours = False  # made, or attached to: what may be removed
        self.programs = [*(self._etcd(h) for h in self.controls), *(self._control_plane(h) for h in self.controls),
                         *(self._data_plane(h) for h in self.planes), *(self._worker(h) for h in self.workers)]

    def host(self, name):
        for h in self.hosts:
            if h.name == name:
                return h
        raise Failed(f"there is no host '{name}': {' '.join(h.name for h in self.hosts)}")

    def program(self, name):
        for p in self.programs:
            if p.name == name:
                return p
        raise Failed(f"there is no program '{name}': {' '.join(p.name for p in self.programs)}")

    # ---- what runs where ----

    def _number(self, host):
        return host.name[1:]

    def _etcd(self, host):
        name, tls = f"etcd{self._number(host)}", self.directory / "etcd-tls"
        peers = ",".join(f"etcd{self._number(h)}=https://{h.address}:2380" for h in self.controls)
        return Program(self, name, host, [
            "etcd", "--name", name, "--data-dir", self.directory / name,
            "--listen-client-urls", f"https://{host.address}:2379", "--advertise-client-urls", f"https://{host.address}:2379",
            "--listen-peer-urls", f"https://{host.address}:2380", "--initial-advertise-peer-urls", f"https://{host.address}:2380",
            "--initial-cluster", peers, "--initial-cluster-state", "new",
            "--heartbeat-interval", "30", "--election-timeout", "200",  # a local network's: docs/operations.md
            "--client-cert-auth", "--trusted-ca-file", tls / "ca.pem", "--cert-file", tls / f"{host.name}.pem",
            "--key-file", tls / f"{host.name}.key", "--peer-client-cert-auth", "--peer-trusted-ca-file", tls / "ca.pem",
            "--peer-cert-file", tls / f"{host.name}.pem", "--peer-key-file", tls / f"{host.name}.key"])

    def _directories(self, name):
        return ["--data-dir", self.directory / name / "data", "--run-dir", self.directory / name / "run"]

    def _control_plane(self, host):
        name, tls = f"control-plane{self._number(host)}", self.directory / "etcd-tls"
        others = ",".join(f"{h.address}:{CLUSTER_PORT}" for h in self.controls if h is not host)
        return Program(self, name, host, [
            self.build / "dirigent", "control-plane", "--store", "etcd",
            "--etcd", ",".join(f"https://{h.address}:2379" for h in self.controls), "--etcd-ca", tls / "ca.pem",
            "--etcd-cert", tls / f"{host.name}.pem", "--etcd-key", tls / f"{host.name}.client-key",
            "--cluster", f"{host.address}:{CLUSTER_PORT}", "--peers", others, "--api", f"0.0.0.0:{API_PORT}",
            *self._directories(name), *self.more["control-plane"]])

    def _data_plane(self, host):
        name = f"data-plane{self._number(host)}"
        return Program(self, name, host, [
            self.build / "dirigent", "data-plane", "--listen", f"{host.address}:{CALL_PORT}", "--threads", "1",
            *self._directories(name), *self.more["data-plane"]])

    def _worker(self, host):
        name = f"worker{self._number(host)}"
        instance = (self.tag + self._number(host))[-6:]
        return Program(self, name, host, [
            self.build / "dirigent", "worker", "--slots", self.slots, "--blanks", "4", "--instance", instance,
            *self._directories(name), *self.more["worker"]])

    # ---- what is remembered for other terminals ----

    def remember(self, key, value):
        path = self.directory / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        state[key] = value
        path.with_suffix(".new").write_text(json.dumps(state))
        path.with_suffix(".new").replace(path)

    def remembered(self, key):
        try:
            return json.loads((self.directory / "state.json").read_text()).get(key)
        except (OSError, ValueError):
            return None

    @classmethod
    def attach(cls, tag):
        """To one that another process has started."""
        path = STATE_ROOT / tag / "state.json"
        if not path.parent.exists():
            raise Failed(f"there is no cluster '{tag}' on this machine: start one with `deploy/cluster up`")
        if not path.exists():  # its maker was killed at once: there may be little to take away
            path.write_text(json.dumps({"shape": {"build": "", "data_planes": 2, "workers": 4, "slots": 64}}))
        shape = json.loads(path.read_text())["shape"]
        found = cls(shape["build"], tag, shape["data_planes"], shape["workers"], shape["slots"])
        found.key = json.loads(path.read_text()).get("key")
        found.is_ours = True
        return found

    # ---- the network ----

    def _make_network(self):
        lan = f"{self.tag}-lan"
        run("ip", "netns", "add", lan)
        run("ip", "-n", lan, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", lan, "link", "set", "br0", "up")
        for h in self.hosts:
            run("ip", "netns", "add", h.namespace)
            script = [f"link add eth0 netns {h.namespace} type veth peer name {h.name} netns {lan}"]
            subprocess.run(["ip", "-batch", "-"], input="\n".join(script), text=True, check=True)
            run("ip", "-n", lan, "link", "set", h.name, "master", "br0", "up")
            subprocess.run(["ip", "-n", h.namespace, "-batch", "-"], text=True, check=True,
                           input=f"link set lo up\naddr add {h.address}/24 dev eth0\nlink set eth0 up\n")

    def _remove_network(self):
        for name in [h.namespace for h in self.hosts] + [f"{self.tag}-lan"]:
            if pathlib.Path(f"/run/netns/{name}").exists():
                run("ip", "netns", "delete", name, check=False)

    # ---- credentials ----

    def _prepare_control_planes(self):
        """etcd is for the control planes alone: an authority of its own, and a certificate for each of their hosts."""
        tls = self.directory / "etcd-tls"
        tls.mkdir(mode=0o755)
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        run("openssl", "req", "-x509", *curve, "-days", "3650", "-subj", "/CN=etcd", "-keyout", tls / "ca.key", "-out",
            tls / "ca.pem")
        for h in self.controls:
            run("openssl", "req", "-x509", *curve, "-days", "365", "-subj", f"/CN={h.name}", "-CA", tls / "ca.pem", "-CAkey",
                tls / "ca.key", "-addext", f"subjectAltName=IP:{h.address},IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE",
                "-addext", "extendedKeyUsage=serverAuth,clientAuth", "-keyout", tls / f"{h.name}.key", "-out",
                tls / f"{h.name}.pem")
            shutil.copy(tls / f"{h.name}.key", tls / f"{h.name}.client-key")
            os.chown(tls / f"{h.name}.client-key", 61990, 61990)  # the user that the control plane becomes
            os.chmod(tls / f"{h.name}.client-key", 0o600)

    def _join(self, program, kind):
        made = json.loads(self.cli("token", "create", "--role", kind, "-o", "json").stdout)
        program.host.run(self.build / "dirigent", kind, "join", "--token", made["token"], "--ca-hash", made["ca_hash"],
                         "--name", program.host.name, "--data-dir", self.directory / program.name / "data",
                         made["control_planes"])

    # ---- life ----

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.remove()

    def make(self):
        """Namespaces and certificates; no program yet."""
        if os.geteuid() != 0:
            raise Failed("namespaces need root")
        for tool in ["etcd", "ip", "nft", "nsenter", "openssl"]:
            if shutil.which(tool) is None:
                raise Failed(f"{tool} is not installed: tools/install-deps test")
        if self.directory.exists():
            raise Failed(f"there is a cluster '{self.tag}' already: `deploy/cluster down` ends it")
        self.directory.mkdir(parents=True, mode=0o755)
        self.is_ours = True
        self.remember("shape", {"build": str(self.build), "data_planes": len(self.planes), "workers": len(self.workers),
                                "slots": self.slots})
        self._make_network()
        self._prepare_control_planes()
        return self

    def start(self, say=lambda text: None):
        """All of it, until every program is there."""
        self.make()
        say("etcd and control planes")
        for p in self.programs[:2 * len(self.controls)]:
            p.start()
        self.wait_leader()
        wait_for(lambda: "sha256:" in self.cli("ca", "show", check=False).stdout, 20, "the cluster's authority")
        made = self.cli("api-key", "create", "operator", "--role", "admin", "-o", "json")
        self.key = json.loads(made.stdout)["key"]
        self.remember("key", self.key)
        say("data planes and workers join")
        for p in self.programs[2 * len(self.controls):]:
            self._join(p, "worker" if p.host in self.workers else "data-plane")
            p.start()
        self.wait_nodes()
        return self

    def stop(self):
        """In order; what did not end as it should."""
        bad = []
        for p in [*reversed(self.programs[len(self.controls):]), *self.programs[:len(self.controls)]]:
            if not p.is_running():
                continue
            code = p.stop()
            if code not in (0, None) and not p.name.startswith("etcd"):
                bad.append(f"{p.name} ended with {code}")
        return bad

    def remove(self):
        """Whatever state it is in: nothing of it is left. Not of one that another has made."""
        if not self.is_ours:
            return []
        for h in self.hosts:
            if pathlib.Path(f"/run/netns/{h.namespace}").exists():
                h.heal()
        bad = self.stop()
        self._end_others()
        self._remove_network()
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            STATE_ROOT.rmdir()
        return bad

    def _end_others(self):
        """What has lost its parent: programs that a killed script left, and the launcher of a worker that was killed. Told by
        where they run, not by their words: somebody may be reading a log."""
        namespaces = {os.stat(f"/run/netns/{h.namespace}").st_ino for h in self.hosts
                      if pathlib.Path(f"/run/netns/{h.namespace}").exists()}

        def mine():
            found = []
            for pid in filter(str.isdigit, os.listdir("/proc")):
                with contextlib.suppress(OSError):
                    words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                    inside = os.stat(f"/proc/{pid}/ns/net").st_ino in namespaces
                    if inside and (str(self.directory) + "/" in words or "dirigent" in words):
                        found.append(int(pid))
            return [p for p in found if p != os.getpid()]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in mine():
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            end = time.monotonic() + 5
            while mine() and time.monotonic() < end:
                time.sleep(0.05)

    # ---- talking ----

    def cli(self, *arguments, at=None, check=True, timeout=60):
        """The client, on the leader's host where there is one."""
        host = at or self.leader() or self.controls[0]
        environment = {**os.environ, "DIRIGENT_API": f"http://127.0.0.1:{API_PORT}"}
        if self.key:
            environment["DIRIGENT_API_KEY"] = self.key
        return host.run(self.build / "dirigent", *arguments, check=check, env=environment, timeout=timeout)

    def api(self, method, path, body=None, at=None, timeout=10):
        """(status, JSON) of one control plane's API, asked on its own host."""
        host = at or self.controls[0]
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        status, text = host.http(method, "127.0.0.1", API_PORT, path, body, headers, timeout)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def status(self):
        """The newest that any control plane tells of the cluster (one that is cut off may tell what was), or None."""
        newest = None
        for h in self.controls:
            with contextlib.suppress(OSError, http.client.HTTPException):
                code, found = self.api("GET", "/v1/status", at=h, timeout=1)
                if code == 200 and (newest is None or found["epoch"] > newest["epoch"]):
                    newest = found
        return newest

    def etcdctl(self, *arguments, at=None, check=True):
        """On a control host, asking its own member."""
        host, tls = at or self.controls[0], self.directory / "etcd-tls"
        return host.run("etcdctl", "--endpoints", f"https://{host.address}:2379", "--cacert", tls / "ca.pem", "--cert",
                        tls / f"{host.name}.pem", "--key", tls / f"{host.name}.key", *arguments, check=check,
                        env={**os.environ, "ETCDCTL_API": "3"})

    def etcd_leader(self):
        """The host whose member of etcd leads, or None."""
        tls = self.directory / "etcd-tls"
        for h in self.controls:
            done = h.run("curl", "-s", "-m", "2", "--cacert", tls / "ca.pem", "--cert", tls / f"{h.name}.pem", "--key",
                         tls / f"{h.name}.key", "-d", "{}", f"https://{h.address}:2379/v3/maintenance/status", check=False)
            with contextlib.suppress(ValueError):
                found = json.loads(done.stdout)
                if found.get("leader") not in (None, "0") and found["leader"] == found["header"]["member_id"]:
                    return h
        return None

    def leader(self):
        """The host whose control plane leads, or None."""
        status = self.status()
        name = status.get("leader", "").rsplit(":", 1)[0] if status else ""
        return next((h for h in self.controls if h.address == name), None)

    def wait_leader(self, other_than=None, seconds=30):
        return wait_for(lambda: (h := self.leader()) is not other_than and h, seconds, "a leader")

    def alive(self, path):
        leader = self.leader()
        code, found = self.api("GET", path, at=leader) if leader else (0, None)
        return sum(i["state"] == "alive" for i in found["items"]) if code == 200 else 0

    def wait_nodes(self, seconds=60):
        wait_for(lambda: self.alive("/v1/workers") == len(self.workers) and self.alive("/v1/data-planes") == len(self.planes),
                 seconds, "workers and data planes")

    def call(self, name, plane=0, path="/", timeout=60, method="GET", body=None):
        """(status, body) of a function, called from the client's host."""
        return self.client.http(method, self.planes[plane].address, CALL_PORT, path, body, {"Host": name}, timeout)

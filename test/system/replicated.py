"""A cluster with several control planes: etcd, control planes, data planes and workers as single processes on loopback, for
tests that kill, stop and restart them one by one. Standard library only."""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

from cluster import BUILD, Place, free_ports, http_call, run_cli, sanitizer_reports, wait_until


class Program:
    """One process, its log, and how to start it again."""

    def __init__(self, cluster, name, command):
        self.cluster, self.name, self.command = cluster, name, [str(c) for c in command]
        self.log_path = cluster.directory / f"{name}.log"
        self.environment = {}  # of this one, beside the cluster's
        self.process = None

    def start(self):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("DIRIGENT_")}
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            env={**clean, **self.cluster.environment, **self.environment})
        return self

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.send_signal(signal.SIGCONT)
        if self.process is not None:
            self.process.wait(30)

    def stop(self, seconds=60):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            return self.process.wait(seconds)
        return None

    def is_running(self):
        return self.process is not None and self.process.poll() is None


def there_is_etcd():
    return shutil.which("etcd") is not None


class Replicated:
    """`control_planes` of them over three members of etcd; one data plane and one worker unless told otherwise."""

    def __init__(self, control_planes=3, data_planes=1, workers=1, etcd_members=3, flags=(), environment=None):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="dirigent-test-"))
        self.directory.chmod(0o755)
        self.flags, self.environment = [str(f) for f in flags], environment or {}
        self.places = []
        ports = free_ports(2 * etcd_members + 2 * control_planes + data_planes + workers)
        take = iter(ports).__next__
        self.etcd_urls = []
        self.etcds = self.make_etcds([(take(), take()) for _ in range(etcd_members)])
        self.cluster_addresses = [f"127.0.0.1:{take()}" for _ in range(control_planes)]
        self.api_ports = [take() for _ in range(control_planes)]
        self.control_planes = [self.make_control_plane(i) for i in range(control_planes)]
        self.invoke_ports = [take() for _ in range(data_planes)]
        self.data_planes = [self.make_data_plane(i) for i in range(data_planes)]
        self.workers = [self.make_worker(i, take()) for i in range(workers)]

    # ---- the programs ----

    def make_etcds(self, ports):
        names = ",".join(f"m{i}=http://127.0.0.1:{peer}" for i, (_, peer) in enumerate(ports))
        found = []
        for i, (client, peer) in enumerate(ports):
            url = f"http://127.0.0.1:{client}"
            self.etcd_urls.append(url)
            found.append(Program(self, f"etcd-{i}", [
                "etcd", "--name", f"m{i}", "--data-dir", self.directory / f"etcd-{i}", "--listen-client-urls", url,
                "--advertise-client-urls", url, "--listen-peer-urls", f"http://127.0.0.1:{peer}",
                "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", names,
                "--initial-cluster-state", "new"]))
        return found

    def make_control_plane(self, i, *flags):
        own = self.cluster_addresses[i]
        peers = ",".join(a for a in self.cluster_addresses if a != own)
        home = self.directory / f"control-plane-{i}"
        command = [BUILD / "dirigent", "control-plane", "--store", "etcd", "--etcd", ",".join(self.etcd_urls), "--cluster", own,
                   "--api", f"127.0.0.1:{self.api_ports[i]}", "--data-dir", home / "data", "--run-dir", home / "run"]
        command += ["--peers", peers] if peers else []
        return Program(self, f"control-plane-{i}", [*command, *self.flags, *flags])

    def make_data_plane(self, i):
        home = self.directory / f"data-plane-{i}"
        return Program(self, f"data-plane-{i}", [
            BUILD / "dirigent", "data-plane", "--control-plane", ",".join(self.cluster_addresses), "--name", f"plane-{i}",
            "--listen", f"127.0.0.1:{self.invoke_ports[i]}", "--data-dir", home / "data", "--run-dir", home / "run", "--threads",
            "1"])

    def make_worker(self, i, metrics_port):
        home, place = self.directory / f"worker-{i}", Place()
        self.places.append(place)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"
        pid = os.getpid() % 36 ** 3
        instance = "r" + digits[pid // 1296] + digits[pid // 36 % 36] + digits[pid % 36] + digits[place.number]
        return Program(self, f"worker-{i}", [
            BUILD / "dirigent", "worker", "--control-plane", ",".join(self.cluster_addresses), "--name", f"worker-{i}",
            "--address", "127.0.0.1", "--data-dir", home / "data", "--run-dir", home / "run", "--address-pool", place.pool,
            "--host-port-base", place.host_port_base, "--slots", place.SLOTS, "--blanks", "8", "--instance", instance, "--metrics",
            f"127.0.0.1:{metrics_port}"])

    def all(self):
        return [*self.etcds, *self.control_planes, *self.data_planes, *self.workers]

    # ---- life ----

    def start(self):
        for program in [*self.etcds, *self.control_planes]:
            program.start()
        self.wait_leader()
        for program in [*self.data_planes, *self.workers]:
            program.start()
        wait_until(lambda: self.alive("/v1/workers") == len(self.workers), 60, "the workers")
        wait_until(lambda: self.alive("/v1/data-planes") == len(self.data_planes), 60, "the data planes")
        return self

    def end(self):
        """Stops all; what is left or was reported by sanitizers."""
        codes = {}
        for program in [*self.data_planes, *self.workers, *self.control_planes, *self.etcds]:
            if program.is_running():
                program.signal(signal.SIGCONT)
                codes[program.name] = program.stop()
        bad = [f"{n} ended with {c}" for n, c in codes.items() if c != 0 and not n.startswith("etcd")]
        for program in self.all():
            bad += sanitizer_reports(program.log())
        for place in self.places:
            place.leave()
        shutil.rmtree(self.directory, ignore_errors=True)
        return bad

    def kill_all(self):
        for program in self.all():
            program.kill()

    # ---- talking ----

    def api(self, method, path, body=None, at=None, **more):
        """To the control plane `at`, else to one that is running."""
        if at is not None:
            return http_call(self.api_ports[at], method, path, body, **more)

        def answered():
            for i, program in enumerate(self.control_planes):
                try:
                    answer = http_call(self.api_ports[i], method, path, body, **more) if program.is_running() else None
                except ConnectionRefusedError:  # it has only just been started
                    continue
                if answer is not None and not (answer.status == 503 and b"no_leader" in answer.body):
                    return answer
            return None
        return wait_until(answered, 20, "an answer of a control plane")

    def items(self, path, at=None):
        answer = self.api("GET", path, at=at)
        assert answer.status == 200, answer
        return answer.json["items"]

    def alive(self, path):
        try:
            return sum(i["state"] == "alive" for i in self.items(path))
        except (AssertionError, OSError):
            return 0

    def leader_of_log(self, program):
        """Whether the newest life of the process leads, as it says itself."""
        life = program.log().rsplit("control_plane.up ", 1)[-1]
        return "control_plane.leads" in life and "control_plane.succeeded" not in life

    def leader(self):
        """The index of the control plane that leads, or None."""
        for i, program in enumerate(self.control_planes):
            if not program.is_running():
                continue
            try:
                status = http_call(self.api_ports[i], "GET", "/v1/status", timeout=5)
            except OSError:
                continue
            if status.status == 200:
                leader = status.json.get("leader")
                if leader in self.cluster_addresses and self.control_planes[self.cluster_addresses.index(leader)].is_running():
                    return self.cluster_addresses.index(leader)
        return None

    def wait_leader(self, other_than=None, seconds=60):
        found = wait_until(lambda: (i := self.leader()) is not None and i != other_than and [i], seconds, "a leader")
        return found[0]

    def cli(self, *arguments, at=0, **more):
        return run_cli(*arguments, env={"DIRIGENT_API": f"http://127.0.0.1:{self.api_ports[at]}"}, **more)

    def ok(self, *arguments, **more):
        result = self.cli(*arguments, **more)
        assert result.code == 0, result
        return result

    def call(self, name, path="/", plane=0, method="GET", body=None, timeout=60):
        return http_call(self.invoke_ports[plane], method, path, body, {"Host": name}, timeout=timeout)

    def project(self, files):
        directory = pathlib.Path(tempfile.mkdtemp(prefix="project-", dir=self.directory))
        for name, content in files.items():
            (directory / name).write_text(content)
        return directory

    def deploy(self, name, files, *flags, at=0):
        return self.ok("deploy", name, "--dir", self.project(files), *flags, at=at)

    def sandboxes(self, name, state=None):
        return [s for s in self.items(f"/v1/sandboxes?function={name}") if state in (None, s["state"])]


@contextlib.contextmanager
def started(kind):
    """Gives a function that makes a cluster of this kind and starts it. At the end all of them end, in order, and their logs are
    shown when the test fails."""
    made = []

    def make(*arguments, **more):
        made.append(kind(*arguments, **more))
        return made[-1].start()
    try:
        yield make
    finally:
        bad = []
        for cluster in made:
            for program in cluster.all():
                print(f"===== {program.name}\n{program.log()[-3000:] if 'etcd' not in program.name else ''}")
            bad += cluster.end()
    assert bad == []

"""deploy/haproxy.cfg in front of three data planes: the file itself, with the addresses of a test."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from callers import Callers
from cluster import free_ports, http_call, wait_until
from replicated import Program, Replicated, started, there_is_etcd
from test_user_path import APP

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
              pytest.mark.skipif(not there_is_etcd(), reason="needs etcd"),
              pytest.mark.skipif(shutil.which("haproxy") is None, reason="needs haproxy")]
CONFIGURATION = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "haproxy.cfg"
NAMES = [f"f{i}" for i in range(8)]


class BalancedCluster(Replicated):
    def __init__(self):
        super().__init__(control_planes=1, data_planes=3, flags=("--i-know",), etcd_members=1)
        (self.front_port,) = free_ports(1)
        text, count = re.subn(r"bind :80\b", f"bind 127.0.0.1:{self.front_port}", CONFIGURATION.read_text())
        assert count == 1
        kept = [line for line in text.splitlines() if not line.strip().startswith("server ")]
        assert len(kept) < len(text.splitlines())
        kept += [f"    server plane{i} 127.0.0.1:{port}" for i, port in enumerate(self.invoke_ports)]
        path = self.directory / "haproxy.cfg"
        path.write_text("\n".join(kept) + "\n")
        self.front = Program(self, "haproxy", ["haproxy", "-db", "-f", path])

    def start(self):
        super().start()
        self.front.start()
        wait_until(self.front_answers, 10, "the balancer")
        return self

    def end(self):
        self.front.kill()
        return super().end()

    def front_answers(self):
        try:
            return self.through("/function/none/").status == 404
        except ConnectionRefusedError:
            assert self.front.is_running(), self.front.log()

    def through(self, path, headers=None):
        return http_call(self.front_port, "GET", path, headers=headers)

    def is_up(self, plane):
        try:
            return http_call(self.invoke_ports[plane], "GET", "/readyz", headers={"Host": "localhost"}).status == 200
        except ConnectionRefusedError:
            return False

    def served(self, name):
        """How many requests of a function each data plane has answered with 200."""
        found = []
        for port in self.invoke_ports:
            page = http_call(port, "GET", "/metrics", headers={"Host": "localhost"}).text
            found.append(sum(int(n) for n in re.findall(
                rf'^dirigent_function_requests_total{{function="{name}",status="2xx"}} (\d+)', page, re.M)))
        return found


class Front(Callers):
    """By the balancer, each on a connection of its own."""

    def __init__(self, cluster, name, count):
        super().__init__(count)
        self.cluster, self.name = cluster, name

    def ask(self, which):
        answer = http_call(self.cluster.front_port, "GET", f"/function/{self.name}/sleep/0.02")
        return answer.status, answer.text


@pytest.fixture
def cluster():
    with started(BalancedCluster) as make:
        yield make()


def test_the_configuration_is_valid():
    done = subprocess.run(["haproxy", "-c", "-f", CONFIGURATION], capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stdout.lower() + done.stderr.lower(), done


def test_a_function_stays_at_one_data_plane_until_there_is_too_much_of_it_or_that_one_dies(cluster):
    for name in NAMES:
        cluster.deploy(name, {"app.py": APP}, "--concurrency", "4", "--max", "3", "--no-wait")
    for name in NAMES:
        for path, headers in [(f"/function/{name}/", {}), ("/", {"Host": name}), ("/", {"Host": f"{name.upper()}.example.com"})] * 4:
            answer = cluster.through(path, headers)
            assert answer.status == 200, (path, headers, answer)
    homes = []
    for name in NAMES:
        served = cluster.served(name)
        assert sum(served) == 12 and max(served) >= 9, (name, served)  # one that is not quite over yet counts as load
        homes.append(served.index(max(served)))
    assert len(set(homes)) > 1, "different functions, different data planes"

    with Front(cluster, NAMES[0], 12) as calls:
        calls.wait_good(300)
    assert calls.bad == []
    assert sum(n > 0 for n in cluster.served(NAMES[0])) >= 2, "more than 1.25 times its share goes on to the next"

    dies = homes[1]
    with Front(cluster, NAMES[1], 2) as calls:
        calls.wait_good(10)
        cluster.data_planes[dies].kill()
        calls.wait_good(40)
    assert calls.bad == [], ("what it did not answer goes to another", calls.bad)
    cluster.data_planes[dies].start()
    wait_until(lambda: cluster.is_up(dies), 10, "it to answer again")
    wait_until(lambda: cluster.through(f"/function/{NAMES[1]}/").status == 200 and cluster.served(NAMES[1])[dies] > 0, 20,
               "the function to be back at its data plane")

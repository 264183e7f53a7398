"""`dirigent simulate` against a real control-plane process: do its counts add up, also when connections break, and is what
is wrong said clearly."""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time

import pytest

from cluster import BUILD, free_ports, http_call, run_cli, wait_until

SMALL = ["--workers", "20", "--data-planes", "3", "--functions", "300", "--rate", "200", "--duration", "1500ms", "--warm-up", "200ms"]

pytestmark = [pytest.mark.slow, pytest.mark.alone]


class ControlPlane:
    def __init__(self, *flags):
        self.directory, self.flags = pathlib.Path(tempfile.mkdtemp(prefix="dirigent-test-")), flags
        self.directory.chmod(0o755)  # it gives up its privileges
        self.api_port, self.cluster_port = free_ports(2)
        self.process = None

    def start(self):
        with open(self.directory / "log", "a") as log:
            self.process = subprocess.Popen(
                [BUILD / "dirigent", "control-plane", "--api", f"127.0.0.1:{self.api_port}", "--cluster",
                 f"127.0.0.1:{self.cluster_port}", "--data-dir", self.directory / "data", "--run-dir", self.directory / "run",
                 *self.flags], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self.answers, 20, "the control plane's API")
        return self

    def answers(self):
        assert self.process.poll() is None, self.log()
        try:
            return http_call(self.api_port, "GET", "/healthz").status == 200
        except OSError:
            return False

    def log(self):
        return (self.directory / "log").read_text()

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def command(self, *flags):
        return ["simulate", "--api", f"127.0.0.1:{self.api_port}", "--cluster", f"127.0.0.1:{self.cluster_port}", *flags]

    def simulate(self, *flags, code=0):
        """Its figures, which must add up whatever happened."""
        done = run_cli(*self.command(*flags, "--json"))
        assert done.code == code, done
        return check_sums(json.loads(done.out))

    def stored_sandboxes(self):
        """Read when it does not run."""
        with contextlib.closing(sqlite3.connect(f"file:{self.directory}/data/control-plane/state.db?mode=ro", uri=True)) as db:
            return db.execute("SELECT count(*) FROM records WHERE kind = 3").fetchone()[0]

    def get(self, path):
        return http_call(self.api_port, "GET", path).json

    def metric(self, name):
        for line in http_call(self.api_port, "GET", "/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")


def check_sums(figures):
    assert figures["asked"] == figures["published"] + figures["failed"] + figures["timed_out"] + figures["unanswered"]
    assert figures["scheduled"] >= figures["published"] and figures["scheduled"] <= figures["asked"]
    assert figures["readies"] <= figures["starts"]
    assert figures["unprepared"] == 0
    for name in ("order_us", "publish_us", "late_us"):
        times = figures[name]
        assert 0 <= times["p50"] <= times["p90"] <= times["p99"] <= times["p999"] <= times["max"]
    return figures


@pytest.fixture
def control_plane(build):
    made = []

    def make(*flags):
        made.append(ControlPlane(*flags).start())
        return made[-1]
    yield make
    for one in made:
        code = one.stop()
        print(one.log()[-4000:])
        shutil.rmtree(one.directory)
        assert code == 0


# ---- what is measured ----


def test_every_call_is_a_cold_start_and_all_are_counted(control_plane):
    cp = control_plane()
    figures = cp.simulate(*SMALL)
    assert 200 <= figures["asked"] <= 420  # 300, Poisson
    assert figures["published"] == figures["scheduled"] == figures["asked"]
    assert figures["starts"] == figures["readies"] >= figures["asked"]
    assert figures["starts"] - figures["stops"] <= 300  # those of the last window
    assert figures["worker_losses"] == figures["plane_losses"] == figures["failed"] == 0
    assert figures["order_us"]["p50"] > 5
    assert figures["publish_us"]["p50"] > figures["order_us"]["p50"]
    # the start itself is not in it
    assert figures["publish_us"]["p50"] < 40000
    assert figures["control_plane"]["rss_bytes"] > 1 << 20 and figures["control_plane"]["cpu_s"] > 0
    assert figures["simulation"]["cpu_s"] > 0


def test_what_is_registered_is_what_was_asked_for(control_plane):
    cp = control_plane()
    cp.simulate(*SMALL, "--concurrency", "7", "--window", "300ms")
    functions = cp.get("/v1/functions")["items"]
    assert len(functions) == 300
    spec = cp.get("/v1/functions/sim-function-42")["spec"]
    assert spec["scaling"]["concurrency"] == 7 and spec["scaling"]["stable_window"] == "300ms"
    assert len(cp.get("/v1/workers")["items"]) == 20
    assert len(cp.get("/v1/data-planes")["items"]) == 3
    # once more: nothing is registered anew, and it works as before
    writes = cp.metric("dirigent_store_writes_total")
    figures = cp.simulate(*SMALL, "--concurrency", "7", "--window", "300ms")
    assert figures["published"] == figures["asked"]
    assert cp.metric("dirigent_store_writes_total") == writes


def test_uniform_arrivals_are_exactly_as_many_as_the_rate_says(control_plane):
    figures = control_plane().simulate(*SMALL, "--arrivals", "uniform", "--duration", "1s")
    assert figures["asked"] == 200


def test_calls_that_hold_their_sandbox_keep_it(control_plane):
    figures = control_plane().simulate(*SMALL, "--rate", "50", "--exec", "700ms", "--duration", "2s")
    assert figures["published"] == figures["asked"] > 50
    assert figures["cut"] == 0


def test_too_few_functions_are_told_and_seen_in_the_latencies(control_plane):
    cp = control_plane()
    done = run_cli(*cp.command("--workers", "5", "--data-planes", "1", "--functions", "10", "--rate", "200", "--duration", "1s",
                               "--json"))
    assert "10 functions are too few for 200 cold starts a second" in done.err
    figures = check_sums(json.loads(done.out))
    assert figures["held_up"] > 50
    assert figures["order_us"]["p99"] > 100000
    assert figures["scheduled_per_s"] < 100


def test_for_people_it_prints_the_same(control_plane):
    cp = control_plane()
    done = run_cli(*cp.command(*SMALL))
    assert done.code == 0
    for text in ("300 functions registered in", "20 workers connected", "demand to start order at the worker", "p99", "us per cold start",
                 "control plane", "simulation"):
        assert text in done.out


# ---- faults ----


def test_broken_connections_of_workers_cost_no_call(control_plane):
    figures = control_plane().simulate(*SMALL, "--lose-workers", "20", "--duration", "3s")
    assert figures["worker_losses"] >= 30
    assert figures["published"] == figures["asked"] > 300
    assert figures["cut"] == 0


def test_a_killed_control_plane_is_waited_for(control_plane):
    cp = control_plane()
    killed = threading.Thread(target=lambda: (wait_until(lambda: cp.metric("dirigent_workers_alive") == 20, 20), time.sleep(0.8),
                                              cp.kill(), cp.start()))
    killed.start()
    figures = cp.simulate(*SMALL, "--duration", "4s", "--warm-up", "0ms")
    killed.join()
    assert figures["worker_losses"] == 20 and figures["plane_losses"] == 3
    assert figures["published"] == figures["asked"] > 400


def test_calls_that_nobody_answers_time_out(control_plane):
    cp = control_plane()
    killed = threading.Thread(target=lambda: (wait_until(lambda: cp.metric("dirigent_workers_alive") == 20, 20), time.sleep(0.5),
                                              cp.kill()))
    killed.start()
    figures = cp.simulate(*SMALL, "--duration", "3s", "--warm-up", "0ms", "--call-timeout", "500ms")
    killed.join()
    assert figures["timed_out"] > 50 and figures["published"] > 20
    cp.start()


def test_it_stops_at_a_signal(control_plane):
    cp = control_plane()
    process = subprocess.Popen([BUILD / "dirigent", *cp.command(*SMALL, "--duration", "60s")], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: cp.metric("dirigent_workers_alive") == 20, 20)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 1
    assert "stopped by SIGINT" in process.stderr.read()
    wait_until(lambda: cp.metric("dirigent_workers_alive") == 0, 10)


# ---- what stored sandboxes would cost ----


def test_stored_sandboxes_are_stored_before_they_are_ordered_and_removed_at_the_next_start(control_plane):
    cp = control_plane("--persist-sandboxes")
    before = cp.metric("dirigent_store_writes_total")
    figures = cp.simulate(*SMALL)
    assert figures["published"] == figures["asked"]
    written = cp.metric("dirigent_store_writes_total") - before - 300 - 20 - 3
    assert written >= figures["starts"] + figures["stops"]
    # killed with sandboxes alive: their records stay until the next start, with the setting or without
    process = subprocess.Popen([BUILD / "dirigent", *cp.command(*SMALL, "--duration", "60s", "--exec", "5s")])
    wait_until(lambda: cp.get("/v1/status")["sandboxes"]["ready"] > 20, 20, "sandboxes")
    cp.kill()
    process.terminate()
    process.wait(10)
    assert cp.stored_sandboxes() > 20
    cp.flags = []
    cp.start()
    assert cp.stop() == 0
    assert cp.stored_sandboxes() == 0
    cp.start()


def test_without_it_nothing_is_stored_for_a_sandbox(control_plane):
    cp = control_plane()
    cp.simulate(*SMALL)
    before = cp.metric("dirigent_store_writes_total")
    assert cp.simulate(*SMALL)["starts"] > 100
    assert cp.metric("dirigent_store_writes_total") == before


# ---- bad input ----


@pytest.mark.parametrize("flags, text", [
    (["--workers", "0"], "--workers must be from 1 to 100000, and is 0"),
    (["--data-planes", "65"], "--data-planes must be from 1 to 64, and is 65"),
    (["--functions", "1000001"], "--functions must be from 1 to 1000000"),
    (["--rate", "fast"], "--rate: 'fast' is no number"),
    (["--rate", "0"], "--rate must be from 1"),
    (["--duration", "10"], "--duration: '10' is no duration"),
    (["--duration", "10ms"], "--duration must be from 100"),
    (["--start-delay", "2h"], "--start-delay must be from 0 to 60000"),
    (["--window", "50ms"], "--window must be from 100"),
    (["--arrivals", "regular"], "--arrivals must be poisson or uniform, and is 'regular'"),
    (["--cluster", "nowhere"], "--cluster: 'nowhere' is no ADDRESS:PORT"),
    (["--cluster", "127.0.0.1:9090,"], "--cluster: '127.0.0.1:9090,' is no ADDRESS:PORT"),
    (["--wrokers", "7"], "workers"),
    (["--log-level", "loud"], "--log-level must be debug, info, warn or error"),
    (["--workers"], "--workers needs a value"),
    (["--rate", "5", "50"], "'50' is not expected here"),
])
def test_wrong_flags(build, flags, text):
    done = run_cli("simulate", *flags)
    assert done.code == 2
    assert text in done.err and len(done.err.splitlines()) == 1


def test_help_explains_how_calls_are_cold(build):
    done = run_cli("simulate", "--help")
    assert done.code == 0
    assert "called again only when its last sandbox is gone" in done.out and "--persist" not in done.out


def test_no_control_plane(build):
    port, = free_ports(1)
    done = run_cli("simulate", "--api", f"127.0.0.1:{port}", "--cluster", f"127.0.0.1:{port}")
    assert done.code == 3
    assert f"the API at 127.0.0.1:{port}: it cannot be reached: Connection refused" in done.err


def test_an_api_that_is_none(build):
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve():
            peer, _ = server.accept()
            peer.recv(1000)
            peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            peer.recv(1000)
            peer.close()
        thread = threading.Thread(target=serve)
        thread.start()
        done = run_cli("simulate", "--api", f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert done.code == 1
    assert "dirigent simulate: the API at 127.0.0.1:" in done.err


def test_a_wrong_port_for_the_cluster_is_given_up_with_the_reason(control_plane):
    cp = control_plane()
    port, = free_ports(1)
    done = run_cli("simulate", "--api", f"127.0.0.1:{cp.api_port}", "--cluster", f"127.0.0.1:{port}", "--setup-timeout", "500ms")
    assert done.code == 1
    assert f"0 of 2 data planes and 0 of 50 workers were connected to 127.0.0.1:{port} within 500 ms; last: 127.0.0.1:{port}: Connection refused" in done.err


def test_another_cluster_refuses(control_plane):
    cp = control_plane("--cluster-name", "red")
    done = run_cli(*cp.command("--cluster-name", "blue"))
    assert done.code == 1
    assert "it refuses a data plane: it belongs to another cluster" in done.err


def test_more_connections_than_files_may_be_open(control_plane):
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource", "--ambient-caps=-all"]
    else:
        command = []
    cp = control_plane()
    done = subprocess.run(["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *command, str(BUILD / "dirigent"), *cp.command()],
                          stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert "50 workers and 2 data planes need 652 open files, and the limit cannot be raised" in done.stderr


def test_a_control_plane_with_real_workers_is_left_alone(control_plane):
    cp = control_plane()
    plane = subprocess.Popen([BUILD / "dirigent", "data-plane", "--listen", "127.0.0.1:0", "--name", "in-use", "--control-plane",
                              f"127.0.0.1:{cp.cluster_port}", "--data-dir", cp.directory / "dp", "--run-dir", cp.directory / "dp-run"],
                             stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: cp.get("/v1/data-planes")["items"], 20, "the data plane")
        done = run_cli(*cp.command(*SMALL))
        assert done.code == 1
        assert "the data plane 'in-use' of the control plane" in done.err and "is real" in done.err and "--force" in done.err
        assert cp.get("/v1/functions")["items"] == []
        assert cp.simulate(*SMALL, "--force")["failed"] == 0
    finally:
        plane.terminate()
        plane.wait(20)


def test_one_of_several_control_planes_may_be_away(control_plane):
    cp = control_plane()
    port, = free_ports(1)
    done = run_cli("simulate", "--api", f"127.0.0.1:{cp.api_port}", "--cluster", f"127.0.0.1:{cp.cluster_port},127.0.0.1:{port}",
                   *SMALL, "--json")
    assert done.code == 0
    figures = check_sums(json.loads(done.out))
    assert figures["published"] == figures["asked"] and figures["control_plane"]["rss_bytes"] > 1 << 20


def test_two_simulations_do_not_share_a_control_plane(control_plane):
    cp = control_plane()
    first = subprocess.Popen([BUILD / "dirigent", *cp.command(*SMALL, "--json")], stdout=subprocess.PIPE)
    wait_until(lambda: cp.metric("dirigent_workers_alive") == 20, 20)
    done = run_cli(*cp.command(*SMALL))
    assert done.code == 1
    assert "the worker 'sim-worker-" in done.err and "belongs to another simulation that runs now" in done.err
    figures = check_sums(json.loads(first.communicate(timeout=30)[0]))
    assert figures["worker_losses"] == 0 and figures["published"] == figures["asked"]


def test_the_api_may_be_named_as_for_clients(control_plane):
    cp = control_plane()
    done = run_cli("simulate", "--cluster", f"127.0.0.1:{cp.cluster_port}", *SMALL, env={"DIRIGENT_API": f"http://127.0.0.1:{cp.api_port}"})
    assert done.code == 0


def test_the_process_to_measure_can_be_named_and_must_be_there(control_plane):
    cp = control_plane()
    done = run_cli(*cp.command(*SMALL, "--pid", "4194303"))
    assert done.code == 1 and "look at process 4194303" in done.err
    figures = cp.simulate(*SMALL, "--pid", str(cp.process.pid))
    assert figures["control_plane"]["rss_bytes"] > 1 << 20

"""`dirigent up` itself: what it refuses before it starts anything, how it keeps its programs, how it stops."""
import os
import pathlib
import pty
import shutil
import signal
import socket
import sqlite3
import subprocess
import time

import pytest

from cluster import (command_line, free_ports, is_alive, leftovers, run_cli,
                     wait_until)
from test_user_path import APP

pytestmark = pytest.mark.root


def run_up(cluster, *more, timeout=60, **options):
    """Runs `up` that is expected to end by itself."""
    return subprocess.run([*cluster.command(), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=timeout, stdin=subprocess.DEVNULL, **options)


# ---- refusals ----

def test_up_needs_root(new_cluster):
    cluster = new_cluster(start=False)
    done = run_up(cluster, preexec_fn=lambda: os.setresuid(65534, 65534, 65534))
    assert done.returncode == 1 and "as root" in done.stderr and "sudo dirigent up" in done.stderr
    assert not cluster.data_dir.exists()


@pytest.mark.parametrize("flag, which", [("--listen", "invoke_port"), ("--api", "api_port"), ("--cluster", "cluster_port")])
def test_an_address_in_use_is_named_and_nothing_is_started(new_cluster, flag, which):
    cluster = new_cluster(start=False)
    port = getattr(cluster, which)
    with socket.create_server(("127.0.0.1", port)):
        done = run_up(cluster)
    assert done.returncode == 1
    assert flag in done.stderr and f"127.0.0.1:{port}" in done.stderr and "another program" in done.stderr
    assert not (cluster.data_dir / "control-plane").exists()


@pytest.mark.parametrize("arguments, says", [
    (["--listen", "nowhere"], "--listen"),
    (["--listen", "127.0.0.1:70000"], "--listen"),
    (["--listen", "example.invalid:80"], "--listen"),
    (["--listn", "127.0.0.1:1"], "did you mean --listen"),
    (["--threads", "many"], "--threads"),
    (["--apply", "/no/such.yaml"], "/no/such.yaml"),
    (["--config", "/no/such.yaml"], "/no/such.yaml"),
    (["extra"], "extra"),
])
def test_wrong_flags_are_explained(new_cluster, arguments, says):
    cluster = new_cluster(*arguments, start=False)
    done = run_up(cluster)
    assert done.returncode in (1, 2) and says in done.stderr, done.stderr
    assert "ready" not in done.stdout


def test_two_roles_cannot_share_an_address(new_cluster):
    port, = free_ports(1)
    cluster = new_cluster(start=False, ports=(port, port, free_ports(1)[0]))
    done = run_up(cluster)
    assert done.returncode != 0 and str(port) in done.stderr


def test_up_twice_on_one_directory_names_directory_and_process(new_cluster):
    """F56, on one file"""
    first = new_cluster()
    second = new_cluster("--data-dir", first.data_dir, start=False)
    done = run_up(second)
    assert done.returncode == 1
    assert str(first.data_dir) in done.stderr and str(first.process.pid) in done.stderr
    assert first.api("GET", "/readyz").status == 200


def test_addresses_and_host_ports_of_another_instance_are_refused(new_cluster):
    first, second = new_cluster(), new_cluster(start=False)
    for flags, sentence in [
            (["--address-pool", first.place.pool], "--address-pool: the addresses"),
            (["--host-port-base", str(first.place.host_port_base + 1), "--slots", "64"], "--host-port-base: the ports")]:
        second.flags = flags
        done = run_up(second)
        assert done.returncode == 1
        assert sentence in done.stderr and f"overlap those of instance '{first.instance}'" in done.stderr
        assert leftovers(second) == []
    second.flags = []
    second.start()
    assert second.stop() == 0
    assert first.api("GET", "/readyz").status == 200 and first.stop() == 0


def test_a_damaged_store_is_refused_by_file_name(new_cluster):
    cluster = new_cluster()
    assert cluster.stop() == 0
    store = next(cluster.data_dir.rglob("state.db"))
    kept = store.read_bytes()
    store.write_bytes(kept[:100] + os.urandom(max(len(kept) - 100, 4096)))
    for extra in store.parent.glob("state.db-*"):
        extra.unlink()
    done = run_up(cluster)
    assert done.returncode == 1 and "state.db" in done.stderr and "control-plane could not start" in done.stderr
    assert leftovers(cluster) == []


def test_a_store_of_a_newer_version_is_refused(new_cluster):
    cluster = new_cluster()
    assert cluster.stop() == 0
    store = next(cluster.data_dir.rglob("state.db"))
    connection = sqlite3.connect(store)
    connection.execute("PRAGMA user_version = 9999")
    connection.commit()
    connection.close()
    done = run_up(cluster)
    assert done.returncode == 1 and "state.db" in done.stderr and "newer" in done.stderr, done.stderr


def test_a_data_directory_that_cannot_be_made(new_cluster, tmp_path):
    (tmp_path / "file").write_text("x")
    cluster = new_cluster("--data-dir", tmp_path / "file" / "below", start=False)
    done = run_up(cluster)
    assert done.returncode == 1 and str(tmp_path / "file") in done.stderr


# ---- life ----

def test_the_programs_show_their_directories(new_cluster):
    cluster = new_cluster()
    for program in ("control-plane", "worker", "data-plane"):
        words = command_line(cluster.pid(program))
        assert words[:2] == ["dirigent", program]
        assert str(cluster.data_dir) in words and str(cluster.run_dir) in words


def test_only_up_and_the_launcher_are_root(new_cluster):
    cluster = new_cluster()
    for program in ("control-plane", "worker", "data-plane"):
        status = pathlib.Path(f"/proc/{cluster.pid(program)}/status").read_text()
        assert "Uid:\t0" not in status, program
        assert "CapEff:\t0000000000000000" in status, program
        assert "NoNewPrivs:\t1" in status, program


def test_the_banner_says_that_loopback_needs_no_certificates(shared):
    assert "without TLS: loopback needs no certificates" in shared.log()


def test_the_banner_is_plain_in_a_pipe_and_names_the_addresses(new_cluster):
    cluster = new_cluster()
    log = cluster.log()
    assert f"http://127.0.0.1:{cluster.invoke_port}/function/NAME/" in log and cluster.api_url in log
    assert "\x1b[" not in log


def test_settings_come_from_a_file_too(new_cluster, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("peer_dead_after: 1700ms\nlog_level: warn\n")
    cluster = new_cluster("--config", file)
    assert "1700ms" in command_line(cluster.pid("control-plane"))
    assert " info control-plane" not in cluster.log()


def test_apply_at_the_start_deploys_the_examples(new_cluster, examples):
    cluster = new_cluster("--apply", examples / "apply.yaml")
    for name in ("hello-python", "hello-node", "hello-c"):
        wait_until(lambda: f"curl {cluster.url}/function/{name}/" in cluster.log(), 60, f"the line of {name}")
        assert cluster.call(name).status == 200


@pytest.mark.parametrize("program", ["control-plane", "data-plane", "worker"])
def test_a_program_that_dies_is_started_again(new_cluster, program):
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP})
    old = cluster.kill_program(program)
    cluster.wait_restarted(program, old)
    # A data plane that is gone loses what it served; new calls must be served soon.
    def answers():
        try:
            return cluster.call("hello", timeout=30).status == 200
        except OSError:
            return False
    wait_until(answers, 30, "an answer")


def test_state_survives_a_restart_of_everything(new_cluster):
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "-e", "GREETING=again")
    assert cluster.stop() == 0
    cluster.start()
    assert cluster.call("hello").text.startswith("again ")


# ---- ends ----

def assert_nothing_left(cluster):
    assert leftovers(cluster) == []


def test_what_a_running_cluster_has_is_seen(new_cluster):
    """The tests below would be worth nothing if they looked at the wrong names."""
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "--min", "1")
    seen = {line.split()[0] for line in leftovers(cluster)}
    assert {"process", "interface", "nftables", "cgroup", "socket", "file"} <= seen, leftovers(cluster)


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_leaves_nothing(new_cluster, signo):
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "--min", "3")
    cluster.wait_sandboxes(3, "hello")
    tree = cluster.tree()
    cluster.process.send_signal(signo)
    assert cluster.process.wait(60) == 0
    assert not [pid for pid in tree if is_alive(pid)]
    assert_nothing_left(cluster)


def test_a_stop_waits_for_running_requests(new_cluster):
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP})
    call = subprocess.Popen(["curl", "-sS", "-w", "%{http_code}", f"{cluster.url}/function/hello/sleep/2"],
                            stdout=subprocess.PIPE, text=True)
    wait_until(lambda: any(s["in_flight"] for s in cluster.sandboxes("hello")), 10, "the request in flight")
    assert cluster.stop() == 0
    assert call.communicate(timeout=30)[0].endswith("200")


def test_a_second_signal_kills_and_still_leaves_nothing(new_cluster):
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "--timeout", "100s")
    call = subprocess.Popen(["curl", "-sS", f"{cluster.url}/function/hello/sleep/90"], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
    wait_until(lambda: any(s["in_flight"] for s in cluster.sandboxes("hello")), 10, "the request in flight")
    tree = cluster.tree()
    cluster.process.send_signal(signal.SIGINT)
    time.sleep(1)
    began = time.monotonic()
    cluster.process.send_signal(signal.SIGINT)
    cluster.process.wait(40)
    call.kill()
    call.wait()
    assert time.monotonic() - began < 20
    assert not [pid for pid in tree if is_alive(pid)]
    assert_nothing_left(cluster)


def test_up_that_is_killed_takes_everything_with_it(new_cluster):
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "--min", "2")
    cluster.wait_sandboxes(2, "hello")
    tree = cluster.tree()
    os.kill(cluster.process.pid, signal.SIGKILL)
    cluster.process.wait(10)
    wait_until(lambda: not [pid for pid in tree if is_alive(pid)], 60, "the end of all processes")
    # Locks and sockets are files: the next start takes them over, and its end removes them.
    cluster.start()
    assert cluster.call("hello").status == 200
    assert cluster.stop() == 0
    assert_nothing_left(cluster)


def test_up_can_be_started_again_at_once_after_a_kill(new_cluster):
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "--min", "1")
    os.kill(cluster.process.pid, signal.SIGKILL)
    cluster.process.wait(10)
    cluster.start(seconds=90)
    assert cluster.call("hello").status == 200


def test_everything_killed_at_once_leaves_nothing_after_the_next_start(new_cluster):
    """F30, but for the reboot"""
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "--min", "2")
    cluster.wait_sandboxes(2, "hello")
    for pid in cluster.tree():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    cluster.process.wait(10)
    cluster.start()
    assert cluster.call("hello").status == 200
    assert cluster.stop() == 0
    assert_nothing_left(cluster)


def test_without_a_seccomp_listener_programs_are_found_by_connecting(new_cluster):
    cluster = new_cluster("--readiness", "connect")
    cluster.deploy("hello", {"app.py": APP}, "--min", "1")
    assert cluster.call("hello").status == 200
    assert "programs are probed" in cluster.log()
    result = cluster.deploy("never", {"app.py": "import time\ntime.sleep(60)"}, "--start-deadline", "1s", check=False)
    assert result.code == 1 and "listen" in result.err, result


def test_a_stop_does_not_wait_for_sandboxes_that_only_begin(new_cluster):
    cluster = new_cluster()
    cluster.deploy("hello", {"app.py": APP}, "--min", "5")
    cluster.stop()
    cluster.start()
    begin = time.monotonic()
    assert cluster.stop() == 0
    assert time.monotonic() - begin < 6 # the grace would be 10 s

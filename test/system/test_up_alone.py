"""`up` with actors in place of its programs (src/cli/up_fake.c): what it does when they misbehave."""
import os
import pathlib
import signal
import subprocess
import time

import pytest

from cluster import BUILD, Cluster, command_line, is_alive, leftovers, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Alone(Cluster):
    def __init__(self, tmp_path, *flags, **told):
        super().__init__("alone", *flags, directory=tmp_path)
        self.told = {f"FAKE_{k.upper()}": v for k, v in told.items()}

    def command(self):
        return [str(BUILD / "src/cli/up-fake"), *super().command()[1:]]

    def launch(self):
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            env={**os.environ, **self.told})
        return self


@pytest.fixture
def alone(tmp_path):
    made = []

    def make(*flags, start=True, **told):
        made.append(Alone(tmp_path, *flags, **told))
        return made[-1].start() if start else made[-1].launch()
    yield make
    for one in made:
        one.stop()
        print(one.log())
        one.place.leave()
        assert leftovers(one) == []


def test_it_stops_in_order(alone):
    up = alone(data_plane="slow-stop", worker="slow-stop")
    tree = up.tree()
    assert len(tree) == 4
    assert up.stop() == 0
    assert not [pid for pid in tree if is_alive(pid)]
    ends = [line for line in up.log().splitlines() if "up.stopped" in line]
    assert [line.split("program=")[1].split()[0] for line in ends] == ["data-plane", "worker", "control-plane"]


@pytest.mark.parametrize("program", ["control_plane", "worker", "data_plane"])
def test_a_program_that_fails_at_the_start_ends_everything(alone, program):
    up = alone(start=False, **{program: "exit=3"})
    assert up.process.wait(20) == 1
    name = program.replace("_", "-")
    assert f"these are the last words of the {name}" in up.log()
    assert f"the {name} could not start (exit code 3" in up.log()
    assert "Dirigent is ready" not in up.log()


def test_wrong_usage_of_a_program_is_wrong_usage_of_up(alone):
    assert alone(start=False, worker="exit=2").process.wait(20) == 2


def test_what_is_not_ready_in_time_is_named(alone):
    up = alone("--start-deadline", "700ms", start=False, worker="silent")
    assert up.process.wait(20) == 1
    assert "not ready in time: waited for the worker to join" in up.log()


def test_a_program_that_dies_again_and_again_is_started_with_pauses(alone):
    up = alone()
    pauses = []
    for _ in range(4):
        old = up.kill_program("data-plane")
        began = time.monotonic()
        up.wait_restarted("data-plane", old)
        pauses.append(time.monotonic() - began)
    assert pauses[0] < 0.6 and 0.7 < pauses[3] < 3, pauses
    assert up.log().count("up.died") == 4


def test_one_that_ignores_the_signal_is_killed_at_its_deadline(alone):
    up = alone("--drain-deadline", "500ms", data_plane="ignore-term")
    began = time.monotonic()
    assert up.stop() == 0
    assert 0.4 < time.monotonic() - began < 5
    assert "up.kill program=data-plane" in up.log()


def test_a_second_signal_kills_at_once_but_a_double_one_does_not(alone):
    up = alone("--drain-deadline", "60s", data_plane="ignore-term")
    up.process.send_signal(signal.SIGINT)
    up.process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    assert up.process.poll() is None and "killing" not in up.log()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(20) == 0
    assert "killing what still runs" in up.log()


def test_orphans_end_with_it(alone):
    up = alone(worker="orphan")
    orphan, = [pid for pid in up.tree() if pid not in (up.pid("up"), up.pid("worker"), up.pid("control-plane"), up.pid("data-plane"))]
    assert up.stop() == 0
    assert not is_alive(orphan)


def test_its_death_ends_the_programs(alone):
    up = alone()
    tree = up.tree()
    os.kill(up.process.pid, signal.SIGKILL)
    up.process.wait(10)
    wait_until(lambda: not [pid for pid in tree if is_alive(pid)], 10, "the end of the programs")
    up.start()


def test_a_terminal_gets_colours_and_one_ctrl_c_is_enough(tmp_path):
    import pty
    up = Alone(tmp_path)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(up.command()[0], up.command(), {**os.environ, "TERM": "xterm", "NO_COLOR": ""})
    seen = b""
    while b"Ctrl-C; nothing" not in seen:
        seen += os.read(terminal, 4096)
    assert b"\x1b[1mDirigent is ready" in seen
    os.write(terminal, b"\x03")
    try:
        while data := os.read(terminal, 4096):
            seen += data
    except OSError: # the terminal's end
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"stopping (Ctrl-C)" in seen
    up.place.leave()
    assert leftovers(up) == []

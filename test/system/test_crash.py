"""kill -9 of each program at each step of a cold start: the program that is there stands still until another, or itself, has
been killed (src/base/crash_point.h). Only with programs that were built with -Dtest_hooks=true."""
import concurrent.futures
import http.client
import os
import pathlib
import re
import tempfile
import time

import pytest

from cluster import BUILD, wait_until
from replicated import Replicated, there_is_etcd
from test_user_path import APP

ROOT = pathlib.Path(__file__).resolve().parents[2]
# In the order in which a cold start comes by.
STEPS = ["data_plane.request_in", "data_plane.queued", "control_plane.scale_asked", "control_plane.placed",
         "control_plane.create_sent", "worker.create", "launcher.root", "launcher.slot", "launcher.executed", "launcher.cgroup",
         "launcher.network", "launcher.clone", "worker.ready", "worker.reported", "control_plane.endpoint",
         "control_plane.endpoint_sent", "data_plane.dequeued", "data_plane.first_byte", "data_plane.last_byte"]
TAKEOVER = ["control_plane.stored", "control_plane.taken"]
PROGRAMS = ["data-plane", "control-plane", "worker"]

there_are_points = (BUILD / "dirigent").exists() and b"CRASH_POINTS" in (BUILD / "dirigent").read_bytes()
pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
              pytest.mark.skipif(not there_is_etcd(), reason="needs etcd"),
              pytest.mark.skipif(not there_are_points, reason="needs a build with -Dtest_hooks=true")]


class World(Replicated):
    """Three control planes, a data plane and a worker that stand still at the point that is armed."""

    def __init__(self):
        self.points = pathlib.Path(tempfile.mkdtemp(prefix="dirigent-test-points-"))
        self.points.chmod(0o777)
        super().__init__(environment={"CRASH_POINTS": str(self.points)})
        self.extra = 0
        self.kept = self.project({"app.py": APP.replace("def do_POST(self):", "def do_POST(self):\n        print('took', self.path, flush=True)")})

    def arm(self, point):
        path = self.points / point
        path.touch()
        path.chmod(0o666)

    def wait_hit(self, point, seconds=5):
        """The pid of who stands still there."""
        found = wait_until(lambda: list(self.points.glob(f"{point}.[0-9]*")), seconds, f"somebody at {point}")
        return int(found[0].suffix[1:])

    def has_hit(self, point, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not list(self.points.glob(f"{point}.[0-9]*")):
            time.sleep(0.01)
        return bool(list(self.points.glob(f"{point}.[0-9]*")))

    def use_a_slot(self):
        """Always false."""
        self.extra += 1
        self.deploy_cold(f"extra{self.extra}")
        return self.post(f"extra{self.extra}", "more") != 200

    def release(self, point, pid):
        (self.points / f"{point}.{pid}").unlink()

    def disarm(self):
        for path in self.points.iterdir():
            path.unlink()

    def program(self, name):
        if name == "control-plane":  # by its log: it may stand still and answer nobody
            return next(p for p in self.control_planes if p.is_running() and self.leader_of_log(p))
        return {"data-plane": self.data_planes, "worker": self.workers}[name][0]

    def programs_of_sandboxes(self):
        """Pids of the functions' programs on this host, whatever anybody knows of them."""
        worker = self.workers[0].command
        mark, found = f"dirigent-{worker[worker.index('--instance') + 1]}", []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if mark in pathlib.Path(f"/proc/{pid}/cgroup").read_text() and \
                        "app.py" in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(int(pid))
            except OSError:
                pass
        return found

    def post(self, name, nonce):
        """One request that must not be repeated: its status, or 0 when its connection broke."""
        try:
            return self.call(name, f"/{nonce}", method="POST", body=b"x", timeout=60).status
        except (OSError, http.client.HTTPException):
            return 0

    def deploy_cold(self, name):
        self.ok("deploy", name, "--dir", self.kept, "--memory", "64Mi", "--max", "1", "--concurrency", "10", "--no-wait",
                at=self.wait_leader())


@pytest.fixture(scope="module")
def world():
    made = World()
    try:
        made.start()
        made.deploy("warm", {"app.py": APP}, "--min", "1")
        yield made
        for item in made.items("/v1/functions"):
            assert made.api("DELETE", f"/v1/functions/{item['name']}").status < 300
        wait_until(lambda: not made.items("/v1/sandboxes") and not made.programs_of_sandboxes(), 30, "the end of all sandboxes")
    finally:
        made.disarm()
        bad = made.end()
        made.points.rmdir()
    assert bad == []


@pytest.fixture(autouse=True)
def whole(world):
    """Afterwards all is there again; what was logged is shown when the test fails."""
    marks = {p: len(p.log()) for p in world.all()}
    yield
    for program in world.all():
        if "etcd" not in program.name:
            print(f"===== {program.name}\n{program.log()[marks[program]:][-3000:]}")
    world.disarm()
    for program in world.all():
        if not program.is_running():
            program.start()
    world.wait_leader()


def test_every_point_is_in_the_list():
    found = set()
    for path in (ROOT / "src").rglob("*.c"):
        found |= set(re.findall(r'CRASH_POINT\("([^"]+)"\)', path.read_text()))
    assert found == set(STEPS + TAKEOVER)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("step", STEPS)
def test_killed_at(world, step, program):
    """F01 (data plane), F02 (control plane), F03 (worker): who did not die serves on, and nothing is done twice."""
    name = f"{program[0]}-{step.replace('.', '-').replace('_', '-')}"
    if step == "launcher.root":  # made when it is deployed
        world.arm(step)
        world.deploy_cold(name)
    else:
        world.deploy_cold(name)
        world.arm(step)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = {f"n{i}": pool.submit(world.post, name, f"n{i}") for i in range(3)}
        if step in ("launcher.cgroup", "launcher.network"):  # slots are made when there are none in store
            wait_until(lambda: world.has_hit(step, 0.3) or world.use_a_slot(), 5, "the store of slots to be used up")
        waits = world.wait_hit(step)
        victim = world.program(program)
        victim.kill()
        world.release(step, waits)
        died = time.monotonic()
        if program != "control-plane":
            assert world.call("warm", timeout=60).status == 200 if program == "worker" else True
        victim.start()
        told = {nonce: future.result() for nonce, future in asked.items()}
    if program == "data-plane":
        assert set(told.values()) <= {0, 200}, told  # its connections broke
    else:
        assert set(told.values()) == {200}, told
    wait_until(lambda: world.post(name, "after") == 200, 20, "an answer afterwards")
    assert world.call("warm").status == 200

    def agree():  # what runs is what is known, and no more than the one that may be
        known = world.sandboxes(name, "ready")
        return len(known) == 1 and len(world.programs_of_sandboxes()) == sum(
            s["state"] == "ready" for s in world.items("/v1/sandboxes"))
    wait_until(agree, 10, "records and host to agree")
    print(f"all as it was {time.monotonic() - died:.2f} s after the kill")
    log = world.ok("logs", name, at=world.wait_leader()).out
    for nonce, status in told.items():
        times = len(re.findall(rf"took /{nonce}\b", log))
        assert times <= 1 and (status != 200 or times == 1), (nonce, status, log)
    wait_until(lambda: world.alive("/v1/workers") == 1 and world.alive("/v1/data-planes") == 1, 20, "all programs")


def test_killed_between_the_commit_and_the_answer(world):
    """F04: what is stored is true although nobody was told; to say it again changes nothing."""
    leader = world.wait_leader()
    world.arm("control_plane.stored")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        deploying = pool.submit(world.cli, "deploy", "stored", "--dir", world.kept, "--no-wait", at=leader)
        assert world.wait_hit("control_plane.stored") == world.control_planes[leader].process.pid
        world.control_planes[leader].kill()
        world.release("control_plane.stored", world.control_planes[leader].process.pid)
        first = deploying.result()
    successor = world.wait_leader(other_than=leader)
    known = world.api("GET", "/v1/functions/stored", at=successor)
    assert known.status == 200, (known, first)
    world.control_planes[leader].start()
    again = world.ok("deploy", "stored", "--dir", world.kept, "--no-wait", at=successor)
    after = world.api("GET", "/v1/functions/stored", at=successor)
    assert after.json["version"] == known.json["version"], (first, again, known, after)
    assert world.call("stored").status == 200


def test_killed_between_the_takeover_and_its_first_write(world):
    """F05: who took the epoch dies before it does anything, and so does the next; the third leads."""
    first = world.wait_leader()
    before = world.api("GET", "/v1/status", at=first).json["epoch"]
    world.arm("control_plane.taken")
    world.control_planes[first].kill()
    dead = []
    for more in (True, False):
        pid = world.wait_hit("control_plane.taken", 20)
        taker = next(i for i, p in enumerate(world.control_planes) if p.process.pid == pid)
        if more:
            world.control_planes[first].start()
            world.arm("control_plane.taken")
        world.control_planes[taker].kill()
        world.release("control_plane.taken", pid)
        dead.append(taker)
    third = world.wait_leader()
    assert third not in dead
    assert world.api("GET", "/v1/status", at=third).json["epoch"] >= before + 3
    leads = [int(e) for p in world.control_planes for e in re.findall(r"control_plane\.leads epoch=(\d+)", p.log())]
    assert len(leads) == len(set(leads)), leads
    for i in dead:
        world.control_planes[i].start()
    world.deploy_cold("third")
    assert world.call("third").status == 200

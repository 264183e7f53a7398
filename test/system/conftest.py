"""Fixtures of the system tests: the executable under test, a fake API, real clusters.

DIRIGENT_BUILD names the build directory (default: build). Clusters have free ports, directories below one temporary
directory, and address pools of their own, so that they disturb neither each other nor one that runs here already."""
import os
import pathlib
import subprocess

import pytest

from cluster import BUILD, Cluster, Result, leftovers, run_cli
from fake_api import FakeApi

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(items):
    """What has a cluster needs root."""
    needs = {"cluster", "new_cluster", "shared"}
    for item in items:
        if needs & set(getattr(item, "fixturenames", ())) and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def build():
    if not (BUILD / "dirigent").exists():
        pytest.exit(f"{BUILD / 'dirigent'} is not there: run `make build` or set DIRIGENT_BUILD", 2)
    return BUILD


@pytest.fixture
def cli(build):
    """Runs the client: cli("list", "-o", "json") -> Result."""
    def run(*arguments, api=None, **more) -> Result:
        environment = {**more.pop("env", {}), **({"DIRIGENT_API": api} if api else {})}
        return run_cli(*arguments, env=environment, **more)
    return run


@pytest.fixture
def fake():
    api = FakeApi()
    yield api
    api.close()


@pytest.fixture(scope="session")
def examples():
    """The directory of the examples, with the C one built."""
    subprocess.run(["make", "--silent", "-C", str(ROOT / "examples" / "c")], check=True)
    return ROOT / "examples"


@pytest.fixture(scope="session")
def shared(build):
    """One cluster for all tests that leave it as they found it."""
    cluster = Cluster("shared").start()
    yield cluster
    code = cluster.stop()
    assert leftovers(cluster) == []
    cluster.remove()
    assert code == 0


@pytest.fixture
def cluster(shared):
    """The shared cluster without any function; its output is shown when the test fails."""
    shared.delete_all()
    shared.mark_log()
    yield shared
    print(shared.log_since_mark())


@pytest.fixture
def new_cluster(build, request):
    """Makes clusters of a test's own: new_cluster("--peer-dead-after", "1s") -> started Cluster."""
    made = []

    def make(*flags, start=True, **more):
        one = Cluster(f"own{len(made)}", *flags, **more)
        made.append(one)
        return one.start() if start else one
    yield make
    problems = []
    for one in made:
        one.stop()
        problems += leftovers(one)
        print(one.log())
        one.remove()
    assert problems == []

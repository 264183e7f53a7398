"""Who may use the API: without keys clients on its host, with keys those that have one whose role is enough."""
import os
import socket
import subprocess

import pytest

from cluster import free_ports, http_call, wait_until
from test_user_path import APP


def own_address():
    """An address of this machine that is not the loopback's; None: it has none."""
    for word in subprocess.run(["hostname", "-I"], stdout=subprocess.PIPE, text=True).stdout.split():
        if word.count(".") == 3 and not word.startswith("10.2"):  # not one of sandboxes
            return word
    return None


def ask(cluster, key, method="GET", path="/v1/functions", body=None, host="127.0.0.1"):
    connection_headers = {"Authorization": f"Bearer {key}"} if key else {}
    if host == "127.0.0.1":
        return http_call(cluster.api_port, method, path, body, connection_headers)
    with socket.create_connection((host, cluster.api_port), 10) as s:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"{k}: {v}" for k, v in connection_headers.items()]
        s.sendall("\r\n".join([*lines, "", ""]).encode())
        data = b""
        while piece := s.recv(65536):
            data += piece
    return int(data.split(b" ", 2)[1]), data


@pytest.fixture
def keyed(new_cluster):
    """A cluster, and how to make a key as an administrator."""
    cluster = new_cluster()
    admin = cluster.ok("api-key", "create", "boss", "--role", "admin").out.strip()
    assert admin.startswith("dk_")

    def make(name, role):
        return cluster.ok("api-key", "create", name, "--role", role, env={"DIRIGENT_API_KEY": admin}).out.strip()
    return cluster, admin, make


def test_each_role_may_do_what_it_is_for(keyed):
    cluster, admin, make = keyed
    read, deploy = make("viewer", "read"), make("ci", "deploy")
    nobody = cluster.cli("list")
    assert nobody.code == 1 and "DIRIGENT_API_KEY" in nobody.err
    assert ask(cluster, None).status == 401
    assert ask(cluster, None, path="/healthz").status == 200
    assert ask(cluster, "dk_wrong").status == 401
    assert ask(cluster, read[:-1] + ("a" if read[-1] != "a" else "b")).status == 401
    project = cluster.project({"app.py": APP})
    refused = cluster.cli("deploy", "hello", "--dir", project, env={"DIRIGENT_API_KEY": read})
    assert refused.code == 1 and "read" in refused.err
    cluster.ok("deploy", "hello", "--dir", project, env={"DIRIGENT_API_KEY": deploy})
    assert "hello" in cluster.ok("list", env={"DIRIGENT_API_KEY": read}).out
    assert cluster.call("hello").status == 200, "calls need no key"
    worker = ask(cluster, admin, path="/v1/workers").json["items"][0]["name"]
    assert cluster.cli("worker", "cordon", worker, env={"DIRIGENT_API_KEY": deploy}).code == 1
    cluster.ok("worker", "cordon", worker, env={"DIRIGENT_API_KEY": admin})
    assert cluster.cli("api-key", "list", env={"DIRIGENT_API_KEY": deploy}).code == 1
    listing = cluster.ok("api-key", "list", env={"DIRIGENT_API_KEY": admin}).out
    assert all(n in listing for n in ("boss", "viewer", "ci")) and admin not in listing and read not in listing


def test_keys_outlive_the_control_plane_and_end_at_once(keyed):
    cluster, admin, make = keyed
    read = make("viewer", "read")
    cluster.wait_restarted("control-plane", cluster.kill_program("control-plane"))

    def answered():
        try:
            return ask(cluster, read).status
        except OSError:
            return None
    assert wait_until(answered, 20, "the API") == 200
    assert ask(cluster, None).status == 401
    cluster.ok("api-key", "remove", "viewer", env={"DIRIGENT_API_KEY": admin})
    assert ask(cluster, read).status == 401


def test_what_makes_no_sense_is_refused(new_cluster):
    cluster = new_cluster()
    first = cluster.cli("api-key", "create", "x", "--role", "read")
    assert first.code == 1 and "first key must be an administrator's" in first.err
    for arguments, word in [(["x"], "--role"), (["x", "--role", "king"], "role"), (["x", "--role", "admin", "--days", "0"], "--days")]:
        result = cluster.cli("api-key", "create", *arguments)
        assert result.code in (1, 2) and word in result.err, result
    admin = cluster.ok("api-key", "create", "boss", "--role", "admin").out.strip()
    env = {"DIRIGENT_API_KEY": admin}
    assert "already" in cluster.cli("api-key", "create", "boss", "--role", "admin", env=env).err
    cluster.ok("api-key", "create", "viewer", "--role", "read", env=env)
    last = cluster.cli("api-key", "remove", "boss", env=env)
    assert last.code == 1 and "last administrator's" in last.err
    assert "there is no API key" in cluster.cli("api-key", "remove", "nobody", env=env).err
    cluster.ok("api-key", "remove", "viewer", env=env)
    cluster.ok("api-key", "remove", "boss", env=env)
    assert cluster.cli("list").code == 0, "without keys as before"
    for body, word in [({"name": "a"}, "role"), ({"name": "a", "role": "read", "x": 1}, "x"), ([], "object"), ("{", "JSON")]:
        answer = cluster.api("POST", "/v1/keys", body)
        assert answer.status == 400 and word in answer.text, answer


def test_without_keys_other_hosts_are_not_served(new_cluster):
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but the loopback's")
    ports = free_ports(3)
    cluster = new_cluster("--api", f"0.0.0.0:{ports[1]}", ports=ports)
    status, data = ask(cluster, None, host=address)
    assert status == 403 and b"only clients on its own host" in data
    assert ask(cluster, None).status == 200
    admin = cluster.ok("api-key", "create", "boss", "--role", "admin").out.strip()
    assert ask(cluster, admin, host=address)[0] == 200
    assert ask(cluster, None, host=address)[0] == 401

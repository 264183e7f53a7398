"""Backup, restore and migration: what was registered comes back with its code, in the other kind of store too, and nothing that
is damaged, foreign or in the way is taken for a backup or an empty store."""
import os
import shutil

import pytest

from cluster import Cluster, http_call, leftovers, wait_until
from replicated import Replicated, there_is_etcd
from test_user_path import APP

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_etcd = pytest.mark.skipif(not there_is_etcd(), reason="needs etcd")
pytestmark = [needs_root]


def listing(api):
    """All that is registered of functions, without what only runs now."""
    names = [f["name"] for f in api("GET", "/v1/functions").json["items"]]
    found = []
    for name in sorted(names):
        one = api("GET", f"/v1/functions/{name}").json
        found.append({k: one[k] for k in ("name", "version", "created_at", "updated_at", "spec") if k in one})
        assert {"name", "version", "spec"} <= set(found[-1]), one
    return found


def epoch(api):
    return api("GET", "/v1/status").json["epoch"]


def fill(cluster):
    """Functions with code, one of them changed after it was deployed."""
    cluster.deploy("hello", {"app.py": APP}, "--command", "python3 app.py", "-e", "GREETING=first")
    cluster.deploy("hello", {"app.py": APP + "# changed\n"}, "--command", "python3 app.py", "-e", "GREETING=saved")
    cluster.deploy("other", {"app.py": APP + "# other\n"}, "--command", "python3 app.py", "--max", "3")


def test_a_live_backup_brings_back_what_was_lost(new_cluster):
    """F55"""
    cluster = new_cluster()
    fill(cluster)
    before, epoch_before, calls = listing(cluster.api), epoch(cluster.api), cluster.call("hello")
    assert calls.text.startswith("saved")
    file = cluster.directory / "cluster.backup"
    said = cluster.ok("store", "backup", file)
    assert "2 functions" in said.out and "code of 2 archives" in said.out, said
    assert file.stat().st_mode & 0o777 == 0o600
    again = cluster.cli("store", "backup", file)
    assert again.code == 1 and "--force" in again.err
    cluster.ok("store", "backup", file, "--force")
    assert not list(cluster.directory.glob("*.partial"))
    cluster.kill()
    shutil.rmtree(cluster.data_dir)
    restored = cluster.ok("store", "restore", file, "--data-dir", cluster.data_dir)
    assert "2 functions" in restored.out, restored
    cluster.start()
    assert listing(cluster.api) == before
    assert epoch(cluster.api) > epoch_before
    assert cluster.call("hello").text.startswith("saved")
    assert cluster.call("other").status == 200
    cluster.deploy("new", {"app.py": APP}, "--command", "python3 app.py")
    assert cluster.call("new").status == 200
    # Numbers of versions that may have come after the backup are not used again; what served serves on beside a bad one.
    broken = cluster.deploy("hello", {"app.py": "raise SystemExit(3)"}, "--command", "python3 app.py", check=False)
    assert broken.code == 1, broken
    assert cluster.function("hello")["version"] > 1000
    assert cluster.call("hello").text.startswith("saved")
    cluster.deploy("hello", {"app.py": APP}, "--command", "python3 app.py", "-e", "GREETING=newer")
    assert cluster.call("hello").text.startswith("newer")


def test_a_backup_without_a_control_plane_is_that_of_its_api(new_cluster):
    cluster = new_cluster()
    fill(cluster)
    before = listing(cluster.api)
    live, offline = cluster.directory / "live", cluster.directory / "offline"
    cluster.ok("store", "backup", live)
    refused = cluster.cli("store", "backup", offline, "--data-dir", cluster.data_dir)
    assert refused.code == 1 and "in use" in refused.err and "API" in refused.err, refused
    refused = cluster.cli("store", "restore", live, "--data-dir", cluster.data_dir, "--force")
    assert refused.code == 1 and "stop it first" in refused.err, refused
    assert listing(cluster.api) == before
    assert cluster.stop() == 0
    cluster.ok("store", "backup", offline, "--data-dir", cluster.data_dir)

    def records(path):  # all but when, and digests over when
        data = path.read_bytes()
        return data[data.index(b"\nfunction "):data.rindex(b"\nend ")]
    assert records(live) == records(offline)
    into_full = cluster.cli("store", "restore", live, "--data-dir", cluster.data_dir)
    assert into_full.code == 1 and "not empty (2 functions" in into_full.err and "--force" in into_full.err, into_full
    cluster.ok("store", "restore", live, "--data-dir", cluster.data_dir, "--force")
    cluster.start()
    assert listing(cluster.api) == before
    assert cluster.call("hello").text.startswith("saved")


def test_damaged_cut_and_foreign_files_change_nothing(new_cluster, tmp_path):
    cluster = new_cluster()
    fill(cluster)
    good, bad, data_dir = tmp_path / "good", tmp_path / "bad", tmp_path / "data"
    cluster.ok("store", "backup", good)
    data = good.read_bytes()

    def refused(content, *words):
        bad.write_bytes(content)
        result = cluster.cli("store", "restore", bad, "--data-dir", data_dir)
        assert result.code == 1 and all(w in result.err for w in (str(bad), *words)), (result, words)
        assert not data_dir.exists()
    at = data.index(b"GREETING")
    refused(data[:at] + b"X" + data[at + 1:], "record", "(function ", "at byte")
    at = data.index(b"\ncode ") + 200
    refused(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:], "(code ")
    refused(data[:-1], "ends too soon")
    refused(data[:len(data) // 2], "ends too soon")
    refused(b"", "empty")
    refused(b"PK\x03\x04 a zip", "no backup")
    refused(data.replace(b"dirigent backup 1", b"dirigent backup 2", 1), "newer")
    missing = cluster.cli("store", "restore", tmp_path / "nothing", "--data-dir", data_dir)
    assert missing.code == 1 and "nothing" in missing.err
    nowhere = cluster.cli("store", "backup", tmp_path / "no" / "file")
    assert nowhere.code == 1 and "no/file" in nowhere.err
    nothing = cluster.cli("store", "backup", tmp_path / "x", "--data-dir", data_dir)
    assert nothing.code == 1 and "state.db" in nothing.err
    unreachable = cluster.cli("store", "backup", tmp_path / "x", "--api", "http://127.0.0.1:1")
    assert unreachable.code == 3 and not list(tmp_path.glob("x*"))


def test_only_an_admin_gets_a_backup_and_a_page_elsewhere_does_not(new_cluster, tmp_path):
    cluster = new_cluster()
    foreign = cluster.api("POST", "/v1/backup", headers={"Origin": "http://evil.example"})
    assert foreign.status == 403, foreign
    assert cluster.api("GET", "/v1/backup").status == 405
    admin = cluster.ok("api-key", "create", "boss", "--role", "admin").out.strip()
    with_key = {"DIRIGENT_API_KEY": admin}
    deploy = cluster.ok("api-key", "create", "ci", "--role", "deploy", env=with_key).out.strip()
    for env in ({}, {"DIRIGENT_API_KEY": deploy}):
        result = cluster.cli("store", "backup", tmp_path / "x", env=env)
        assert result.code == 1 and "admin" in result.err or "DIRIGENT_API_KEY" in result.err, result
        assert not list(tmp_path.glob("x*"))
    said = cluster.ok("store", "backup", tmp_path / "x", env=with_key)
    assert "2 API keys" in said.out
    assert admin.encode() not in (tmp_path / "x").read_bytes(), "only their digests are kept"


@needs_etcd
def test_from_sqlite_to_etcd_and_back(tmp_path):
    first, many, last = Cluster("first"), Replicated(control_planes=3), Cluster("last")
    try:
        first.start()
        fill(first)
        before, epochs = listing(first.api), [epoch(first.api)]
        assert first.stop() == 0
        # to etcd
        for program in many.etcds:
            program.start()
        etcd = ["--etcd", ",".join(many.etcd_urls)]
        home = many.directory / "control-plane-0" / "data"
        moved = wait_until(lambda: (r := first.cli("store", "migrate", "--from", f"sqlite:{first.data_dir}", "--to", f"etcd:{home}",
                                                   *etcd)).code == 0 and r, 30, "a migration")
        assert "2 functions" in moved.out
        again = first.cli("store", "migrate", "--from", f"sqlite:{first.data_dir}", "--to", f"etcd:{home}", *etcd)
        assert again.code == 1 and "not empty" in again.err
        for program in many.control_planes:
            program.start()
        many.wait_leader()
        for program in [*many.data_planes, *many.workers]:
            program.start()
        wait_until(lambda: many.alive("/v1/workers") == 1 and many.alive("/v1/data-planes") == 1, 60, "worker and data plane")
        assert listing(many.api) == before
        epochs.append(epoch(many.api))
        wait_until(lambda: many.call("hello").text.startswith("saved"), 30, "an answer")
        # while it runs: a backup of the live cluster at any control plane; etcd is not restored over
        live = tmp_path / "live"
        for at in range(3):
            wait_until(lambda: many.cli("store", "backup", live, "--force", at=at).code == 0, 20, "a backup")
        busy = many.cli("store", "restore", live, "--store", "etcd", *etcd, "--data-dir", many.directory / "spare", "--force")
        assert busy.code == 1 and "leads" in busy.err and "stop all control planes" in busy.err, busy
        assert listing(many.api) == before
        # what comes after the backup is lost; worker and data plane live on and know it
        many.deploy("later", {"app.py": APP}, "--command", "python3 app.py")
        many.deploy("hello", {"app.py": APP + "# lost\n"}, "--command", "python3 app.py", "-e", "GREETING=lost")
        assert many.call("hello").text.startswith("lost")
        lost_version = many.api("GET", "/v1/functions/hello").json["version"]
        for program in many.control_planes:
            assert program.stop() == 0
        many.ok("store", "restore", live, "--store", "etcd", *etcd, "--data-dir", home, "--force")
        for program in many.control_planes:
            program.start()
        many.wait_leader()
        assert many.call("hello").status == 200
        assert listing(many.api) == before
        epochs.append(epoch(many.api))
        wait_until(lambda: many.call("hello").text.startswith("saved"), 30, "the version of the backup")
        many.deploy("hello", {"app.py": APP + "# newer\n"}, "--command", "python3 app.py", "-e", "GREETING=newer")
        assert many.api("GET", "/v1/functions/hello").json["version"] > lost_version
        wait_until(lambda: many.call("hello").text.startswith("newer"), 30, "the newest version")
        before = listing(many.api)
        for program in [*many.data_planes, *many.workers, *many.control_planes]:
            assert program.stop() == 0
        back = many.ok("store", "migrate", "--from", f"etcd:{home}", "--to", "sqlite", "--data-dir", last.data_dir, *etcd)
        assert "2 functions" in back.out
        last.start()
        assert listing(last.api) == before
        epochs.append(epoch(last.api))
        assert epochs == sorted(set(epochs)), epochs
        assert last.call("hello").text.startswith("newer")
    finally:
        for program in many.all():
            print(f"===== {program.name}\n{program.log()[-3000:] if 'etcd' not in program.name else ''}")
        bad = many.end()
        for cluster in (first, last):
            print(cluster.log()[-4000:])
            cluster.stop()
            bad += leftovers(cluster)
            cluster.remove()
    assert bad == []

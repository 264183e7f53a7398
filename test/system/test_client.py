"""The client commands against an API that says what the test wants: what they send, print and return."""
import gzip
import io
import json
import os
import subprocess
import tarfile

import pytest
import yaml

FUNCTION = {
    "name": "hello", "id": 1, "version": 1, "active_version": 1, "state": "ready", "failure": "", "wanted": 1,
    "starting": 0, "ready": 1, "draining": 0, "in_flight": 0, "waiting": 0, "min": 0, "max": 100, "concurrency": 1,
    "urls": ["http://127.0.0.1:8080/function/hello/"], "created_at": "2026-01-02T03:04:05.000Z",
    "updated_at": "2026-01-02T03:04:05.000Z",
    "spec": {"name": "hello", "command": ["python3", "app.py"], "port": 8080, "memory": "256Mi", "env": {"A": "1"},
             "scaling": {"min": 0, "max": 100}},
}
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def project(tmp_path):
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "app.py").write_text("print('hello')\n")
    return directory


def wait_path(name, seconds=90):
    return f"/v1/functions/{name}?wait={seconds * 1000}ms"


def accept(fake, name="hello", change="created", status=201, seconds=90, method="PUT", **more):
    fake.on("PUT", f"/v1/functions/{name}/code?stage=1", 200, {"digest": DIGEST, "bytes": 1})
    fake.on(method, wait_path(name, seconds), status, {**FUNCTION, "name": name, "change": change, **more})


# ---- reaching the API ----

def test_an_api_that_is_down_is_said_with_exit_code_3(cli):
    result = cli("list", api="http://127.0.0.1:1")
    assert result.code == 3
    assert "cannot reach the API at http://127.0.0.1:1" in result.err
    assert "is `dirigent up` running?" in result.err
    assert result.out == ""


def test_an_api_that_never_answers_ends_at_the_deadline(cli):
    import socket
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = cli("invoke", "x", "--timeout", "300ms", "--data-plane", f"127.0.0.1:{silent.getsockname()[1]}", timeout=20)
    assert result.code == 1 and "no complete answer" in result.err


@pytest.mark.parametrize("form", ["{}", "http://{}", "http://{}/"])
def test_the_address_may_be_written_with_or_without_scheme(cli, fake, form):
    fake.on("GET", "/v1/functions", 200, {"items": []})
    assert cli("list", "--api", form.format(fake.url.removeprefix("http://"))).code == 0
    assert cli("list", api=form.format(fake.url.removeprefix("http://"))).code == 0


def test_a_wrong_address_is_wrong_usage(cli):
    result = cli("list", "--api", "http://")
    assert result.code == 2 and "--api" in result.err


def test_another_program_behind_the_address_is_recognised(cli, fake):
    fake.on("GET", "/v1/functions", 200, b"<html>welcome</html>")
    result = cli("list", api=fake.url)
    assert result.code == 1 and "not that of a Dirigent API" in result.err
    fake.on("GET", "/v1/functions", 500, b"<html>oops</html>")
    result = cli("list", api=fake.url)
    assert result.code == 1 and "500" in result.err


def test_an_error_of_the_api_is_printed_with_its_field(cli, fake):
    fake.on("PATCH", "/v1/functions/hello", 400,
            {"error": {"code": "invalid", "message": "min is above max", "field": "scaling.min"}})
    result = cli("scale", "hello", "--min", "5", api=fake.url)
    assert result.code == 1
    assert result.err.strip() == "error: min is above max (scaling.min)"


# ---- usage ----

@pytest.mark.parametrize("arguments, says", [
    (["lisst"], "did you mean 'list'?"),
    (["--api", "http://127.0.0.1:1", "list"], "the command comes first"),
    (["list", "--outpt", "json"], "did you mean --output?"),
    (["list", "-o", "xml"], "table, json or yaml"),
    (["deploy"], "dirigent deploy NAME"),
    (["deploy", "Hello", "--dir", "."], "'Hello'"),
    (["deploy", "a.b", "--dir", "."], "'a.b'"),
    (["deploy", "-x", "hello"], "-x"),
    (["deploy", "hello", "--dir", "/no/such"], "/no/such"),
    (["deploy", "hello", "--zip", "/no/such.zip"], "/no/such.zip"),
    (["deploy", "hello", "--image", "nginx"], "images cannot be run yet"),
    (["deploy", "hello", "--contract", "lambda", "--command", "x"], "lambda"),
    (["deploy", "hello", "--port", "0", "--command", "x"], "--port"),
    (["deploy", "hello", "-p", "65536", "--command", "x"], "--port"),
    (["deploy", "hello", "--memory", "-1", "--command", "x"], "--memory"),
    (["deploy", "hello", "--env-file", "/no/such.env", "--command", "x"], "/no/such.env"),
    (["deploy", "hello", "--wait", "1s", "--no-wait", "--command", "x"], "contradict"),
    (["scale", "hello"], "--min"),
    (["scale", "hello", "--min", "many"], "--min"),
    (["apply"], "-f"),
    (["apply", "-f", "/no/such.yaml"], "/no/such.yaml"),
    (["logs", "hello", "--since", "yesterday"], "--since"),
    (["invoke", "hello", "--path", "p"], "--path"),
    (["invoke", "hello", "-H", "nonsense"], "-H"),
    (["invoke", "hello", "-d", "@/no/such"], "/no/such"),
    (["delete", "../status"], "../status"),
    (["completion", "fish"], "bash or zsh"),
])
def test_wrong_usage_is_explained_with_exit_code_2(cli, arguments, says):
    result = cli(*arguments, api="http://127.0.0.1:1")
    assert result.code == 2, result.err
    assert says in result.err
    assert result.out == ""


def test_each_command_has_help(cli):
    overview = cli("help")
    assert overview.code == 0
    for name in ["deploy", "apply", "scale", "delete", "invoke", "list", "describe", "logs", "sandboxes", "workers",
                 "data-planes", "status", "completion", "version", "up", "control-plane"]:
        assert name in overview.out
        for form in (["help", name], [name, "--help"]):
            result = cli(*form)
            assert result.code == 0 and f"usage: dirigent {name}" in result.out, form


def test_without_arguments_it_says_what_there_is(cli):
    result = cli()
    assert result.code == 2 and "usage: dirigent COMMAND" in result.out


def test_version(cli):
    assert cli("version").out.startswith("dirigent 0.")
    assert cli("--version").code == 0


def test_completion_is_a_script_that_bash_takes(cli):
    script = cli("completion", "bash").out
    done = subprocess.run(["bash", "-c", script + "\ncomplete -p dirigent"], capture_output=True, text=True)
    assert done.returncode == 0 and "_dirigent" in done.stdout
    words = subprocess.run(
        ["bash", "-c", script + '\nCOMP_WORDS=(dirigent dep); COMP_CWORD=1; _dirigent; echo "${COMPREPLY[@]}"\n'
         'COMP_WORDS=(dirigent deploy --mem); COMP_CWORD=2; _dirigent; echo "${COMPREPLY[@]}"'],
        capture_output=True, text=True)
    assert words.stdout.split() == ["deploy", "--memory"]


# ---- deploy ----

def test_deploy_uploads_the_directory_then_names_its_digest(cli, fake, project):
    accept(fake)
    (project / "lib").mkdir()
    (project / "lib" / "x.txt").write_text("data")
    (project / ".git").mkdir()
    (project / ".git" / "config").write_text("secret")
    result = cli("deploy", "hello", "--dir", str(project), "-e", "A=1", "--memory", "64Mi", "--max", "7",
                 "--concurrency", "3", "-p", "9000", "--timeout", "5s", "--network", "none", "--cpu", "0.25", api=fake.url)
    assert result.code == 0, result.err
    upload, = fake.of("PUT", "/v1/functions/hello/code")
    names = tarfile.open(fileobj=io.BytesIO(upload.body)).getnames()
    assert sorted(names) == ["app.py", "lib", "lib/x.txt"]
    change, = [r for r in fake.of("PUT") if r is not upload]
    assert change.json == {"code": DIGEST, "command": "python3 app.py", "env": {"A": "1"}, "memory": "64Mi", "port": 9000,
                           "timeout": "5s", "network": "none", "cpu": "0.25", "scaling": {"max": 7, "concurrency": 3}}
    assert "guessed from app.py" in result.err
    assert "hello created: version 1, ready" in result.out
    assert "curl http://127.0.0.1:8080/function/hello/" in result.out


def test_deploy_of_the_same_files_uploads_the_same_bytes(cli, fake, project):
    accept(fake)
    assert cli("deploy", "hello", "--dir", str(project), api=fake.url).code == 0
    os.utime(project / "app.py", (1, 1))
    assert cli("deploy", "hello", "--dir", str(project), api=fake.url).code == 0
    first, second = fake.of("PUT", "/v1/functions/hello/code")
    assert first.body == second.body
    assert gzip.decompress(first.body)


def test_deploy_of_an_existing_function_changes_only_what_is_said(cli, fake, project):
    fake.on("GET", "/v1/functions/hello", 200, FUNCTION)
    accept(fake, change="updated", status=200, method="PATCH", version=2, active_version=2)
    result = cli("deploy", "hello", "-e", "B=2", "-e", "A-", api=fake.url)
    assert result.code == 0, result.err
    assert fake.of("PATCH")[0].json == {"env": {"B": "2", "A": None}}
    assert not fake.of("PUT")
    result = cli("deploy", "hello", "--dir", str(project), api=fake.url)
    assert fake.of("PATCH")[1].json == {"code": DIGEST}
    assert "hello updated: version 2, ready" in result.out


def test_deploy_takes_a_zip_as_it_is(cli, fake, tmp_path):
    accept(fake)
    archive = tmp_path / "code.zip"
    archive.write_bytes(b"PK\3\4 not looked at here")
    result = cli("deploy", "hello", "--zip", str(archive), "--command", "./run 'a b'", api=fake.url)
    assert result.code == 0, result.err
    assert fake.of("PUT", "/v1/functions/hello/code")[0].body == archive.read_bytes()
    archive.write_bytes(b"")
    result = cli("deploy", "hello", "--zip", str(archive), "--command", "x", api=fake.url)
    assert result.code == 2 and "is empty" in result.err


def test_deploy_without_wait_does_not_wait(cli, fake, project):
    fake.on("PUT", "/v1/functions/hello/code?stage=1", 200, {"digest": DIGEST, "bytes": 1})
    fake.on("PUT", "/v1/functions/hello", 201, {**FUNCTION, "active_version": 0, "change": "created"})
    result = cli("deploy", "hello", "--dir", str(project), "--no-wait", api=fake.url)
    assert result.code == 0 and "ready" not in result.out


def test_deploy_waits_as_long_as_a_start_may_take(cli, fake, project):
    accept(fake, seconds=330)
    assert cli("deploy", "hello", "--dir", str(project), "--start-deadline", "5m", api=fake.url).code == 0
    accept(fake, seconds=7)
    assert cli("deploy", "hello", "--dir", str(project), "--wait", "7s", api=fake.url).code == 0


def test_a_start_that_failed_shows_exit_code_and_last_output(cli, fake, project):
    fake.on("PUT", "/v1/functions/hello/code?stage=1", 200, {"digest": DIGEST, "bytes": 1})
    fake.on("PUT", wait_path("hello"), 422, {"error": {
        "code": "sandbox_exited", "message": "the program ended with exit code 3 before it listened", "version": 1,
        "exit_code": 3, "last_output": "Traceback\nNameError: x\n"}})
    result = cli("deploy", "hello", "--dir", str(project), api=fake.url)
    assert result.code == 1
    assert "version 1 of 'hello' did not start: the program ended with exit code 3" in result.err
    assert "| NameError: x" in result.err
    assert result.out == ""


def test_a_failed_update_says_that_the_old_version_serves(cli, fake):
    fake.on("GET", "/v1/functions/hello", 200, {**FUNCTION, "version": 4, "active_version": 4})
    fake.on("PATCH", wait_path("hello"), 422, {"error": {"code": "start_timeout", "message": "it did not listen within 60 s",
                                                         "version": 5, "last_output": ""}})
    result = cli("deploy", "hello", "-e", "A=2", api=fake.url)
    assert result.code == 1 and "version 4 serves on" in result.err


def test_deploy_that_cannot_guess_asks_for_the_command(cli, fake, tmp_path):
    (tmp_path / "README").write_text("x")
    result = cli("deploy", "hello", "--dir", str(tmp_path), api=fake.url)
    assert result.code == 2 and "--command is missing" in result.err
    assert not fake.of("PUT")


def test_deploy_of_an_empty_directory_is_refused(cli, fake, tmp_path):
    result = cli("deploy", "hello", "--dir", str(tmp_path), api=fake.url)
    assert result.code == 2 and "has no files" in result.err


def test_deploy_checks_the_whole_before_it_uploads(cli, fake, project):
    result = cli("deploy", "hello", "--dir", str(project), "--min", "5", "--max", "2", api=fake.url)
    assert result.code == 2 and "min" in result.err and "max" in result.err
    assert not fake.of("PUT")


def test_a_refused_upload_is_told(cli, fake, project):
    fake.on("PUT", "/v1/functions/hello/code?stage=1", 400,
            {"error": {"code": "invalid", "message": "the archive has an entry with '..'", "field": "code"}})
    result = cli("deploy", "hello", "--dir", str(project), api=fake.url)
    assert result.code == 1 and "an entry with '..'" in result.err
    assert len(fake.of("PUT")) == 1


def test_deploy_prints_json_for_programs(cli, fake, project):
    accept(fake)
    result = cli("deploy", "hello", "--dir", str(project), "-o", "json", api=fake.url)
    assert json.loads(result.out)["name"] == "hello"


# ---- apply ----

APPLY = """\
name: one
dir: project
min: 0
---
name: two
command: [./server, --fast]
code: %s
scaling:
  max: 5
""" % DIGEST


def test_apply_sends_each_function_whole(cli, fake, project):
    accept(fake, "one")
    accept(fake, "two", change="unchanged", status=200)
    file = project.parent / "functions.yaml"
    file.write_text(APPLY)
    result = cli("apply", "-f", str(file), api=fake.url)
    assert result.code == 0, result.err
    assert "one created" in result.out and "two unchanged" in result.out
    one, two = [r for r in fake.of("PUT") if "wait" in r.path]
    assert one.json == {"name": "one", "code": DIGEST, "command": "python3 app.py", "min": 0}
    assert two.json == {"name": "two", "code": DIGEST, "command": ["./server", "--fast"], "scaling": {"max": 5}}


def test_apply_reads_stdin(cli, fake):
    accept(fake, "one")
    result = cli("apply", "-f", "-", input=f"name: one\ncommand: x\ncode: {DIGEST}\n", api=fake.url)
    assert result.code == 0, result.err


@pytest.mark.parametrize("text, line, says", [
    ("name: one\ncommand: x\nmemroy: 1Mi\n", 3, "memroy"),
    ("name: one\ncommand: x\nscaling:\n  min: 5\n  max: 2\n", 4, "min"),
    ("name: one\ncommand: x\n---\nname: Two\ncommand: x\n", 4, "Two"),
    ("name: one\ncommand: x\n---\nname: one\ncommand: y\n", 4, "twice"),
    ("name: one\ndir: nowhere\n", 2, "nowhere"),
    ("name: one\ncommand: x\nport: 70000\n", 3, "port"),
    ("name: [one\n", None, "line"),
    ("command: x\n", 1, "name"),
    ("name: one\ncommand: x\ndir: project\nzip: x.zip\n", 1, "only one of"),
])
def test_apply_refuses_a_wrong_file_by_line_before_anything_is_sent(cli, fake, project, text, line, says):
    file = project.parent / "functions.yaml"
    file.write_text("name: good\ncommand: x\n---\n" + text if line != 1 and line is not None else text)
    if line is not None and line != 1:
        line += 3
    result = cli("apply", "-f", str(file), api=fake.url)
    assert result.code == 2, result.err
    assert says in result.err and str(file) in result.err
    if line is not None:
        assert f"{file}:{line}:" in result.err
    assert not fake.requests


def test_apply_goes_on_after_a_failure_and_returns_it(cli, fake):
    accept(fake, "two")
    fake.on("PUT", wait_path("one"), 400, {"error": {"code": "invalid", "message": "no", "field": "code"}})
    result = cli("apply", "-f", "-", input="name: one\ncommand: x\n---\nname: two\ncommand: x\n", api=fake.url)
    assert result.code == 1
    assert "function 'one': no" in result.err and "two created" in result.out


# ---- looking ----

def test_list_is_a_table_json_or_yaml(cli, fake):
    items = {"items": [FUNCTION, {**FUNCTION, "name": "a-much-longer-name", "state": "failed", "urls": []}]}
    fake.on("GET", "/v1/functions", 200, items)
    table = cli("list", api=fake.url).out.splitlines()
    assert table[0].split()[:3] == ["NAME", "STATE", "READY"] and len(table) == 3
    assert table[0].index("STATE") == table[1].index("ready") == table[2].index("failed")
    assert "\x1b" not in "".join(table)
    assert json.loads(cli("ls", "-o", "json", api=fake.url).out) == items
    assert yaml.safe_load(cli("list", "-o", "yaml", api=fake.url).out) == items
    fake.on("GET", "/v1/functions", 200, {"items": []})
    empty = cli("list", api=fake.url)
    assert empty.code == 0 and empty.out == "" and "no functions" in empty.err


def test_the_other_listings(cli, fake):
    fake.on("GET", "/v1/workers", 200, {"items": [{
        "id": 1, "name": "w1", "state": "alive", "address": "127.0.0.1", "cpu_milli": 2000, "cpu_reserved_milli": 500,
        "memory_bytes": 2 << 30, "memory_reserved_bytes": 256 << 20, "slots": 100, "sandboxes": 3, "blanks_ready": 16,
        "disk_free_bytes": 1 << 30, "heard_ms": 12}]})
    fake.on("GET", "/v1/data-planes", 200, {"items": [{"id": 2, "name": "d1", "state": "dead", "url": "http://x/",
                                                      "software": "0.1", "heard_ms": None}]})
    sandboxes = {"items": [{"id": "00000001000000ff", "function": "hello", "version": 2, "worker": "w1", "state": "ready",
                            "address": "10.0.0.4:8080", "in_flight": 1, "cold_start_us": 1500,
                            "started_at": "2026-01-02T03:04:05.000Z"}]}
    fake.on("GET", "/v1/sandboxes", 200, sandboxes)
    fake.on("GET", "/v1/sandboxes?function=hello", 200, sandboxes)
    workers = cli("workers", api=fake.url).out
    assert "0.5 of 2" in workers and "256 MiB of 2.0 GiB" in workers and "12 ms ago" in workers
    assert "never" in cli("data-planes", api=fake.url).out
    assert "1.5 ms" in cli("sandboxes", api=fake.url).out
    assert "00000001000000ff" in cli("ps", "hello", api=fake.url).out


def test_describe_and_status(cli, fake):
    fake.on("GET", "/v1/functions/hello", 200, {**FUNCTION, "failure": "it crashed", "state": "degraded"})
    fake.on("GET", "/v1/sandboxes?function=hello", 200, {"items": []})
    text = cli("describe", "hello", api=fake.url).out
    assert "degraded" in text and "it crashed" in text and "python3 app.py" in text and "A=1" in text
    assert yaml.safe_load(cli("inspect", "hello", "-o", "yaml", api=fake.url).out)["spec"]["memory"] == "256Mi"
    fake.on("GET", "/v1/status", 200, {
        "version": "0.1.0", "epoch": 3, "uptime_s": 61, "ready": True, "reason": "", "functions": 4,
        "sandboxes": {"ready": 2}, "workers": {"alive": 1, "total": 1}, "data_planes": {"alive": 0, "total": 1},
        "requests": {"in_flight": 1, "waiting": 0}, "code": {"archives": 1, "bytes": 2048}, "cluster": "127.0.0.1:9090"})
    text = cli("status", api=fake.url).out
    assert "epoch 3" in text and "0 of 1 alive" in text and "2.0 KiB" in text


def test_delete_tells_each_and_fails_when_one_fails(cli, fake):
    fake.on("DELETE", "/v1/functions/a", 200, {"name": "a", "deleted": True})
    fake.on("DELETE", "/v1/functions/c", 200, {"name": "c", "deleted": True})
    result = cli("delete", "a", "b", "c", api=fake.url)
    assert result.code == 1
    assert result.out == "a deleted\nc deleted\n" and "there is nothing" in result.err
    assert cli("rm", "a", api=fake.url).code == 0


def test_logs_show_texts_and_join_parts(cli, fake):
    lines = (b"2026-01-02T03:04:05.1Z stdout F one\n2026-01-02T03:04:05.2Z stdout P two-\n"
             b"2026-01-02T03:04:05.3Z stdout F half\nno such line\n")
    fake.on("GET", "/v1/functions/hello/logs?follow=0", 200, lines)
    assert cli("logs", "hello", api=fake.url).out == "one\ntwo-half\nno such line\n"
    assert "2026-01-02T03:04:05.1Z one\n" in cli("logs", "-t", "hello", api=fake.url).out
    assert cli("logs", "--raw", "hello", api=fake.url).out == lines.decode()
    fake.on("GET", "/v1/functions/hello/logs?follow=1&since=600000ms&lines=5", 200,
            b"00000001000000ff 2026-01-02T03:04:05.1Z stderr F err\n")
    result = cli("logs", "hello", "-f", "--since", "10m", "--lines", "5", api=fake.url)
    assert result.out == "00000001000000ff err\n"
    plain = cli("logs", "hello", "-f", "--since", "10m", "--lines", "5", "--plain", api=fake.url)
    assert plain.out == "err\n"
    assert cli("logs", "nobody", api=fake.url).code == 1


# ---- invoke: the fake is API and data plane at once ----

@pytest.fixture
def callable_fake(fake):
    fake.on("GET", "/v1/data-planes", 200, {"items": [
        {"name": "gone", "state": "dead", "url": "http://127.0.0.1:1/"},
        {"name": "here", "state": "alive", "url": fake.url + "/"}]})
    return fake


def test_invoke_prints_the_body_and_only_the_body(cli, callable_fake):
    callable_fake.on("GET", "/", 200, b"hi\n")
    result = cli("invoke", "hello", api=callable_fake.url)
    assert result.code == 0 and result.out == "hi\n"
    assert "200 OK" in result.err
    assert callable_fake.of("GET", "/")[-1].headers["Host"] == "hello"
    assert cli("invoke", "hello", "-q", api=callable_fake.url).err == ""


def test_invoke_sends_what_it_is_told(cli, callable_fake, tmp_path):
    callable_fake.on("POST", "/p?q=1", 201, b"")
    callable_fake.on("PUT", "/", 200, b"")
    file = tmp_path / "body"
    file.write_bytes(bytes(range(256)) * 1000)
    assert cli("invoke", "hello", "-d", "text", "-H", "X-A: b", "-H", "Content-Type: text/plain", "--path", "/p?q=1",
               api=callable_fake.url).code == 0
    post = callable_fake.of("POST")[0]
    assert post.body == b"text" and post.headers["X-A"] == "b" and post.headers["Content-Type"] == "text/plain"
    assert cli("invoke", "hello", "-X", "PUT", "-d", f"@{file}", api=callable_fake.url).code == 0
    assert callable_fake.of("PUT")[0].body == file.read_bytes()
    assert cli("invoke", "hello", "--path", "/p?q=1", input="from a pipe", api=callable_fake.url).code == 0
    assert callable_fake.of("POST")[1].body == b"from a pipe"


def test_invoke_fails_for_anything_but_2xx(cli, callable_fake):
    callable_fake.on("GET", "/", 503, (b"full\n", {"Dirigent-Error": "queue_full"}))
    result = cli("invoke", "hello", api=callable_fake.url)
    assert result.code == 1 and result.out == "full\n"
    assert "503" in result.err and "queue_full" in result.err
    callable_fake.on("GET", "/", 302, (b"", {"Location": "/elsewhere"}))
    assert cli("invoke", "hello", api=callable_fake.url).code == 1


def test_invoke_shows_the_receipt(cli, callable_fake):
    callable_fake.on("GET", "/", 200, (b"x", {"Server-Timing": 'queue;dur=0.2, exec;dur=1.5, cache;desc="a, b"',
                                                   "Dirigent-Cold": "1", "Dirigent-Sandbox": "00000001000000ff",
                                                   "Dirigent-Worker": "w1"}))
    result = cli("invoke", "hello", "--receipt", api=callable_fake.url)
    assert callable_fake.of("GET", "/")[-1].headers["Dirigent-Receipt"] == "1"
    assert "queue" in result.err and "200 µs" in result.err and "1.5 ms" in result.err and "a, b" in result.err
    assert "cold start, sandbox 00000001000000ff on w1" in result.err


def test_invoke_says_that_an_answer_was_cut(cli, callable_fake):
    callable_fake.on_call("GET", "/", lambda request: (200, (b"only this", {"Content-Length": "100", "Connection": "close"})))
    result = cli("invoke", "hello", "--timeout", "3s", api=callable_fake.url)
    assert result.code == 1 and result.out == "only this"
    assert "cut after 9 bytes" in result.err or "no complete answer" in result.err


def test_invoke_without_data_planes(cli, fake):
    fake.on("GET", "/v1/data-planes", 200, {"items": []})
    result = cli("invoke", "hello", api=fake.url)
    assert result.code == 3 and "no data plane is alive" in result.err
    result = cli("invoke", "hello", "--data-plane", "127.0.0.1:1", api=fake.url)
    assert result.code == 3 and "cannot reach the data plane" in result.err


def test_colours_only_on_a_terminal(cli, fake, build):
    fake.on("GET", "/v1/functions", 200, {"items": [FUNCTION]})
    import pty

    def on_terminal(**environment):
        leader, follower = pty.openpty()
        subprocess.run([build / "dirigent", "list", "--api", fake.url], stdout=follower, stderr=follower,
                       env={**os.environ, "TERM": "xterm", **environment}, timeout=30)
        os.close(follower)
        text = os.read(leader, 65536).decode()
        os.close(leader)
        return text
    assert "\x1b[32mready" in on_terminal(NO_COLOR="")
    assert "\x1b" not in on_terminal(NO_COLOR="1")
    assert "\x1b" not in on_terminal(NO_COLOR="", TERM="dumb")

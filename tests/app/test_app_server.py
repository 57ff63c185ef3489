"""The served page without a browser: what can be fetched, what is refused, what stays on disk."""

import http.client
import json
import os
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the extra [app] is not installed")

CHECKPOINT = Path(__file__).parent.parent / "golden" / "tiny" / "checkpoint"
IMAGE = {"seed": 0, "steps": 4, "guidance": 2.0, "side": 32, "shift": 3.0, "renorm": "global",
         "solver": "euler"}  # fmt: skip


def request(address, method, path, body=None, headers=None):
    """(status, body) of one request, its path sent as it is."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def uploaded_folder():
    return Path(os.environ["GRADIO_TEMP_DIR"])


@pytest.fixture
def client(address):
    from gradio_client import Client

    return Client(address, verbose=False)


@pytest.fixture
def xray_file(tmp_path, xray_png):
    file = tmp_path / "xray.png"
    file.write_bytes(xray_png)
    return file


def test_the_page_is_served_to_this_machine(address):
    assert address.startswith("http://127.0.0.1:")
    status, body = request(address, "GET", "/")
    assert status == 200
    assert b"Research software, not a medical device" in body


@pytest.mark.parametrize("target", ["/etc/passwd", "CONFIG", "UPLOADED"])
def test_no_file_can_be_read(address, client, xray_file, target):
    from gradio_client import handle_file

    if target == "UPLOADED":
        client.predict(handle_file(xray_file), api_name="/upload")
        found = next(f for f in uploaded_folder().rglob("*") if f.is_file())
    else:
        found = CHECKPOINT / "config.json" if target == "CONFIG" else Path(target)
    file = str(found.resolve())
    assert Path(file).exists()
    quoted = urllib.parse.quote(file, safe="")
    for path in (
        f"/file={file}",
        f"/gradio_api/file={file}",
        f"/gradio_api/file={quoted}",
        f"/gradio_api/file%3D{quoted}",
        f"/gradio_api//file={file}",
        f"/gradio_api/queue/../file={file}",
        f"/gradio_api/queue/%2e%2e/file={file}",
        f"/gradio_api/file/{file}",
        f"/gradio_api/proxy={file}",
        f"/gradio_api/stream/x/y/0/{quoted}",
        f"/static/../../../../../../../../..{file}",
        f"/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{file}",
        f"/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{file}",
        f"/static/{quoted}",
        f"/assets//{file}",
    ):
        for method in ("GET", "HEAD"):
            status, _ = request(address, method, path)
            assert status in (403, 404, 405), path


def joined(address, api_name, data):
    """The queue's last message for an event, sent without a client that would upload files."""
    _, config = request(address, "GET", "/config")
    number = next(d["id"] for d in json.loads(config)["dependencies"] if d["api_name"] == api_name)
    session = {"fn_index": number, "session_hash": "mine"}
    headers = {"Content-Type": "application/json"}
    body = json.dumps(session | {"data": data})
    status, answer = request(address, "POST", "/gradio_api/queue/join", body, headers)
    assert status == 200, answer
    _, stream = request(address, "GET", "/gradio_api/queue/data?session_hash=mine")
    lines = [line.removeprefix("data: ") for line in stream.decode().splitlines() if line]
    messages = [json.loads(line) for line in lines]
    return next(m for m in reversed(messages) if m["msg"] == "process_completed")


def test_no_file_can_be_named_in_a_message(address, xray_file):
    """A path instead of an upload, to an image that could be shown if it were read."""
    relative = os.path.relpath(xray_file, uploaded_folder())
    for path in (str(xray_file), relative, f"{uploaded_folder()}/{relative}", f"/{xray_file}"):
        payload = {"path": path, "meta": {"_type": "gradio.FileData"}}
        message = joined(address, "upload", [payload])
        assert not message["success"]
        assert "data:image" not in json.dumps(message)


def test_the_queue_cannot_be_passed(address):
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"data": ["a", *IMAGE.values()]})
    assert request(address, "POST", "/gradio_api/run/generate", body, headers)[0] == 404


def test_no_address_is_fetched(address):
    """The library would download what a message names."""
    payload = {"path": f"{address}/theme.css", "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [payload], "fn_index": 1, "session_hash": "x"})
    headers = {"Content-Type": "application/json"}
    status, found = request(address, "POST", "/gradio_api/queue/join", body, headers)
    assert (status, found) == (400, b"Expected an uploaded file, found an address.")


def test_a_large_upload_is_refused_before_it_is_sent(address):
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(address).netloc, timeout=60)
    connection.putrequest("POST", "/gradio_api/upload")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(200 * 2**20))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"Expected at most" in answer.read()
    connection.close()


def test_report_and_image_through_the_client(client, xray_file):
    from gradio_client import handle_file

    figure, _, message = client.predict(handle_file(xray_file), api_name="/upload")
    assert "data:image/jpeg" in figure
    report, message = client.predict("Report:", 6, 0, 1, 0, api_name="/report")
    assert report
    assert "Done" in message
    figure, gallery, message = client.predict("effusion", *IMAGE.values(), api_name="/generate")
    assert "data:image/png" in figure
    assert "effusion_seed0.png" in gallery


def test_sessions_are_apart(address, client):
    from gradio_client import Client

    _, mine, _ = client.predict("mine", *IMAGE.values(), api_name="/generate")
    _, theirs, _ = Client(address, verbose=False).predict(
        "theirs", *IMAGE.values(), api_name="/generate"
    )
    assert "mine" in mine
    assert "theirs" in theirs
    assert "mine" not in theirs
    _, message = client.predict("Report:", 6, 0, 1, 0, api_name="/report")
    assert "expected an upload or an example first" in message


def test_bad_settings_are_messages(client):
    for settings in ({"seed": None}, {"seed": -1}, {"seed": 2**40}):
        *_, message = client.predict("a", *(IMAGE | settings).values(), api_name="/generate")
        assert 'role="alert"' in message


def test_nothing_but_uploads_is_on_disk_and_they_go_with_the_server(pipe, tmp_path, xray_file):
    from gradio_client import Client, handle_file

    from unix_jax.app.server import serving

    before = os.environ.get("GRADIO_TEMP_DIR")
    with serving(pipe, port=0) as address:
        folder = uploaded_folder()
        client = Client(address, verbose=False)
        client.predict("a", *IMAGE.values(), api_name="/generate")
        assert [f for f in folder.rglob("*") if f.is_file()] == []
        client.predict(handle_file(xray_file), api_name="/upload")
        assert {f.name for f in folder.rglob("*") if f.is_file()} == {"xray.png"}
    assert not folder.exists()
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def test_uploads_are_deleted_by_age(pipe, xray_file, monkeypatch):
    from gradio_client import Client, handle_file

    from unix_jax.app import page
    from unix_jax.app.server import serving

    monkeypatch.setattr(page, "SWEEP_SECONDS", 1)
    monkeypatch.setattr(page, "FILE_SECONDS", 1)
    with serving(pipe, port=0) as address:
        Client(address, verbose=False).predict(handle_file(xray_file), api_name="/upload")
        end = time.monotonic() + 60
        while any(f.is_file() for f in uploaded_folder().rglob("*")):
            assert time.monotonic() < end
            time.sleep(0.2)


def test_a_full_queue_turns_visitors_away(pipe):
    from gradio_client import Client

    from unix_jax.app.choices import Limits
    from unix_jax.app.server import serving

    long = (IMAGE | {"steps": 80}).values()
    with serving(pipe, port=0, limits=Limits(waiting=1)) as address:
        clients = [Client(address, verbose=False) for _ in range(4)]
        jobs = [client.submit("a", *long, api_name="/generate") for client in clients]
        errors = [str(job.exception(timeout=120)) for job in jobs]
        assert sum("Queue is full" in error for error in errors) in (2, 3), errors
        # Those who waited got theirs.
        assert errors.count("None") in (1, 2), errors


@pytest.mark.slow
def test_eight_visitors_for_a_minute(address, xray_file):
    from gradio_client import Client, handle_file

    end, done, wrong = time.monotonic() + 60, [0] * 8, []

    def visit(number):
        try:
            client = Client(address, verbose=False)
            while time.monotonic() < end:
                client.predict(handle_file(xray_file), api_name="/upload")
                report, message = client.predict("Report:", 8, 0, 1, 0, api_name="/report")
                if not report or "Done" not in message:
                    raise AssertionError(message)
                settings = (IMAGE | {"seed": number}).values()
                _, gallery, message = client.predict(
                    f"visitor {number}", *settings, api_name="/generate"
                )
                others = (f"visitor {n}:" in gallery for n in range(8) if n != number)
                if "Done" not in message or any(others):
                    raise AssertionError(message)
                done[number] += 1
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert wrong == []
    assert all(done), done

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
IMAGE = {"images": 1, "seed": 0, "steps": 4, "guidance": 2.0, "side": 32, "shift": 3.0,
         "renorm": "global", "solver": "euler"}  # fmt: skip


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


def join(address, number, data, session="mine", headers=None):
    """(status, body) of a request that joins the queue."""
    body = json.dumps({"fn_index": number, "session_hash": session, "data": data})
    headers = {"Content-Type": "application/json"} | (headers or {})
    return request(address, "POST", "/gradio_api/queue/join", body, headers)


def number_of(address, api_name):
    _, config = request(address, "GET", "/config")
    return next(d["id"] for d in json.loads(config)["dependencies"] if d["api_name"] == api_name)


def joined(address, api_name, data):
    """The queue's last message for an event, sent without a client that would upload files."""
    number = number_of(address, api_name)
    status, answer = join(address, number, data)
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
        message = joined(address, "upload", [None, payload])
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


def test_other_names_and_other_sites_are_refused(address, xray_png):
    assert request(address, "GET", "/", None, {"Host": "evil.example"})[0] == 421
    assert request(address, "GET", "/config", None, {"Host": "evil.example:7860"})[0] == 421
    number, data = number_of(address, "generate"), [None, None, "a", *IMAGE.values()]
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        status, _ = join(address, number, data, headers=headers)
        assert status == (421 if "Host" in headers else 403)
        form = {"Content-Type": "multipart/form-data; boundary=x"} | headers
        assert request(address, "POST", "/gradio_api/upload", xray_png, form)[0] == status
    assert [f for f in uploaded_folder().rglob("*") if f.is_file() and f.name == "x"] == []


def test_an_added_name_is_answered(pipe):
    from unix_jax.app.server import serving

    with serving(pipe, port=0, allow_hosts=["xrays.example.org"]) as found:
        assert request(found, "GET", "/", None, {"Host": "xrays.example.org"})[0] == 200
        assert request(found, "GET", "/", None, {"Host": "evil.example"})[0] == 421


def test_many_uploads_are_refused(pipe, xray_png):
    from unix_jax.app.choices import Limits
    from unix_jax.app.server import serving

    parts = b'--x\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
    body = parts + b"0" * 2**20 + b"\r\n--x--\r\n"
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    limits = Limits(upload_bytes=2**21, visitor_bytes=5 * 2**20, uploads_bytes=8 * 2**20)
    with serving(pipe, port=0, limits=limits) as found:
        answers = [request(found, "POST", "/gradio_api/upload", body, form) for _ in range(9)]
        assert [status for status, _ in answers] == [200] * 4 + [429] * 5
        assert b"from your address" in answers[-1][1]
        on_disk = sum(f.stat().st_size for f in uploaded_folder().rglob("*") if f.is_file())
        assert on_disk <= 5 * 2**20


def test_a_flood_of_one_session_is_refused(pipe):
    from unix_jax.app.choices import Limits
    from unix_jax.app.server import serving

    data = [None, None, "a", *(IMAGE | {"steps": 80}).values()]
    with serving(pipe, port=0, limits=Limits(waiting=6, session_waiting=2)) as found:
        number = number_of(found, "generate")
        one = [join(found, number, data, "one")[0] for _ in range(5)]
        assert one == [200] * 2 + [429] * 3
        # Many names of sessions meet the bound of the whole queue.
        many = [join(found, number, data, f"s{i}")[0] for i in range(12)]
        assert set(many) == {200, 503}
        assert many.count(200) <= 6


def test_malformed_calls_are_one_line_without_the_text(address, client, capfd, caplog):
    number = number_of(address, "generate")
    secret = "Name of a patient"
    values = list(IMAGE.values())
    for i, data in enumerate(
        (
            [],
            [secret],
            [None, None, *[secret] * 8],
            [None, None, {"a": secret}, *values],
            [None, None, secret, 1, [secret], *values[2:]],
            [secret, secret, secret, *values],
        )
    ):
        join(address, number, data, f"malformed{i}")
        request(address, "GET", f"/gradio_api/queue/data?session_hash=malformed{i}")
    join(address, 10**6, [secret], "unknown")
    printed = capfd.readouterr()
    for text in (printed.out, printed.err, caplog.text):
        assert secret not in text
        assert "Traceback" not in text
    assert "a call of the page failed" in caplog.text


def test_a_seed_of_400_digits(address):
    data = [None, None, "a", *(IMAGE | {"seed": 10**400}).values()]
    message = joined(address, "generate", data)
    assert "integer of more than 40 digits" in json.dumps(message)


def test_report_and_image_through_the_client(client, xray_file):
    from gradio_client import handle_file

    figure, *_ = client.predict(handle_file(xray_file), api_name="/upload")
    assert "data:image/jpeg" in figure
    report, sections, gallery, message = client.predict("Report:", 6, 0, 1, 0, api_name="/report")
    assert "report.json" in sections
    assert "report.json" in gallery
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
    *_, message = client.predict("Report:", 6, 0, 1, 0, api_name="/report")
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
                report, *_, message = client.predict("Report:", 8, 0, 1, 0, api_name="/report")
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

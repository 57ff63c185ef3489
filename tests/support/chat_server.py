"""A chat endpoint on loopback whose faults are drawn from the report's number."""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NUMBER = re.compile(r"Report (\d+)\.")


def rewrite_of(number: int) -> str:
    return f"FINDINGS: Report {number}. Small left effusion. IMPRESSION: Effusion."


class ChatServer:
    """Answers rewrites and verdicts; `faults` maps the n-th request of a kind to a fault.

    faults(kind, number, n): kind is rewrite or judge, n counts the requests for this report and
    kind from 0; returns the name of a fault, or "" for a good answer.
    """

    def __init__(self, faults=lambda kind, number, n: "", delay=0.0):
        self.faults, self.delay = faults, delay
        self.closed = threading.Event()
        self.seen: Counter = Counter()
        self.times: list[float] = []
        self.authorization: set[str] = set()
        self.bodies: list[dict] = []
        self.connections = 0
        self._lock = threading.Lock()
        chat = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    chat.answer(self, body, self.headers.get("Authorization", ""))

            def log_message(self, *arguments):
                pass

        class Server(ThreadingHTTPServer):
            def get_request(self):
                chat.connections += 1
                return super().get_request()

            def handle_error(self, *arguments):
                """Clients that hang up, as a killed one does, are no news."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, handler, body, authorization):
        text = body["messages"][0]["content"]
        kind = "judge" if "<rewrite>" in text else "rewrite"
        number = int(NUMBER.search(text)[1])
        with self._lock:
            n = self.seen[kind, number]
            self.seen[kind, number] += 1
            self.times.append(time.monotonic())
            self.authorization.add(authorization)
            self.bodies.append(body)
        time.sleep(self.delay)
        fault = self.faults(kind, number, n)
        good = "yes" if kind == "judge" else rewrite_of(number)
        if fault in ("429", "500", "503", "400", "401"):
            headers = {"Retry-After": "0.02"} if fault == "429" else {}
            # A careless server sends the key back.
            message = {"error": {"message": f"no: {authorization}", "code": fault}}
            send(handler, int(fault), json.dumps(message), headers)
        elif fault.startswith("status "):
            # "status 307 Location: http://..." or "status 429 Retry-After: 30"
            _, status, *header = fault.split(maxsplit=2)
            headers = dict([header[0].split(": ", 1)]) if header else {}
            send(handler, int(status), json.dumps({"error": {"message": "busy"}}), headers)
        elif fault.startswith("finish "):
            send(handler, 200, json.dumps(completion(good, finish=fault.removeprefix("finish "))))
        elif fault.startswith("reply "):
            send(handler, 200, json.dumps(completion(fault.removeprefix("reply "))))
        elif fault == "parts":
            parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": good}]
            send(handler, 200, json.dumps(completion(parts)))
        elif fault == "malformed":
            send(handler, 200, '{"choices": [{"mess')
        elif fault == "empty":
            send(handler, 200, '{"choices": []}')
        elif fault == "html":
            send(handler, 200, "<html>busy</html>", {"Content-Type": "text/html"})
        elif fault == "truncated":
            data = json.dumps(completion(good)).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            handler.close_connection = True
        elif fault == "slow":
            time.sleep(0.3)
            send(handler, 200, json.dumps(completion(good)))
        elif fault == "never":
            self.closed.wait(60)
        elif fault == "refusal":
            send(handler, 200, json.dumps(completion(None, refusal="I cannot help.")))
        elif fault == "echo":
            send(handler, 200, json.dumps(completion(f"{good} {authorization}")))
        elif fault == "number":
            send(handler, 200, json.dumps(completion(good.replace("Small", "5 mm"))))
        elif fault == "maybe":
            send(handler, 200, json.dumps(completion("Perhaps.")))
        elif fault == "no":
            send(handler, 200, json.dumps(completion("No. The effusion is on the other side.")))
        else:
            assert not fault
            send(handler, 200, json.dumps(completion(good)))


def completion(text, refusal=None, finish="stop"):
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def send(handler, status, text, headers=None):
    data = text.encode()
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def write_reports(path, count):
    rows = (
        {"id": f"r{i}", "report": f"FINDINGS: Report {i}. Small left effusion, seen by Dr. ___. "
         "IMPRESSION: Effusion."}
        for i in range(count)
    )  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]

"""A function in Python with nothing but the standard library.

It shows all that a function has to do: listen on $PORT and answer HTTP. `Connection: keep-alive` (HTTP/1.1) saves a new
connection for each call. Threads let one sandbox take several requests at once (--concurrency).

    dirigent deploy hello-python --dir examples/python --concurrency 10
    dirigent invoke hello-python -d '{"name": "you"}'
"""
import json
import os
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GREETING = os.environ.get("GREETING", "Hello")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.answer(200, f"{GREETING} from Python in {socket.gethostname()}, path {self.path}\n")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            name = json.loads(body)["name"]
        except (ValueError, KeyError, TypeError):
            self.answer(400, 'send JSON such as {"name": "you"}\n')
            return
        self.answer(200, f"{GREETING}, {name}\n")

    def answer(self, status, text):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))
    print(f"listening on port {port}", flush=True)
    ThreadingHTTPServer(("0.0.0.0", port), Handler).serve_forever()

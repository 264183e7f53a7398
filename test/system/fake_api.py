"""An HTTP API that answers what a test tells it to, for what a real one does rarely: refuse, be slow, talk nonsense."""
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Request:
    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.body = method, path, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class FakeApi:
    """answers: (method, path) -> (status, object | bytes | callable(request) -> (status, object))."""

    def __init__(self):
        self.answers, self.requests = {}, []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def read_body(self):
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    data = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        data += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return data
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            def answer(self):
                request = Request(self.command, self.path, dict(self.headers), self.read_body())
                fake.requests.append(request)
                found = fake.answers.get((self.command, self.path), (404, {"error": {"code": "not_found",
                                                                                   "message": "there is nothing"}}))
                status, value = found(request) if callable(found) else found
                headers = {}
                if isinstance(value, tuple):
                    value, headers = value
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                if "Transfer-Encoding" not in headers and "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_PATCH = do_DELETE = do_POST = do_HEAD = answer

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def on(self, method, path, status, value=b""):
        self.answers[method, path] = (status, value)

    def on_call(self, method, path, function):
        self.answers[method, path] = function

    def of(self, method, prefix="/"):
        """Requests of a method whose path begins so."""
        return [r for r in self.requests if r.method == method and r.path.startswith(prefix)]

    def close(self):
        self.server.shutdown()
        self.server.server_close()

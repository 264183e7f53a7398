"""A function for tests of faults: it says which of its lives answers, and how many requests it has had at once at most."""
import http.server
import os
import socketserver
import threading
import time
import uuid

LIFE = uuid.uuid4().hex
lock, now, most = threading.Lock(), 0, 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # /SECONDS
        global now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(float(self.path.strip("/") or 0))
        body = f"{LIFE} {most}".encode()
        with lock:
            now -= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64

    def server_bind(self):  # http.server asks for the host's name, and there is no DNS
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "sleeper", self.server_address[1]


Server(("", int(os.environ["PORT"])), Handler).serve_forever()

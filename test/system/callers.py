"""Calls that go on while something else happens."""
import http.client
import threading
import time

from cluster import wait_until


class Callers:
    """Threads that call as long as the block lasts. ask(which thread) makes one call and returns (status, text)."""
    pause_s = 0.0

    def __init__(self, count):
        self.good, self.bad, self.stopping = 0, [], False
        self.longest, self.slow = 0.0, 0  # seconds; how many took longer than half of one; of those that went well, too
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self._run, args=(i,)) for i in range(count)]

    def ask(self, which):
        raise NotImplementedError

    def _run(self, which):
        while not self.stopping:
            began = time.monotonic()
            try:
                status, text = self.ask(which)
            except (OSError, http.client.HTTPException) as error:
                status, text = 0, repr(error)
            took = time.monotonic() - began
            with self.lock:
                self.longest = max(self.longest, took)
                self.slow += took > 0.5
                if status == 200:
                    self.good += 1
                else:
                    self.bad.append((round(took, 3), status, text[:200]))
            time.sleep(self.pause_s if status != 0 else max(0.02, self.pause_s))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self.stopping = True
        for thread in self.threads:
            thread.join()

    def wait_good(self, count, seconds=40):
        """Until so many more calls were answered well."""
        end = self.good + count
        wait_until(lambda: self.good >= end, seconds, f"{count} good answers ({self.bad[-3:]})")


class KeptCalls(Callers):
    """Without a pause, each thread on one connection as long as it lasts, to a data plane on loopback."""

    def __init__(self, port, name, threads=2):
        super().__init__(threads)
        self.port, self.name, self.connections = port, name, [None] * threads

    def ask(self, which):
        connection = self.connections[which] or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.connections[which] = None
        connection.request("GET", "/", headers={"Host": self.name})
        answer = connection.getresponse()
        text = answer.read()
        self.connections[which] = connection
        return answer.status, text

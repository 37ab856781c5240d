"""The examples are folders of scripts, not packages: put them where their modules find each other."""

import http.server
import sys
import threading
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PMR = EXAMPLES / "pmr"
sys.path[:0] = [str(EXAMPLES / name) for name in ("shared", "pmr", "confounder", "views", "emoji")]


@pytest.fixture(scope="session")
def pmr() -> Path:
    """The folder of the example."""
    return PMR


@pytest.fixture(scope="session")
def small_data():
    """120 training and 40 test digits, in their colours."""
    return first_digits(120, 40)


@pytest.fixture(scope="session")
def tiny_data():
    """60 training and 20 test digits: one batch in an epoch."""
    return first_digits(60, 20)


@pytest.fixture(autouse=True)
def one_thread():
    """What the example runs with; two test processes with two threads each wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def package_server():
    """A registry of this machine: gives `serve(path, body, announced_length=None) -> URL`, and the paths asked for."""
    offers, asked = {}, []

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body, length = offers.get(self.path, (b"", 0))
            self.send_response(200 if self.path in offers else 404)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def serve(path, body, announced_length=None):
        offers[path] = body, len(body) if announced_length is None else announced_length
        return f"http://127.0.0.1:{server.server_port}{path}"

    yield serve, asked
    server.shutdown()
    server.server_close()


def first_digits(train: int, test: int):
    from data import Data, Split, load_data

    whole = load_data(seed=0)
    parts = ((whole.train, train), (whole.test, test))
    return Data("a few digits", *(Split(s.gray[:n], s.colored[:n], s.labels[:n]) for s, n in parts))

"""A page in a real browser: headless Chromium speaks MQTT over WebSocket, and pages of foreign origins are refused."""

import argparse
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import urllib.parse
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from broker import Berth, add_users, free_port
from pki import Authority
from report import Report

PAGE = Path(__file__).with_name("page.html")
PATIENCE_S = 120
USERS = {"page": "a secret"}
HOME = "127.0.0.1"
# Somebody else's page: the same server at another address.
FOREIGN = "127.0.0.2"
ORIGINS = "https://app.example.org"


@dataclass(frozen=True)
class Case:
    """A page, where it connects, and what has to come of it."""

    name: str
    listener: str
    expected: str
    what: str
    host: str = HOME
    password: str = "a secret"
    trusts: bool = True


CASES = [
    Case("ws", "ws", "received", "ws://, a page of the same host"),
    Case("wss", "wss", "received", "wss://, the authority's key is trusted"),
    Case("wss-untrusted", "wss", "closed", "wss://, the authority is not trusted", trusts=False),
    Case("wrong-password", "ws", "refused", "ws://, a wrong password", password="wrong"),
    Case("foreign", "ws", "closed", "ws://, a page of another host, allowed_origins: same", host=FOREIGN),
    Case("foreign-tls", "wss", "closed", "wss://, a page of another host, allowed_origins: same", host=FOREIGN),
    Case("listed", "listed", "received", "ws://, the page's origin is listed", host=FOREIGN),
    Case("unlisted", "others", "closed", f"ws://, allowed_origins: {ORIGINS}"),
    Case("unlisted-tls", "others-tls", "closed", f"wss://, allowed_origins: {ORIGINS}"),
]


class Server:
    """Serves the page at two addresses of this machine, and takes what it found."""

    def __init__(self) -> None:
        results: queue.Queue[dict[str, Any]] = queue.Queue()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = self.path.split("?")[0] == "/page.html"
                body = PAGE.read_bytes() if found else b""
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.results = results
        self.port = free_port()
        self.servers = [ThreadingHTTPServer((host, self.port), Handler) for host in (HOME, FOREIGN)]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Ends it."""
        for server in self.servers:
            server.shutdown()
            server.server_close()


def visit(url: str, trusted_key: str | None, server: Server, name: str) -> dict[str, Any]:
    """Opens a page in a browser of its own, until the page has told what it found."""
    profile = tempfile.mkdtemp(prefix="doors-chromium-")
    command = [
        "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
        f"--user-data-dir={profile}",
    ]  # fmt: skip
    if trusted_key:
        # Only chains with this key are trusted besides those of the system: nothing else is ignored.
        command.append(f"--ignore-certificate-errors-spki-list={trusted_key}")
    log = Path(profile) / "chromium.log"
    with log.open("wb") as said:
        # What it leaves behind is removed with the profile.
        own = os.environ | {"TMPDIR": profile}
        child = subprocess.Popen(
            [*command, url], stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True, env=own
        )
    try:
        while (result := server.results.get(timeout=PATIENCE_S))["name"] != name:
            pass
        return result
    except queue.Empty:
        raise RuntimeError(f"the page {name} told nothing: {log.read_text(errors='replace')[-2000:]}") from None
    finally:
        # The group of the browser that was started here.
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        shutil.rmtree(profile, ignore_errors=True)


def run(args: argparse.Namespace, report: Report) -> None:
    """All pages, one after another."""
    version = subprocess.run(["chromium", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    report.note(version)
    server = Server()
    with tempfile.TemporaryDirectory(prefix="doors-") as directory:
        authority = Authority(Path(directory))
        cert, key = authority.server("broker")
        users = Path(directory) / "users"
        add_users(args.berth, users, USERS)
        covered = {"cert_file": cert, "key_file": key}
        listeners = {
            "ws": {},
            "wss": covered,
            "listed": {"type": "ws", "allowed_origins": f"{ORIGINS},http://{FOREIGN}:{server.port}"},
            "others": {"type": "ws", "allowed_origins": ORIGINS},
            "others-tls": {"type": "wss", "allowed_origins": ORIGINS, **covered},
        }
        try:
            with Berth(args.berth, listeners, {"auth.password.file": str(users)}) as berth:
                rows = [judge(case, berth, authority.key_digest(), server, report) for case in CASES]
                metrics = berth.metrics()
                report.data["turned_away"] = {n: v for n, v in metrics.items() if n.startswith("berth_turned_away")}
        finally:
            server.stop()
    report.table(["page", "what", "outcome", "steps", "subprotocol", "ms"], rows)


def judge(case: Case, berth: Berth, trusted_key: str, server: Server, report: Report) -> list[object]:
    """Visits a page and looks at what came of it; a row of the table."""
    scheme = "wss" if berth.settings.get(f"listeners.{case.listener}.cert_file") else "ws"
    refused = 'berth_turned_away_total{reason="websocket"}'
    before = berth.metrics().get(refused, 0)
    query = {
        "name": case.name,
        "url": f"{scheme}://127.0.0.1:{berth.ports[case.listener]}/mqtt",
        "user": "page",
        "password": case.password,
    }
    url = f"http://{case.host}:{server.port}/page.html?{urllib.parse.urlencode(query)}"
    result = visit(url, trusted_key if case.trusts else None, server, case.name)
    report.data.setdefault("pages", {})[case.name] = result
    outcome, steps = result["outcome"], result["steps"]
    holds = outcome.startswith(case.expected)
    if case.expected == "received":
        # The acknowledgement and the message may come in either order.
        holds = holds and steps[:3] == ["open", "connack 0", "suback 1"] and result["subprotocol"] == "mqtt"
    elif case.expected == "closed":
        holds = holds and steps == []
    turned = berth.metrics().get(refused, 0) - before
    if case.expected == "closed" and case.trusts:
        holds = holds and turned == 1
    report.bound(f"{case.what}: {case.expected}", holds, f"{outcome}, {', '.join(steps) or 'not opened'}; refused by the broker: {turned:.0f}")
    return [case.name, case.what, outcome, " > ".join(steps), result["subprotocol"], result["ms"]]

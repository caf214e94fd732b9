# SPDX-License-Identifier: Apache-2.0
"""The server of the page: a list of files and nothing else, behind a token that every request must carry."""

from __future__ import annotations

import hmac
import json
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from starshift.bench.rows import append_row, provenance
from starshift.bench.subjects import published
from starshift.bench.web import assets
from starshift.bench.web.rows import checked, clean
from starshift.errors import StarshiftError

HERE = Path(__file__).parent
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MOST_POSTED = 4096  # bytes
MOST_ROWS = 10_000  # of one server
KINDS = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"}
KINDS |= {".wasm": "application/wasm", ".onnx": "application/octet-stream", ".json": "application/json"}
HEADERS = {
    # Threads of WebAssembly need a page that is isolated from others.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval' blob:;"
    " worker-src 'self' blob:; connect-src 'self' blob:; img-src 'self' blob: data:; media-src 'self' blob:;"
    " style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
OnRow = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class WebModel:
    """An ONNX file that the page offers."""

    path: Path

    def facts(self) -> dict[str, Any]:
        """What the page needs to know, from the file's own metadata."""
        from starshift.deploy import load_exported

        predictor = load_exported(self.path)
        return {
            "name": predictor.name,
            "labels": list(predictor.classes),
            "preprocessing": predictor.preprocessing.to_config(),
            "bytes": self.path.stat().st_size,
            "trained": predictor.trained,
            "precision": predictor.metadata.precision,
        }


def web_models(sources: list[str], folder: Path, size: int | None = None) -> list[WebModel]:
    """ONNX files as they are; runs, model folders and names exported into ``folder``.

    Raises:
        StarshiftError: no such source, or a file of another format.
    """
    from starshift.deploy import export

    models = []
    for number, source in enumerate(sources):
        path = Path(source)
        if path.is_file():
            if path.suffix != ".onnx":
                raise StarshiftError(f"{path}: browsers run ONNX files; make one with 'starshift export RUN -f onnx'")
            models.append(WebModel(path))
            continue
        exported = folder / f"{number}.onnx"
        export(source, "onnx", exported, img_size=size)
        models.append(WebModel(exported))
    return models


class Server:
    """The page's server. ``with`` it to start and stop; :attr:`url` is what to open.

    Args:
        models: what the page offers.
        out: CSV file that gets a row for each measurement.
        host: address to listen on. Any but the loopback is reached from the network, by HTTPS with a certificate made
            for this run, since browsers give cameras, threads and WebGPU to safe origins alone.
        port: 0 takes a free one.
        on_row: called with each row.

    Raises:
        StarshiftError: ONNX Runtime Web cannot be had, no such address, or the port is taken.
    """

    def __init__(
        self,
        models: list[WebModel],
        out: Path,
        *,
        host: str = LOOPBACK[0],
        port: int = 0,
        on_row: OnRow = lambda row: None,
    ) -> None:
        self.out, self.host, self.on_row = out, host, on_row
        self.token = secrets.token_urlsafe(24)
        self.facts = [model.facts() for model in models]
        self.files = _files(models)
        self.content = {"models.json": json.dumps({"models": self.facts, "runtime": assets.VERSION}).encode()}
        self.rows = 0
        self._lock = threading.Lock()
        self._run = provenance()
        try:
            self._http = _Http((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StarshiftError(f"cannot listen on {host}:{port}: {reason}") from error
        self._http.site = self
        self.secure = False
        if host not in LOOPBACK:
            address = _reachable(host)
            context = _certificate(address)
            if context is not None:
                # The handshake belongs to each request's own thread: here it would let one visitor block all.
                self._http.socket = context.wrap_socket(
                    self._http.socket, server_side=True, do_handshake_on_connect=False
                )
                self.secure = True
        else:
            address = host
        shown = f"[{address}]" if ":" in address else address
        self.url = f"{'https' if self.secure else 'http'}://{shown}:{self._http.server_port}/{self.token}/"

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def advice(self) -> str:
        """What to do with the address, in words."""
        if self.host in LOOPBACK:
            where = "Open the address here; --host 0.0.0.0 opens it to the local network."
        elif self.secure:
            where = "Open the address on a device of the same network. Its browser warns of the certificate, since"
            where += " it was made for this run: go on."
        else:
            where = "Open the address on a device of the same network. Without https (there is no openssl here) its"
            where += " browser gives no camera, threads or WebGPU."
        return f"{where} Rows go to {self.out}; Ctrl-C ends it."

    def wait(self) -> None:
        """Until interrupted."""
        while self._thread.is_alive():
            self._thread.join(1)

    def add(self, posted: Any, user_agent: str) -> dict[str, Any]:
        """Append a measurement to the table.

        Raises:
            StarshiftError: it is not one, or there are too many.
        """
        values = checked(posted, len(self.facts))
        facts = self.facts[values["model"]]
        size = facts["preprocessing"]["input_size"][1]
        here = {k: v for k, v in self._run.items() if k not in ("cpu", "cores", "memory_gb", "os", "gpu")}
        row = {
            "suite": "web",
            "model": facts["name"],
            "target": f"onnx-web-{values['backend']}",
            "precision": facts["precision"],
            "batch": 1,
            "size": size,
            "threads": values["threads"],
            **{name: values[name] for name in ("latency_ms", "p5_ms", "p95_ms", "first_ms", "load_ms", "calls")},
            "images_per_s": round(1000 / values["latency_ms"], 2) if values["latency_ms"] else "",
            "file_mb": round(facts["bytes"] / 1e6, 3),
            "published_top1": "" if facts["trained"] else published(facts["name"], size) or "",
            "user_agent": clean(user_agent),
            "backend": values["backend"],
            "cores": values["cores"],
            "gpu": values["gpu"],
            "onnxruntime-web": assets.VERSION,
            **here,
        }
        with self._lock:
            if self.rows >= MOST_ROWS:
                raise StarshiftError("this server has taken all the rows it takes")
            append_row(self.out, row)
            self.rows += 1
        self.on_row(row)
        return row


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    site: Server

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Visitors that break off, or do not trust the certificate, are no error of ours."""
        import sys

        if not isinstance(sys.exc_info()[1], (OSError, ssl.SSLError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    server_version, sys_version = "starshift", ""
    timeout = 30  # seconds without a byte

    def do_GET(self) -> None:
        name = self._name()
        if name is None:
            return
        site = self.server.site
        if name in site.content:
            self._answer(200, site.content[name], KINDS[Path(name).suffix])
        elif name in site.files:
            path = site.files[name]
            self._answer(200, path.read_bytes(), KINDS[path.suffix])
        else:
            self._answer(404, b"there is nothing of that name\n")

    def do_POST(self) -> None:
        name = self._name()
        if name is None:
            return
        length = self.headers.get("Content-Length", "")
        if name != "row":
            self._answer(404, b"there is nothing of that name\n")
        elif not length.isdecimal():
            self._answer(411, b"the length is missing\n")
        elif int(length) > MOST_POSTED:
            self._answer(413, b"too large\n")
        else:
            try:
                self.server.site.add(json.loads(self.rfile.read(int(length))), self.headers.get("User-Agent", ""))
            except (StarshiftError, ValueError, RecursionError) as error:
                self._answer(400, f"{error}\n".encode())
            else:
                self._answer(204, b"")

    def _name(self) -> str | None:
        """The file asked for, of a request that carries the token; None, answered, of any other."""
        token, _, name = self.path.partition("?")[0].lstrip("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.site.token.encode()):
            self._answer(403, b"open the whole address that 'starshift bench --web' printed\n")
            return None
        return name or "index.html"

    def _answer(self, status: int, body: bytes, kind: str = "text/plain") -> None:
        self.close_connection = True
        self.send_response(status)
        text = kind.startswith("text/") or kind.endswith("json")
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if text else kind)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the visitor went away
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: the address in each line would hold the token."""


def _files(models: list[WebModel]) -> dict[str, Path]:
    """Everything that is served from disk, by its name in the address."""
    runtime = assets.folder()
    page = {path.name: path for path in HERE.iterdir() if path.suffix in (".html", ".js", ".css")}
    return {
        **page,
        **{f"ort/{name}": runtime / name for name in assets.FILES},
        **{f"model/{number}.onnx": model.path for number, model in enumerate(models)},
    }


def _reachable(host: str) -> str:
    """The address to type on another device, where ``host`` means all of this machine's."""
    if host not in ("0.0.0.0", "::", ""):
        return host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))  # sends nothing: it asks for the route
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _certificate(address: str) -> ssl.SSLContext | None:
    """A certificate that names the address, signed by itself, for a week; None where there is no openssl to make it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    kind = "IP" if address.replace(".", "").isdigit() or ":" in address else "DNS"
    with tempfile.TemporaryDirectory(prefix="starshift-web-") as folder:
        key, certificate = f"{folder}/key.pem", f"{folder}/certificate.pem"
        command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "7", "-subj", "/CN=starshift bench", "-addext", f"subjectAltName={kind}:{address}"]
        made = subprocess.run([*command, "-keyout", key, "-out", certificate], capture_output=True, text=True)
        if made.returncode:
            raise StarshiftError(f"openssl makes no certificate for {address}: {made.stderr.strip().splitlines()[-1:]}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context

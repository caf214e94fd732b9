# SPDX-License-Identifier: Apache-2.0
"""The page's server: who gets what, what a posted row may be, and where ONNX Runtime Web comes from."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import shutil
import ssl
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from starshift.bench import read_rows
from starshift.bench.web import Server, WebModel, assets, web_models
from starshift.bench.web.rows import checked, clean
from starshift.bench.web.server import MOST_POSTED
from starshift.cli.main import app
from starshift.errors import StarshiftError

GOOD: dict[str, Any] = {
    **{"model": 0, "backend": "wasm", "threads": 2, "cores": 8, "calls": 100, "gpu": ""},
    **{"latency_ms": 5.25, "p5_ms": 5.0, "p95_ms": 6.5, "first_ms": 20.0, "load_ms": 150.5},
}


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for ONNX Runtime Web's: the server only hands its files out."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in assets.FILES:
        (folder / name).write_text(f"// {name}")
    monkeypatch.setattr(assets, "folder", lambda: folder)
    return folder


@pytest.fixture
def site(onnx_file: Path, tmp_path: Path, runtime: Path) -> Iterator[Server]:
    with Server([WebModel(onnx_file)], tmp_path / "rows.csv") as server:
        yield server


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, Any]:
    address = urlsplit(server.url)
    if server.secure:
        trusting = ssl._create_unverified_context()
        connection: Any = http.client.HTTPSConnection(
            address.hostname or "", address.port, timeout=10, context=trusting
        )
    else:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def own(server: Server, name: str) -> str:
    return urlsplit(server.url).path + name


def test_every_file_of_the_list_and_nothing_else(site: Server, onnx_file: Path) -> None:
    kinds = {"": "text/html", "page.js": "text/javascript", "style.css": "text/css", "models.json": "application/json"}
    kinds |= {"ort/ort.wasm.min.mjs": "text/javascript", "ort/ort-wasm-simd-threaded.wasm": "application/wasm"}
    for name, kind in kinds.items():
        status, body, headers = ask(site, "GET", own(site, name))
        assert status == 200 and body and headers["Content-Type"].startswith(kind), name
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(site, "GET", own(site, "model/0.onnx"))[1] == onnx_file.read_bytes()
    (model,) = json.loads(ask(site, "GET", own(site, "models.json"))[1])["models"]
    assert model["labels"] == ["cat", "dog", "eel"] and model["preprocessing"]["crop_pct"] == 0.9
    for name in ("server.py", "../rows.py", "%2e%2e/rows.py", "model/1.onnx", "ort/", "/etc/passwd", "row"):
        assert ask(site, "GET", own(site, name))[0] == 404, name
    assert ask(site, "PUT", own(site, "row"), b"{}")[0] == 501


def test_without_the_token_there_is_nothing(site: Server, tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    token = site.token
    for path in (
        "/",
        "/index.html",
        "/models.json",
        f"/{token[:-1]}/",
        f"/{token}x/",
        f"/?token={token}",
        "/row",
        "/ü",
    ):
        quoted = path.encode("utf-8").decode("latin-1")
        if path != "/ü":
            assert ask(site, "GET", quoted)[0] == 403, path
            assert ask(site, "POST", quoted, good)[0] == 403, path
    assert ask(site, "GET", "/%C3%BC/")[0] == 403
    assert not (tmp_path / "rows.csv").exists()


def test_a_row_arrives_in_the_table(site: Server, tmp_path: Path) -> None:
    agent = '=HYPERLINK("http://x")\x00 Phone'
    status, body, _ = ask(site, "POST", own(site, "row"), json.dumps(GOOD).encode(), **{"User-Agent": agent[:22]})
    assert (status, body) == (204, b"")
    (row,) = read_rows(tmp_path / "rows.csv")[1]
    assert row["suite"] == "web" and row["model"] == "starnet_s050" and row["target"] == "onnx-web-wasm"
    assert float(row["latency_ms"]) == 5.25 and row["threads"] == "2" and row["cores"] == "8" and row["size"] == "32"
    assert (
        row["user_agent"] == "'" + agent[:22] and row["backend"] == "wasm" and row["onnxruntime-web"] == assets.VERSION
    )
    assert "cpu" not in row, "it was not this machine's processor"


def test_a_published_accuracy_is_that_of_no_trained_model(site: Server) -> None:
    preprocessing = site.facts[0]["preprocessing"]
    for trained, size, expected in ((True, 224, ""), (False, 192, ""), (False, 224, 73.5)):
        more = {"preprocessing": preprocessing | {"input_size": [3, size, size]}, "trained": trained}
        site.facts[0] |= {"name": "starnet_s1", **more}
        assert site.add(GOOD, "a browser")["published_top1"] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latency_ms": "5"}, "milliseconds"),
        ({"latency_ms": True}, "milliseconds"),
        ({"latency_ms": -1}, "milliseconds"),
        ({"load_ms": float("nan")}, "milliseconds"),
        ({"first_ms": 1e30}, "milliseconds"),
        ({"latency_ms": 9}, "not in order"),
        ({"model": 1}, "model is a whole number from 0 to 0"),
        ({"model": 0.5}, "whole number"),
        ({"threads": 10**6}, "threads"),
        ({"backend": "=cmd"}, "backend is one of"),
        ({"note": "hello"}, "has the fields"),
    ],
)
def test_a_row_that_is_none_is_refused(change: dict[str, Any], message: str, site: Server, tmp_path: Path) -> None:
    status, body, _ = ask(site, "POST", own(site, "row"), json.dumps({**GOOD, **change}).encode())
    assert status == 400 and message in body.decode()
    assert not (tmp_path / "rows.csv").exists()


def test_what_is_no_row_at_all_or_too_large_is_refused(site: Server, tmp_path: Path) -> None:
    row = own(site, "row")
    for body in (b"", b"[]", b"{", b"\xff", b'"x"', b"[" * MOST_POSTED):
        assert ask(site, "POST", row, body)[0] == 400, body[:5]
    assert ask(site, "POST", row, b" " * (MOST_POSTED + 1))[0] == 413
    assert ask(site, "POST", row, None, **{"Content-Length": "99999999999"})[0] == 413
    assert ask(site, "POST", row, None, **{"Transfer-Encoding": "chunked"})[0] == 411
    assert ask(site, "POST", own(site, "models.json"), b"{}")[0] == 404
    assert not (tmp_path / "rows.csv").exists()


def test_text_becomes_one_harmless_line() -> None:
    assert clean("a\r\n b\x1b[31m\u202e") == "a b[31m"
    assert clean("@SUM(1)") == "'@SUM(1)" and clean("-1") == "'-1" and len(clean("x" * 999)) == 200
    assert checked({k: v for k, v in GOOD.items() if k != "gpu"}, 1)["gpu"] == ""


def test_the_loopback_is_all_there_is_unless_it_is_opened(site: Server) -> None:
    assert site.url.startswith("http://127.0.0.1:") and len(site.token) >= 32
    assert site._http.server_address[0] == "127.0.0.1" and "--host" in site.advice()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_opened_to_the_network_it_is_https(onnx_file: Path, tmp_path: Path, runtime: Path) -> None:
    with Server([WebModel(onnx_file)], tmp_path / "rows.csv", host="0.0.0.0") as server:
        assert server.url.startswith("https://") and "certificate" in server.advice()
        assert ask(server, "GET", own(server, ""))[0] == 200
        assert ask(server, "GET", "/")[0] == 403
        assert ask(server, "POST", own(server, "row"), json.dumps(GOOD).encode())[0] == 204


def test_no_such_address(onnx_file: Path, tmp_path: Path, runtime: Path) -> None:
    with pytest.raises(StarshiftError, match=r"cannot listen on 192\.0\.2\.1"):
        Server([WebModel(onnx_file)], tmp_path / "rows.csv", host="192.0.2.1")


def test_models_are_files_or_are_exported(onnx_file: Path, small_model: Path, tmp_path: Path) -> None:
    as_it_is, exported = web_models([str(onnx_file), str(small_model)], tmp_path)
    assert as_it_is == WebModel(onnx_file) and exported.path.parent == tmp_path
    facts = exported.facts()
    assert facts["labels"] == ["cat", "dog", "eel"] and facts["trained"]
    other = tmp_path / "model.xml"
    other.write_text("x")
    with pytest.raises(StarshiftError, match="browsers run ONNX files"):
        web_models([str(other)], tmp_path)


def test_the_command_serves_until_it_is_interrupted(
    onnx_file: Path, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def visit(server: Server) -> None:
        assert ask(server, "POST", own(server, "row"), json.dumps(GOOD).encode())[0] == 204
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "wait", visit)
    for words in (["--web", str(onnx_file)], ["web", str(onnx_file)]):
        result = CliRunner().invoke(app, ["bench", *words, "--out", str(tmp_path / "rows.csv")])
        assert result.exit_code == 130 and result.stdout.startswith("http://127.0.0.1:"), result.output
        assert "starnet_s050, wasm, 2 thread(s): 5.25 ms" in result.stderr
    assert len(read_rows(tmp_path / "rows.csv")[1]) == 2


def make_archive(path: Path) -> str:
    """An archive like npm's with small files, and its SHA-512."""
    with tarfile.open(path, "w:gz") as archive:
        for name in (*assets.FILES, "unwanted.js"):
            content = name.encode()
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def test_the_runtime_is_unpacked_from_an_archive_that_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StarshiftError, match=r"no npm here.* npm pack onnxruntime-web@"):
        assets.folder()
    archive = assets.cache() / f"onnxruntime-web-{assets.VERSION}.tgz"
    archive.parent.mkdir()
    integrity = make_archive(archive)
    with pytest.raises(StarshiftError, match="SHA-512"):
        assets.folder()
    assert [p.name for p in assets.cache().iterdir()] == [archive.name]
    monkeypatch.setattr(assets, "INTEGRITY", integrity)
    folder = assets.folder()
    assert sorted(p.name for p in folder.iterdir()) == sorted(assets.FILES)
    archive.unlink()
    assert assets.folder() == folder, "it is kept"


def test_npm_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(StarshiftError, match=r"cannot be fetched \(npm error network\)"):
        assets.folder()

# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser without a window: it loads, answers as PyTorch does, measures, and its row arrives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from starshift.bench import read_rows
from starshift.bench.pareto import html
from starshift.bench.web import Server, WebModel, assets
from starshift.data import load_image
from starshift.models import load_model
from tests.tolerance import assert_close

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
WAIT_S = 90
SEEN = """
const [preprocessing, done] = arguments, canvas = document.querySelector("#shown"), {width, height} = canvas;
const rgba = canvas.getContext("2d").getImageData(0, 0, width, height).data, data = rgba.filter((_, i) => i % 4 < 3);
const image = {height, width, channels: 3, data};
import("./preprocess.js").then(page => done(Array.from(page.normalised(image, preprocessing))));
"""
"""What the network was shown, normalised by the page's own code."""


pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="no Chromium: apt-get install chromium chromium-driver"
)
with_runtime = pytest.mark.skipif(
    assets.kept() is None, reason="ONNX Runtime Web is not in the cache: 'starshift bench --web' fetches it"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=412,900"):
        options.add_argument(argument)
    options.add_argument("--use-fake-device-for-media-stream")  # a camera that shows a test picture
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def text(browser: Any, selector: str) -> str:
    return str(browser.execute_script(f"return document.querySelector('{selector}').textContent"))


def until(browser: Any, condition: Any) -> None:
    """Wait for a condition, and fail at once with what the page says went wrong."""
    from selenium.webdriver.support.ui import WebDriverWait

    def holds(driver: Any) -> Any:
        error = text(driver, "#error")
        assert not error, error
        return condition(driver)

    WebDriverWait(browser, WAIT_S, poll_frequency=0.1).until(holds)


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    """Coarse random colours, with no loss in the file."""
    coarse = np.random.default_rng(sum(size)).integers(0, 256, (7, 7, len(mode)), dtype=np.uint8)
    Image.fromarray(coarse, mode).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@with_runtime
def test_it_answers_as_pytorch_measures_and_sends_the_row(
    browser: Any, onnx_file: Path, small_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    loaded = load_model(small_model)
    with Server([WebModel(onnx_file)], out) as server:
        browser.get(server.url)
        until(browser, lambda driver: "is ready" in text(driver, "#state"))
        assert browser.execute_script("return self.crossOriginIsolated"), "threads need it"
        for size, mode in (((300, 200), "RGB"), ((40, 230), "RGBA"), ((33, 32), "RGB"), ((20, 25), "RGB")):
            file = picture(tmp_path / f"{size[0]}.png", size, mode)
            browser.execute_script("document.querySelector('#answer').replaceChildren()")
            browser.find_element("id", "picture").send_keys(str(file))
            until(browser, lambda driver: driver.find_elements("css selector", "#answer li"))
            lines = browser.find_elements("css selector", "#answer li")
            found = {
                line.find_element("css selector", "span").text: float(line.get_attribute("data-probability"))
                for line in lines
            }
            image = load_image(file, loaded.preprocessing)
            seen = torch.tensor(browser.execute_async_script(SEEN, loaded.preprocessing.to_config()))
            # Its resize differs by a grey level here and there, since that of torch works in fixed point.
            grey = 1 / (255 * torch.tensor(loaded.preprocessing.std).view(3, 1, 1))
            differences = (seen.view(image.shape) - image).abs() / grey
            assert differences.max() < 1.01 and differences.mean() < 0.1, f"{mode} of {size}"
            with torch.inference_mode():
                logits = loaded.model.eval()(image[None])
            assert list(found) == [loaded.classes[i] for i in logits[0].argsort(descending=True)]
            shares = torch.tensor([found[name] for name in loaded.classes])
            assert_close(f"{mode} of {size}", shares, logits.softmax(1)[0], torch.float16)
        browser.find_element("id", "measure").click()
        until(browser, lambda driver: "the row was sent" in text(driver, "#state"))
    (row,) = read_rows(out)[1]
    assert row["target"] == "onnx-web-wasm" and "HeadlessChrome" in row["user_agent"] and int(row["calls"]) >= 20
    assert 0 < float(row["p5_ms"]) <= float(row["latency_ms"]) <= float(row["p95_ms"]) and float(row["load_ms"]) > 0
    errors = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert not errors, errors


RUNTIME = """
export const env = {wasm: {}};
export class Tensor {}
let made = 0;
const session = {
  inputNames: ["x"], outputNames: ["y"], release: async () => {}, run: async () => ({y: {data: new Float32Array(3)}}),
};
export const InferenceSession = {create: async () => {
  if (made++ === 0) await new Promise(resolve => setTimeout(resolve, 1000));
  return session;
}};
"""
"""A runtime that needs a second to start itself, which the first model pays."""


def test_the_time_to_load_is_without_the_start_of_the_runtime(
    browser: Any, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in assets.FILES:
        (folder / name).write_text(RUNTIME)
    monkeypatch.setattr(assets, "folder", lambda: folder)
    with Server([WebModel(onnx_file)], tmp_path / "rows.csv") as server:
        browser.get(server.url)
        until(browser, lambda driver: "is ready" in text(driver, "#state"))
        loaded = re.search(r"loaded in (\d+) ms", text(browser, "#state"))
    assert loaded is not None and int(loaded[1]) < 500


@with_runtime
def test_pictures_that_are_none_and_cameras_allowed_or_not(
    browser: Any, onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    of_file = WebModel.facts
    monkeypatch.setattr(WebModel, "facts", lambda self: {**of_file(self), "trained": False})
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")
    with Server([WebModel(onnx_file)], tmp_path / "rows.csv") as server:
        browser.get(server.url)
        until(browser, lambda driver: "is ready" in text(driver, "#state"))
        browser.find_element("id", "picture").send_keys(str(tmp_path / "broken.jpg"))
        WebDriverWait(browser, WAIT_S).until(lambda driver: "broken.jpg is no picture" in text(driver, "#error"))
        where = server.url.partition(server.token)[0].rstrip("/")
        wait = WebDriverWait(browser, WAIT_S)
        for setting, selector, expected in (("denied", "#error", "not allowed"), ("granted", "#speed", "mean nothing")):
            permission = {"permission": {"name": "camera"}, "setting": setting, "origin": where}
            browser.execute_cdp_cmd("Browser.setPermission", permission)
            browser.find_element("id", "camera").click()
            wait.until(lambda driver, s=selector, e=expected: e in text(driver, s))
        assert text(browser, "#camera") == "Stop the camera" and not text(browser, "#error")
        browser.find_element("id", "camera").click()
        assert text(browser, "#camera") == "Camera"


def test_the_figure_shows_what_is_chosen(browser: Any, tmp_path: Path) -> None:
    common = {"precision": "fp32", "size": "32", "cpu": "one", "top1": "", "published_top1": ""}
    rows = [
        {**common, "model": name, "target": target, "batch": "1", "threads": threads, "latency_ms": latency, **more}
        for name, more in (("known", {"published_top1": "70"}), ("<b>unknown</b>", {}))
        for target, threads, latency in (("onnx", "1", "5"), ("onnx", "2", "3"), ("eager", "1", "20"))
    ]
    page = tmp_path / "deploy.html"
    page.write_text(html(rows))
    browser.get(page.as_uri())

    def points() -> list[Any]:
        return list(browser.find_elements("css selector", "circle"))

    assert len(points()) == 4
    browser.find_element("css selector", "input[name=threads][value='2']").find_element("xpath", "..").click()
    assert len(points()) == 2
    browser.execute_script("document.querySelectorAll('circle')[1].focus()")
    assert "<b>unknown</b>, onnx" in text(browser, "#tip")
    browser.find_element("css selector", "input[name=form][value='onnx']").find_element("xpath", "..").click()
    assert not points() and "Nothing was measured" in text(browser, "#plot")
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]

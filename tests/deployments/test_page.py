"""The page and what it is drawn from; in a real browser where there is one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.front import Front
from deployments.http.app import HttpApp
from deployments.http.asgi import Message
from deployments.http.routes import Call
from deployments.observe.meter import Meter, Snapshot
from deployments.page import site
from orchestrator import keys
from orchestrator.config.access import AccessSettings
from orchestrator.config.serving import ServingSettings
from tests.deployments.browser import Page, browser, needs_browser
from tests.deployments.raws import COLUMNS, SOUNDS
from tests.deployments.served import (
    CASCADE,
    LABELS,
    MIX,
    PRICE,
    RAW_SPECS,
    SMALL,
    WIDE,
    application,
    linear,
    running,
    served,
)

NAMES = ["mix", "cascade", "price"]


def get(app: Any, *paths: str) -> list[httpx.Response]:
    async def test() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return [await http.get(path) for path in paths]

    return asyncio.run(asyncio.wait_for(test(), 20))


def test_the_page_may_run_its_own_parts_and_nothing_else() -> None:
    (reply,) = get(application(ServingSettings()), "/")
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        (part,) = re.findall(rf"<{tag}>(.*?)</{tag}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert policy[name] == f"'sha256-{digest}'"
    assert "http:" not in re.sub(r"http://www\.w3\.org/2000/svg", "", reply.text)
    assert "https:" not in reply.text
    markup = re.sub(r"<(script|style)>.*?</\1>", "", reply.text, flags=re.DOTALL)
    assert not re.search(r"""\s(on\w+|style|src)\s*=\s*["']""", markup)


def test_figures_are_gathered_once_for_all_who_look_at_the_same_time() -> None:
    gathered = 0

    async def others() -> list[Snapshot]:
        nonlocal gathered
        gathered += 1
        await asyncio.sleep(0.05)
        return []

    async def test() -> None:
        found = site.Site([], [], Meter("here"), others)
        await asyncio.gather(*(found.metrics(Call({}, receive, {})) for _ in range(10)))

    async def receive() -> Message:
        raise AssertionError

    asyncio.run(test())
    assert gathered == 1


def test_status_says_what_is_served() -> None:
    (reply,) = get(application(ServingSettings()), "/status")
    assert reply.headers["cache-control"] == "no-store"
    mix, cascade, price = reply.json()["models"]
    assert [mix["name"], cascade["name"], price["name"]] == NAMES
    assert mix["description"] == "weighted_mix(small, wide, deep)"
    assert mix["input"] == {"name": "input", "datatype": "UINT8", "shape": [1, 8, 8]}
    assert mix["classes"] == list("0123456789")
    assert [member["name"] for member in mix["members"]] == ["small", "wide", "deep"]
    assert (mix["stages"], cascade["stages"]) == ([], ["small", "parallel(wide, deep)"])
    assert price["task"] == "regression"
    assert mix["problem"] == ""
    assert mix["answers"] == 0


def test_figures_are_gathered_once_for_many_who_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "FRESH_S", 60.0)
    asked = 0

    async def others() -> list[Any]:
        nonlocal asked
        asked += 1
        return []

    meter, settings = Meter("test"), ServingSettings()
    one = served(PRICE, meter, {member: linear(0, PRICE.signature) for member in (SMALL, WIDE)})
    found = site.Site((PRICE,), (one,), meter, others)
    replies = get(HttpApp(Front((one,), settings), more=found.routes()), *["/status", "/metrics"] * 3)
    assert [reply.status_code for reply in replies] == [200] * 6
    assert asked == 1


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def shown(page: Page, selector: str) -> str:
    text: str = page.run(f"document.querySelector({selector!r})?.textContent ?? ''")
    return text


def opened(page: Page, url: str, *, width: int = 1280, scheme: str = "light") -> None:
    page.look(width=width, height=900, scheme=scheme)
    page.open(url)
    page.until("document.querySelector('#state-text')?.textContent.includes('ready')")


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_draws_in_both_schemes_and_widths(page: Page, width: int, scheme: str) -> None:
    page.complaints.clear()
    with running(application(ServingSettings())) as url:
        opened(page, url, width=width, scheme=scheme)
        assert shown(page, "#state-text") == "all 3 models ready"
        assert page.run("[...document.querySelectorAll('#models input')].map((one) => one.value)") == NAMES
        assert page.run("document.querySelectorAll('.plot svg[aria-label]').length") == 2
        assert page.run("document.querySelectorAll('#members tr').length") == 3
        assert page.run("document.documentElement.scrollWidth") <= width
        assert _contrast(page) >= 4.5
    assert page.complaints == []


def _contrast(page: Page) -> float:
    """The lowest contrast of the page's texts with what is behind them (WCAG 2.1, 1.4.3: at least 4.5)."""
    found: list[list[list[float]]] = page.run(
        """(() => {
          const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
          const behind = (node) => {
            for (let at = node; at; at = at.parentElement) {
              const color = numbers(getComputedStyle(at).backgroundColor);
              if (color.length === 3 || color[3] > 0.99) return color.slice(0, 3);
            }
            return [255, 255, 255];
          };
          const texts = "h1, h2, p, dt, dd, td, th, label, button, small, a, figcaption";
          return [...document.querySelectorAll(texts)]
            .filter((node) => node.offsetParent && node.textContent.trim() && !node.matches(".skip"))
            .map((node) => [numbers(getComputedStyle(node).color).slice(0, 3), behind(node)]);
        })()"""
    )
    assert len(found) > 30

    def luminance(color: list[float]) -> float:
        parts = np.array(color[:3]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    pairs = [sorted((luminance(text), luminance(back))) for text, back in found]
    return min((light + 0.05) / (dark + 0.05) for dark, light in pairs)


@needs_browser
@pytest.mark.slow
def test_the_playground_answers_images_and_rows(page: Page, tmp_path: Path) -> None:
    page.complaints.clear()
    image = np.add.outer(np.arange(8) * 20, np.arange(8) * 8).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "digit.png")
    app = application(ServingSettings())
    with running(app) as url:
        row = {"name": "input", "shape": [1, 1, 8, 8], "datatype": "UINT8", "data": image.ravel().tolist()}
        answer = httpx.post(f"{url}/v2/models/mix/infer", json={"inputs": [row]}).json()
        outputs = {found["name"]: found["data"] for found in answer["outputs"]}
        probability = max(outputs["probabilities"])
        opened(page, url)
        page.files("#file", tmp_path / "digit.png")
        page.until("document.querySelector('.verdict')")
        # An image of the model's own size reaches it pixel by pixel.
        pixels = ", ".join(map(str, image.ravel()))
        assert page.run("document.querySelector('#row').value") == pixels
        verdict = shown(page, ".verdict")
        assert verdict.split()[0] == MIX.signature.classes[outputs["label"][0]]
        assert f"{100 * probability:.1f} % sure" in verdict
        assert "3 of 3 members" in shown(page, "#answer")

        page.run("document.querySelector('input[value=price]').click()")
        assert page.run("document.querySelector('#image-part').hidden") is True
        page.run("document.querySelector('#row').value = '1, 2 3'")
        page.run("document.querySelector('#send').click()")
        assert shown(page, "#row-note") == "3 of 4 numbers"
        assert page.run("document.activeElement.id") == "row"
        page.run("document.querySelector('#row').value = '[1, -2.5, 3e-1, 4]'")
        page.run("document.querySelector('#send').click()")
        page.until("document.querySelector('.verdict')")
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, -2.5, 0.3, 4]}
        value = httpx.post(f"{url}/v2/models/price/infer", json={"inputs": [tensor]}).json()
        assert float(shown(page, ".verdict")) == pytest.approx(value["outputs"][0]["data"][0], rel=6e-3)
    assert page.complaints == []


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_playground_takes_text_sound_and_columns(
    page: Page, tmp_path: Path, width: int, scheme: str
) -> None:
    page.complaints.clear()
    (tmp_path / "tone.wav").write_bytes(SOUNDS[2])

    def choose(name: str) -> None:
        page.run(f"document.querySelector('input[value={name}]').click()")
        parts = [f"{part}-part" for part in ("image", "text", "audio", "table", "row")]
        shown_parts = [part for part in parts if not page.run(f"document.querySelector('#{part}').hidden")]
        assert shown_parts == [f"{name}-part"]

    def verdict(url: str, name: str, body: Any, **more: Any) -> None:
        page.until("document.querySelector('.verdict')")
        answer = httpx.post(f"{url}/v2/models/{name}/predict", **({"json": body} if body else more)).json()
        (row,) = answer["predictions"]
        said = shown(page, ".verdict")
        assert said.startswith(row["class"])
        assert f"{100 * max(row['probabilities']):.1f} % sure" in said
        assert ("Rejected" in shown(page, "#answer")) == row["rejected"]
        assert "3 of 3 members" in shown(page, "#answer")
        assert page.run("document.querySelectorAll('#answer tbody tr').length") == 3
        assert page.run("document.documentElement.scrollWidth") <= width
        assert _contrast(page) >= 4.5

    with running(application(ServingSettings(), RAW_SPECS)) as url:
        opened(page, url, width=width, scheme=scheme)
        choose("text")
        page.run("document.querySelector('#text').value = 'play some <b>jazz</b>'")
        page.run("document.querySelector('#send').click()")
        verdict(url, "text", ["play some <b>jazz</b>"])

        choose("audio")
        page.run("document.querySelector('#send').click()")
        assert shown(page, "#row-note") == "give a sound first"
        page.files("#sound", tmp_path / "tone.wav")
        verdict(url, "audio", None, content=SOUNDS[2], headers={"Content-Type": "audio/wav"})
        assert shown(page, "#sound-text") == "tone.wav, 0.0075 s"

        choose("table")
        fields = "[...document.querySelectorAll('#table-part input')]"
        assert page.run(f"{fields}.map((one) => one.labels[0].textContent)") == [*COLUMNS]
        page.run(f"{fields}.forEach((one, place) => {{ one.value = ['-2.5', 'red', ''][place]; }})")
        page.run("document.querySelector('#send').click()")
        verdict(url, "table", [{"age": -2.5, "color": "red", "hours per week": None}])
    assert page.complaints == []


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_the_playground_names_the_labels_above_a_threshold(page: Page, width: int, scheme: str) -> None:
    with running(application(ServingSettings(), [LABELS])) as url:
        opened(page, url, width=width, scheme=scheme)
        page.complaints.clear()
        row = [0.5, -1.0, 2.0, 0.25]
        page.run(f"document.querySelector('#row').value = '{row}'")
        page.run("document.querySelector('#send').click()")
        page.until("document.querySelector('.verdict')")
        (found,) = httpx.post(f"{url}/predict", json=[row]).json()["predictions"]
        assert shown(page, ".verdict") == (", ".join(found["labels"]) or "none")
        assert page.run("document.querySelectorAll('#answer .bars .num').length") == 3
        assert page.run("document.querySelectorAll('#answer tbody tr').length") == 3
        page.run(
            "(() => { const field = document.querySelector('#answer input'); field.value = '0.01';"
            " field.dispatchEvent(new Event('change')); })()"
        )
        (more,) = httpx.post(f"{url}/predict?threshold=0.01", json=[row]).json()["predictions"]
        assert len(more["labels"]) > len(found["labels"])
        assert shown(page, ".verdict") == ", ".join(more["labels"])
        assert page.run("document.querySelector('#answer input').value") == "0.01"
        assert page.run("document.documentElement.scrollWidth") <= width
        assert _contrast(page) >= 4.5
    assert page.complaints == []


@needs_browser
@pytest.mark.slow
def test_the_microphone_is_heard(page: Page) -> None:
    """The browser's made-up microphone beeps once a second."""
    with running(application(ServingSettings(), RAW_SPECS)) as url:
        opened(page, url)
        page.complaints.clear()  # the page of the test before was still polling
        page.run("document.querySelector('input[value=audio]').click()")
        page.run("document.querySelector('#record').click()")
        page.until("document.querySelector('#record').getAttribute('aria-pressed') === 'true'")
        time.sleep(1.5)
        page.run("document.querySelector('#record').click()")
        page.until("document.querySelector('.verdict')")
        assert shown(page, "#sound-text").startswith("Recording, ")
        assert float(page.run("document.querySelector('#wave').dataset.seconds")) > 0.1
        assert shown(page, "#record") == "Record with the microphone"
    assert page.complaints == []


@needs_browser
@pytest.mark.slow
def test_traffic_members_and_exits_are_live(page: Page) -> None:
    app = application(ServingSettings(), (CASCADE, PRICE), deep={"fails": 1.0})
    rows = np.random.default_rng(0).integers(0, 256, (16, 1, 8, 8))
    tensor = {"name": "input", "shape": [16, 1, 8, 8], "datatype": "UINT8", "data": rows.ravel().tolist()}
    with running(app) as url:
        opened(page, url)
        for _ in range(6):
            assert httpx.post(f"{url}/v2/models/cascade/infer", json={"inputs": [tensor]}).status_code == 200
        page.until("/[1-9]/.test(document.querySelector('#tiles dd').textContent)")
        tiles = page.run("[...document.querySelectorAll('#tiles dd')].map((one) => one.textContent)")
        assert tiles[1].endswith(" ms")
        assert tiles[3:5] == ["0.0 %", "100.0 %"]
        states = page.run(
            "[...document.querySelectorAll('#members tr')].map((one) => one.cells[1].textContent)"
        )
        assert states == ["answers", "answers", "fails"]
        first, second = re.findall(r"([\d.]+) %", shown(page, "#exits-key"))
        assert float(first) + float(second) == pytest.approx(100, abs=0.2)
        assert float(second) > 0
        assert "stage 2, parallel(wide, deep)" in page.run(
            "document.querySelector('#exits').getAttribute('aria-label')"
        )


@needs_browser
@pytest.mark.slow
def test_the_keyboard_reaches_everything(page: Page) -> None:
    with running(application(ServingSettings())) as url:
        opened(page, url)
        reached = []
        for _ in range(12):
            page.press("Tab")
            reached.append(
                page.run(
                    "(() => { const at = document.activeElement;"
                    " return at.id || at.value || at.className || at.textContent; })()"
                )
            )
        assert reached[:7] == ["skip", "mix", "scroll", "file", "row", "send", "random"]
        page.run("document.querySelector('input[value=mix]').focus()")
        page.press("ArrowRight")
        page.until("document.querySelector('#about').textContent.startsWith('sequential')")
        page.run("document.querySelector('#random').focus()")
        page.press("Enter")
        page.until("document.querySelector('.verdict')")
        live = page.run("document.querySelector('#answer').getAttribute('aria-live')")
        assert live == "polite"
        names = page.run(
            "[...document.querySelectorAll('input, textarea, button')].filter((one) => one.offsetParent)"
            ".map((one) => one.labels?.[0]?.textContent.trim() || one.textContent.trim())"
        )
        assert all(names), names


@needs_browser
@pytest.mark.slow
def test_a_key_is_asked_for_and_used(page: Page, tmp_path: Path) -> None:
    token = keys.add(tmp_path / "keys", "ann", "data")
    settings = ServingSettings(access=AccessSettings(keys=str(tmp_path / "keys")))
    with running(application(settings)) as url:
        page.open(url)
        page.until("document.querySelector('#key-form')?.hidden === false")
        assert shown(page, "#state-text") == "an API key is needed"
        assert page.run("document.querySelector('#shown').hidden") is True
        page.run(f"document.querySelector('#key').value = {token!r}")
        page.run("document.querySelector('#key-form button').click()")
        page.until("document.querySelector('#shown').hidden === false")
        page.run("document.querySelector('#random').click()")
        page.until("document.querySelector('.verdict')")


@needs_browser
@pytest.mark.slow
def test_a_server_that_went_away_is_told(page: Page) -> None:
    with running(application(ServingSettings())) as url:
        opened(page, url)
    page.run("document.querySelector('#random').click()")
    page.until("document.querySelector('#answer').textContent === 'The server does not answer.'")
    page.until("document.querySelector('#state-text').textContent === 'the server does not answer'")

"""The page in a browser, driven as a visitor would: by mouse, by keyboard, on a phone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.chromium import CHROMEDRIVER, CHROMIUM, OPTIONS
from tests.support.running_app import portrait

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(CHROMEDRIVER is None or CHROMIUM is None, reason="chromium and chromedriver are not on PATH"),
]


class Visitor:
    """A browser on the page."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, fragment: str = "") -> None:
        self.driver.get("about:blank")  # else only the fragment would change
        self.driver.get(self.address + fragment)
        self.until(lambda: self.script("return document.body.dataset.ready") == "true")

    def __getitem__(self, id_: str) -> WebElement:
        return self.driver.find_element(By.ID, id_)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, holds: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 60, poll_frequency=0.1).until(lambda _: holds())

    def until_done(self) -> None:
        self.until(lambda: self["status"].text.startswith("Done in"))

    def until_message(self) -> str:
        return self.until(lambda: self["message"].text)

    def legend(self) -> list[str]:
        return self.script("return [...document.querySelectorAll('#legend b')].map((name) => name.textContent)")

    def chips(self) -> list[str]:
        return self.script("return [...document.querySelectorAll('#chips li')].map((chip) => chip.title)")

    def mean_difference(self) -> float:
        """How far the canvas is from the class colours, where an answer of the server has the label: mean over pixels
        of classes away from edges, 0 to 255."""
        return self.driver.execute_async_script(
            """
            const done = arguments[0];
            (async () => {
              const form = new FormData();
              form.set("image", document.getElementById("file").files[0]);
              form.set("words", "dog,boat");
              const answer = await (await fetch("/api/segment", { method: "POST", body: form })).json();
              const labels = new Image();
              labels.src = answer.labels;
              await labels.decode();
              const { width, height } = document.getElementById("canvas");
              const plain = new OffscreenCanvas(width, height).getContext("2d");
              plain.drawImage(labels, 0, 0);
              const expected = plain.getImageData(0, 0, width, height).data;
              const shown = document.getElementById("canvas").getContext("2d").getImageData(0, 0, width, height).data;
              let sum = 0, count = 0;
              for (let at = 0; at < expected.length; at += 4) {
                const same = (other) => [0, 1, 2].every((c) => expected[at + c] === expected[other + c]);
                const isClass = answer.colours.slice(1).some((rgb) => rgb.every((v, c) => v === expected[at + c]));
                if (!isClass || !same(at + 4) || !same(at + 4 * width)) continue;
                for (let c = 0; c < 3; c++) sum += Math.abs(expected[at + c] - shown[at + c]);
                count += 3;
              }
              done(count > 1e5 ? sum / count : NaN);
            })();
            """
        )


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for option in (*OPTIONS, "--window-size=1280,900", f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))  # a given driver is not looked for
    yield started
    started.quit()


@pytest.fixture
def visitor(driver: webdriver.Chrome, address: str) -> Iterator[Visitor]:
    driver.get_log("browser")  # type: ignore[attr-defined]
    page = Visitor(driver, address)
    page.open()
    yield page
    severe = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]  # type: ignore[attr-defined]
    # A refused request is an error in the browser's own log too.
    assert [line for line in severe if "/api/segment - Failed to load resource" not in line] == []


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    portrait().save(tmp_path / "<i>photo.png")
    return tmp_path / "<i>photo.png"


def test_upload_words_masks(visitor: Visitor, photo: Path) -> None:
    visitor["file"].send_keys(str(photo))
    visitor.until(lambda: visitor["canvas"].is_displayed())
    assert visitor["chosen"].text == "<i>photo.png"
    visitor["word"].send_keys("dog, boat")
    visitor["run"].click()
    visitor.until_done()
    assert visitor.chips() == ["dog", "boat"]
    assert sorted(visitor.legend()) == ["background", "boat", "dog"]
    visitor.script("const o = document.getElementById('opacity'); o.value = 100; o.dispatchEvent(new Event('input'));")
    assert visitor.mean_difference() < 1.5
    visitor.script("const o = document.getElementById('opacity'); o.value = 0; o.dispatchEvent(new Event('input'));")
    assert visitor.mean_difference() > 20, "the picture alone is something else"

    assert len(visitor["scroll"].find_elements(By.CSS_SELECTOR, "tbody tr")) == 4
    assert len(visitor["scroll"].find_elements(By.CSS_SELECTOR, "thead th")) == 3
    visitor["tab-stage-1"].click()
    assert len(visitor.legend()) == 8
    assert "own image is not in it" in visitor["share"].text and "example" not in visitor.driver.current_url
    assert visitor["license"].text == "Weights: CC BY 4.0 <of the tests>"


def test_the_legend_lights_a_class_up(visitor: Visitor) -> None:
    visitor.open("#words=dog,boat&example=1&opacity=80")
    visitor.until_done()
    before = visitor.script("return document.getElementById('canvas').toDataURL()")
    button = visitor["legend"].find_elements(By.TAG_NAME, "button")[0]
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert visitor.script("return document.getElementById('canvas').toDataURL()") != before
    button.click()
    visitor.script("document.activeElement.blur()")
    ActionChains(visitor.driver).move_to_element(visitor["word"]).perform()
    assert visitor.script("return document.getElementById('canvas').toDataURL()") == before


def test_a_wrong_file_and_wrong_words_are_said_on_the_page(visitor: Visitor, tmp_path: Path, photo: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    visitor["run"].click()
    assert "Choose an image first" in visitor.until_message()
    visitor["file"].send_keys(str(tmp_path / "notes.png"))
    visitor.until(lambda: "notes.png cannot be read as a picture" in visitor["message"].text)
    visitor["word"].send_keys("dog", Keys.ENTER)
    visitor.until(lambda: "not a whole JPEG" in visitor["message"].text)
    visitor["file"].send_keys(str(photo))
    visitor.until_done()
    assert not visitor["message"].is_displayed()
    visitor["word"].send_keys("Dog", Keys.ENTER)
    visitor.until(lambda: "give each word once" in visitor["message"].text)
    (tmp_path / "large.png").write_bytes(b"x" * 2_100_000)
    visitor["file"].send_keys(str(tmp_path / "large.png"))
    visitor.until(lambda: "large.png has more than 2 MB" in visitor["message"].text)


def test_the_address_restores_the_page(visitor: Visitor) -> None:
    visitor.open("#words=dog,hot+dog&background=0&threshold=0.3&view=stage-2&opacity=40&example=1")
    visitor.until_done()
    for _ in range(2):
        assert visitor.chips() == ["dog", "hot dog"]
        assert not visitor["background"].is_selected() and not visitor["threshold-box"].is_displayed()
        assert visitor["tab-stage-2"].get_attribute("aria-selected") == "true"
        assert visitor["opacity"].get_attribute("value") == "40"
        assert len(visitor.legend()) == 4
        pressed = visitor["examples"].find_elements(By.CSS_SELECTOR, "[aria-pressed=true] img")
        assert [image.get_attribute("alt") for image in pressed] == ["second"]
        visitor.driver.refresh()
        visitor.until(lambda: visitor.script("return document.body.dataset.ready") == "true")
        visitor.until_done()
    visitor["background"].send_keys(Keys.SPACE)
    visitor.until(lambda: "background=1" in visitor.driver.current_url)
    assert visitor["threshold-value"].text == "0.3"


def test_by_keyboard_alone(visitor: Visitor) -> None:
    def focused() -> str:
        return visitor.script("const e = document.activeElement; return e.id || e.title || e.textContent.trim()")

    def press(*keys: str) -> None:
        ActionChains(visitor.driver).send_keys(*keys).perform()

    order = []
    for _ in range(5):
        press(Keys.TAB)
        order.append(focused())
    assert order == ["Skip to the result", "file", "<b>first", "second", "word"]
    ActionChains(visitor.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    press(Keys.ENTER)  # the example
    visitor.until(lambda: focused() == "word")
    press("dog, boat", Keys.ENTER)
    visitor.until_done()
    assert visitor.chips() == ["dog", "boat"]
    assert visitor.script("return getComputedStyle(document.getElementById('words')).outlineStyle") == "solid"
    press(Keys.BACKSPACE)
    visitor.until(lambda: visitor.legend() and "boat" not in visitor.legend())
    visitor.script("document.querySelector('#tabs [aria-selected=true]').focus()")
    press(Keys.ARROW_RIGHT)
    assert focused() == "tab-stage-1" and len(visitor.legend()) == 8
    press(Keys.END)
    assert focused() == "tab-image" and visitor.legend() == []


def test_every_control_has_a_name_and_messages_are_announced(visitor: Visitor) -> None:
    visitor.open("#words=dog,boat&example=1")
    visitor.until_done()
    for control in visitor.driver.find_elements(By.CSS_SELECTOR, "input, button"):
        shown = visitor.script("return arguments[0].offsetParent !== null", control)
        assert control.accessible_name or not shown, control.get_attribute("outerHTML")
    assert visitor["message"].get_attribute("role") == "alert"
    assert visitor["status"].get_attribute("aria-live") == "polite"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_scrolls_sideways(visitor: Visitor, scheme: str) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        many = ",".join([f"word{index}" for index in range(30)] + ["averylongwordwithoutanyspace" * 3])
        for fragment in ("", f"#words={many}&example=0&view=words", "#words=dog,boat&example=1&view=stage-1"):
            visitor.open(fragment)
            if fragment:
                visitor.until(lambda: visitor["status"].text or visitor["message"].text)
            assert visitor.script("return [document.documentElement.scrollWidth, innerWidth]") == [360, 360]
        background = visitor.script("return getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(value) for value in background.removeprefix("rgb(").removesuffix(")").split(",")) / 3
        assert (brightness > 200) == (scheme == "light")
    finally:
        visitor.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        visitor.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})

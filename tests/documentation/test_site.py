"""The documentation as a site: built without a warning, and whole without a network."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.chromium import CHROMEDRIVER, CHROMIUM, OPTIONS
from tests.support.pages import ROOT

ELSEWHERE = ("http:", "https:", "//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Fails with what MkDocs has to say if it warns of anything."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", "infra/docs/mkdocs.yml"]
    command += ["--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # of the future of MkDocs itself
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, (
        f"{done.stderr}\nA new page needs a place under `nav` in infra/docs/mkdocs.yml."
    )
    return folder


def test_every_page_and_what_it_leads_to_is_in_the_site(site: Path) -> None:
    pages = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if not (site / page).exists()]
    assert "Keep a Changelog" in (site / "repository/CHANGELOG.html").read_text()
    clusters = (site / "clusters.html").read_text()
    assert 'href="repository/ray-cluster.yaml.html"' in clusters
    assert "idle_timeout_minutes" in (site / "repository/ray-cluster.yaml.html").read_text()
    assert 'src="../pictures/demo_seen.png"' in (site / "repository/index.html").read_text()


def test_the_api_has_every_public_module_and_no_private_name(site: Path) -> None:
    names = [
        name
        for page in (site / "api").glob("*.html")
        for name in re.findall(r'id="(groupvit[\w.]*)"', page.read_text())
    ]
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "groupvit").rglob("[!_]*.py")]
    assert {".".join(file.parts) for file in files} <= set(names)
    assert {"groupvit.config.ModelConfig.embedding_dim", "groupvit.tokenizer.Tokenizer.__call__"} <= set(names)
    assert not [name for name in names if re.search(r"\._(?!_)", name)]
    assert "Args:" not in (site / "api/weights.html").read_text()  # the sections of docstrings are rendered


class Fetched(HTMLParser):
    """What a browser fetches for a page by itself: everything but links that are clicked."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in ("src", "srcset", "poster", "data") or (name == "href" and tag not in ("a", "base"))):
                self.addresses.append(value)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = []
    for page in site.rglob("*.html"):
        parser = Fetched()
        parser.feed(page.read_text())
        fetched += [(page.name, address) for address in parser.addresses if address.startswith(ELSEWHERE)]
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", sheet.read_text())
        fetched += [(sheet.name, address) for address in addresses if address.strip().startswith(ELSEWHERE)]
    assert not fetched


def test_the_figures_are_those_that_are_drawn(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "infra/docs/draw_figures.py", tmp_path], check=True)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 3
    assert not [file.name for file in drawn if file.read_text() != (ROOT / "docs/pictures" / file.name).read_text()]


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site on a port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.browser
@pytest.mark.skipif(CHROMEDRIVER is None or CHROMIUM is None, reason="chromium and chromedriver are not on PATH")
def test_it_works_where_no_name_resolves(address: str, tmp_path: Path) -> None:
    """Pages, their pictures and the search, in a browser that reaches this machine alone."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for option in (*OPTIONS, "--window-size=1280,900", rules, f"--user-data-dir={tmp_path}"):
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    try:
        for page in ("index.html", "concepts.html", "evaluation.html", "api/model.html"):
            driver.get(address + page)
            fetched = driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
            assert fetched and not [name for name in fetched if not name.startswith(address)]
            broken = "return [...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
            assert not driver.execute_script(broken)
        driver.execute_script("document.querySelector('[data-md-component=search-query]').focus()")
        driver.find_element(By.CSS_SELECTOR, "[data-md-component=search-query]").send_keys("straight-through")
        # Read in one call: the page replaces its results while it searches.
        addresses = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.href)"
        WebDriverWait(driver, 60).until(
            lambda _: any("concepts.html" in found for found in driver.execute_script(addresses))
        )
    finally:
        driver.quit()

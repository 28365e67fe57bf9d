"""MLflow's pages of a sweep in headless Chromium: what they show, and screenshots.

python -m tests.support.sweep_pages http://localhost:5000 PARENT_RUN_ID docs/pictures
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.chromium import CHROMEDRIVER, CHROMIUM, OPTIONS

_CLOSE_ASSISTANT = "[data-component-id='mlflow.assistant.chat_panel.close']"
_DESCRIPTION = "//table[.//th[normalize-space()='rank']]"


class SweepPages:
    """The pages of a parent run and of its experiment."""

    def __init__(self, driver: webdriver.Chrome, uri: str, run_id: str) -> None:
        self.driver = driver
        run = MlflowClient(uri).get_run(run_id)
        self._name, self._experiment = run.info.run_name or "", run.info.experiment_id
        self._runs = f"{uri}/#/experiments/{self._experiment}/runs"
        self._run_id = run_id
        driver.get(uri)
        self._click_when_there("//div[@role='button'][normalize-space()='Model training']")

    def open_overview(self) -> None:
        """The run's overview, scrolled to its description, which is the leaderboard."""
        self._open(f"{self._runs}/{self._run_id}")
        self.until(lambda: self.driver.find_elements(By.XPATH, _DESCRIPTION))
        self.driver.execute_script(
            "arguments[0].scrollIntoView({block: 'center'})", self.driver.find_element(By.XPATH, _DESCRIPTION)
        )

    def open_artifact(self, path: str) -> None:
        self._open(f"{self._runs}/{self._run_id}/artifacts/{path}")
        self.until(lambda: f"artifacts/{path}" in self.text())

    def open_run_list(self, *columns: str) -> None:
        """The experiment's runs, with the sweep's tree unfolded, and these columns, like metrics.`miou`."""
        self._open(self._runs)
        self.until(lambda: self._name in self.text())
        if columns:  # what clicks in the menu of columns leave behind
            self.driver.execute_script(
                """
                const key = `MLflowLocalStorage-1.1-ExperimentPage-["${arguments[0]}"]-ReactComponentState`;
                const state = { ...JSON.parse(localStorage.getItem(key)), selectedColumns: arguments[1] };
                localStorage.setItem(key, JSON.stringify(state));
                """,
                self._experiment,
                list(columns),
            )
            self._open(self._runs)
        self._click_when_there(f"//div[@role='row'][contains(., '{self._name}')]//button[.//*[name()='svg']]")

    def listed_runs(self) -> list[str]:
        """Names of the runs in the list, the sweep's own first."""
        found = self.driver.find_elements(By.CSS_SELECTOR, "[role=row] a[href*='/runs/']")
        return [link.text for link in found if link.text]

    def table_rows(self) -> list[list[str]]:
        """Cells of the table that an artifact is shown as, without those that are scrolled away."""
        rows = self.driver.find_elements(By.CSS_SELECTOR, "[role=row]")
        return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "[role=cell]")] for row in rows]

    def shown_picture(self) -> tuple[int, int]:
        """Width and height in pixels of the file that is shown as a picture; waits for it."""
        script = (
            "const found = [...document.images].filter((image) => image.complete && image.naturalWidth > 300);"
            "return found.length ? [found[0].naturalWidth, found[0].naturalHeight] : null;"
        )
        width, height = self.until(lambda: self.driver.execute_script(script))
        return width, height

    def text(self) -> str:
        return self.driver.find_element(By.TAG_NAME, "body").text

    def until(self, holds: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 90, poll_frequency=0.3).until(lambda _: holds())

    def save(self, file: Path) -> None:
        time.sleep(1.5)  # what is drawn slides in
        for button in self.driver.find_elements(By.CSS_SELECTOR, _CLOSE_ASSISTANT):
            button.click()
            time.sleep(1.5)
        self.driver.save_screenshot(str(file))

    def _click_when_there(self, xpath: str) -> None:
        self.until(lambda: self.driver.find_elements(By.XPATH, xpath))
        self.driver.find_element(By.XPATH, xpath).click()

    def _open(self, address: str) -> None:
        self.driver.get("about:blank")  # else only the fragment would change
        self.driver.get(address)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for option in (*OPTIONS, "--window-size=1400,860", f"--user-data-dir={profile}"):
            options.add_argument(option)
        driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def photograph(uri: str, run_id: str, folder: Path) -> None:
    """Saves mlflow_sweep_*.png."""
    with browser() as driver:
        pages = SweepPages(driver, uri, run_id)
        pages.open_overview()
        pages.save(folder / "mlflow_sweep_overview.png")
        pages.open_artifact("leaderboard.json")
        pages.until(pages.table_rows)
        pages.save(folder / "mlflow_sweep_leaderboard.png")
        pages.open_artifact("report/parallel_coordinates.png")
        pages.shown_picture()
        pages.save(folder / "mlflow_sweep_parallel.png")
        pages.open_run_list("metrics.`evaluation/miou`", "metrics.`best_miou`", "tags.`groupvit.rung`")
        pages.until(lambda: len(pages.listed_runs()) > 1)
        pages.save(folder / "mlflow_sweep_tree.png")


if __name__ == "__main__":
    photograph(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

"""Debian's Chromium without a window, driven by selenium, with the audits of axe."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Any

from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.data import data_file, need_data
from tests.needed import need

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

AXE = "axe/axe.min.js"
PROGRAMS = ("chromium", "chromedriver")
#: Seconds for a page to load.
PATIENCE = 60


class Browser:
    """A browser with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        missing = [each for each in PROGRAMS if shutil.which(each) is None]
        need(f"not installed: {', '.join(missing)}" if missing else None)
        self._axe = need_data(data_file(AXE), AXE).read_text("utf-8")
        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        # As root it runs without its sandbox only; its first-run pages are not wanted.
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = Chrome(options, Service(shutil.which("chromedriver")))
        self.driver.set_page_load_timeout(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.driver.quit()

    def resize(self, width: int, height: int) -> None:
        """Set the size of the window; headless Chromium has no frame."""
        self.driver.set_window_size(width, height)

    def darken(self, *, dark: bool) -> None:
        """Prefer dark colours, or light ones."""
        scheme = "dark" if dark else "light"
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def press(self, *keys: str) -> str:
        """Type keys at the place of the focus; return the text of the element that has it then."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)
        return str(self.run("return document.activeElement.innerText"))

    @property
    def address(self) -> str:
        """The address of the page."""
        return str(self.driver.current_url)

    def go(self, address: str) -> None:
        """Load a page."""
        self.driver.get(address)

    def run(self, script: str, *values: Any) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(script, *values)

    def text(self, selector: str = "body") -> str:
        """Return the visible text of an element."""
        return str(self.run("return document.querySelector(arguments[0]).innerText", selector))

    def wait(self, text: str, selector: str = "body") -> str:
        """Wait until an element shows a text; return all that it shows.

        A click may return before the next page is loaded.
        """
        until = time.monotonic() + PATIENCE
        while True:
            try:
                shown = self.text(selector)
            except WebDriverException:  # between two pages
                shown = ""
            if text in shown:
                return shown
            assert time.monotonic() < until, f"no {text!r} in {shown!r}"
            time.sleep(0.05)

    def type(self, name: str, text: str) -> None:
        """Type into the field of a form."""
        self.driver.find_element("name", name).send_keys(text)

    def click(self, text: str) -> None:
        """Click on a link or button with this text."""
        found = self.run(
            "const [text] = arguments;"
            "return [...document.querySelectorAll('a, button, summary')]"
            ".filter(each => each.textContent.trim() === text)",
            text,
        )
        assert found, f"no link or button {text!r} in {self.text()}"
        found[0].click()

    def violations(self) -> list[str]:
        """Return what axe finds: rules of WCAG 2.1 A and AA that the page breaks."""
        self.run(self._axe)
        found = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "const rules = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'];"
            "axe.run({runOnly: rules}).then("
            "result => done(result.violations), error => done([{id: String(error), nodes: []}]))"
        )
        return [
            f"{each['id']}: {', '.join(node['html'] for node in each['nodes'])}" for each in found
        ]

    def errors(self) -> list[str]:
        """Return the errors and warnings of the console since the last call."""
        levels = {"SEVERE", "WARNING"}
        logged: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [each["message"] for each in logged if each["level"] in levels]

"""The first two notebooks in JupyterLab, as a person sees them in Chromium.

It needs `pip install -e '.[browser]'` and Chromium from the system's packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from small_notebooks import FOLDER, SMALL, small

CHROMIUM = shutil.which("chromium")
NAMES = ("01_quickstart", "02_finding_a_learning_rate")
#: Seconds for a server to start, and for a notebook to run.
START, RUN = 120, 300

#: The mark of a kernel that waits for work.
READY = ".jp-Notebook-ExecutionIndicator[data-status='idle']"
#: Whether every cell of code has run, or one has failed.
HAS_RUN = """() => {
    if (document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')) return true;
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    return prompts.length > 0 && prompts.every(each => /\\[\\d+\\]/.test(each.innerText));
}"""
#: Whether so many cells of code are there.
ARE_THERE = "n => document.querySelectorAll('.jp-CodeCell').length >= n"
#: Whether a cell is run, or waits for its turn.
IS_AT_WORK = """() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]
    .some(each => each.innerText.includes('[*]'))"""
#: How many pictures are drawn, none of them empty.
PICTURES = """() => [...document.querySelectorAll('.jp-OutputArea img')]
    .filter(each => each.naturalWidth > 300 && each.naturalHeight > 100).length"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium from the system's packages"),
    pytest.mark.filterwarnings("ignore"),  # of Playwright's event loop
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start JupyterLab on small copies of the notebooks; give its address."""
    pytest.importorskip("jupyterlab")
    home = tmp_path_factory.mktemp("lab")
    for name in NAMES:
        nbformat.write(small(name), home / f"{name}.ipynb")
    settings = home / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    # Cells that are out of sight are in the page too.
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent), "HOME": str(home)}
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
    environment |= {"JUPYTER_RUNTIME_DIR": str(home / "runtime")}
    environment.pop("MPLBACKEND", None)  # the kernel draws inline
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += ["--IdentityProvider.token=", "--ServerApp.root_dir=."]
    with (home / "said.txt").open("w") as said:
        lab = subprocess.Popen(command, cwd=home, env=environment, stdout=said, stderr=said)
    try:
        yield _address(home, lab)
    finally:
        lab.terminate()
        lab.wait(30)


def _address(home: Path, lab: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + START
    while time.monotonic() < until and lab.poll() is None:
        for file in (home / "runtime").glob("jpserver-*.json"):
            return str(json.loads(file.read_text())["url"])
        time.sleep(0.2)
    raise RuntimeError((home / "said.txt").read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--disable-dev-shm-usage"]  # of which containers have little
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=options)


def run_all(page: Any, n_cells: int) -> None:
    """Have all cells run: asked when all are there, and again where nothing has come of it."""
    page.wait_for_function(ARE_THERE, arg=n_cells, timeout=START * 1000)
    until = time.monotonic() + RUN
    while not page.evaluate(HAS_RUN) and time.monotonic() < until:
        if not page.evaluate(IS_AT_WORK):
            page.keyboard.press("Escape")  # from the dialog that says that the kernel starts
            page.wait_for_selector(READY, state="attached", timeout=START * 1000)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)  # which lets the page work, as a sleep would not


@pytest.mark.parametrize("name", NAMES)
def test_bars_tables_and_plots_are_seen_in_jupyterlab(
    name: str, server: str, browser: Any, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{server}lab/workspaces/{name}/tree/{name}.ipynb")
    run_all(page, sum(cell.cell_type == "code" for cell in small(name).cells))
    seen = page.inner_text(".jp-Notebook")
    assert SMALL[name][1] in seen
    assert "Traceback" not in seen
    assert page.locator(".jp-OutputArea table").count() > 0 or "epoch" not in seen
    assert page.locator(".jp-OutputArea progress:visible").count() == 0
    assert page.evaluate(PICTURES) == _pictures(name)
    shot = page.locator(".jp-Notebook").screenshot(path=tmp_path / f"{name}.png")
    assert len(shot) > 50_000  # a page that is not empty
    page.close()


def _pictures(name: str) -> int:
    """Return how many pictures the notebook was committed with."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)

"""The first notebook in JupyterLab, as a person runs it: tables and plots are there."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "nbs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
TOKEN = "for-this-test"
NAME = "01_quickstart"
#: Of the table of a fit, and of values that cells give.
WORDS = ("valid_loss", "images are wrong", "best accuracy")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start JupyterLab over a copy of the notebook; return its address."""
    pytest.importorskip("jupyterlab", reason="needs JupyterLab")
    pytest.importorskip("playwright", reason="needs Playwright, which speaks to the browser")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    from started import free_port

    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    notebook = nbformat.read(FOLDER / f"{NAME}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / f"{NAME}.ipynb")
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.port_retries=0"]
    search = os.pathsep.join([str(FOLDER.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)
    server = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}").close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def test_the_quickstart_runs_in_jupyterlab_and_shows_its_tables_and_plots(
    lab: str, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 20_000})
        page.goto(f"{lab}/lab/tree/{NAME}.ipynb?token={TOKEN}", timeout=120_000)
        page.locator(".jp-CodeCell").first.wait_for(timeout=120_000)
        # What is to run before the kernel answers is lost.
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").wait_for(timeout=60_000)
        page.locator(".lm-MenuBar-itemLabel").get_by_text("Run", exact=True).click()
        page.locator("[data-command='runmenu:run-all']").click()
        prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
        page.wait_for_function(
            f"() => {prompts}.every(each => /[0-9]/.test(each.textContent))", timeout=300_000
        )
        outputs = page.locator(".jp-OutputArea-output")
        text = " ".join(outputs.all_inner_texts())
        assert [word for word in WORDS if word not in text] == []
        assert "Traceback" not in text
        assert page.locator(".jp-OutputArea-output img").count() >= 4
        page.screenshot(path=tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 50_000
        browser.close()

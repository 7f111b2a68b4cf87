"""The notebooks run from top to bottom, and were committed with their outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from small_notebooks import FOLDER, SMALL, small

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

#: Those that read real data.
OF_DATA = ("04_cifar10", "07_detect_digits")


def test_every_notebook_is_run() -> None:
    assert sorted(SMALL) == [path.stem for path in NOTEBOOKS]


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: NotebookNode) -> str:
    """Return all text that the cells gave."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    texts = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs]
    return "\n".join(texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_was_committed_executed_in_order_and_without_errors(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_says_first_what_one_can_do_after_it_and_has_one_cell_of_parameters(
    path: Path,
) -> None:
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "fter this page you" in first.source or path.stem == "01_quickstart"
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1


def test_every_link_of_a_notebook_to_another_one_leads_somewhere() -> None:
    import re

    links = [
        (path.stem, link)
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
        for link in re.findall(r"\]\(([^)#:]+\.ipynb)\)", cell.source)
    ]
    assert [link for link in links if not (FOLDER / link[1]).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.data) if name in OF_DATA else name for name in SMALL],
)
def test_the_notebook_runs_from_top_to_bottom_on_small_settings(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if name in OF_DATA and not os.environ.get("ONECYCLE_DATA"):
        pytest.skip("needs the real data sets in $ONECYCLE_DATA")
    notebook = small(name)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws inline
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the tests beside this one have the other cores
    # The kernel stands elsewhere, and finds the package where this test found it.
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=os.pathsep)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    assert SMALL[name][1] in printed(notebook)

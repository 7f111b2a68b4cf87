"""The notebooks run from top to bottom, and were committed with their outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent.parent / "nbs"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

#: What the cell of parameters is followed by, and words that must then be among the outputs.
SMALL = {
    "01_quickstart": ("epochs = 1", "images are wrong"),
    "02_finding_a_learning_rate": ("peaks, seeds = [1e-3, 1e-1], [0]", "cycles of 50 updates; "),
    "03_schedules": ("steps = 60", "momentum 0 became 0.95"),
    "04_cifar10": (
        "seeds, updates, sizes, rates = [0], 20, [200, 400], [0.03, 0.1]",
        "400 images: steps ",
    ),
    "05_writing_callbacks": ("epochs = 1", "Forgetful | rule broken"),
    "06_super_convergence_or_not": ("updates, seeds = 60, [0, 1]", "super-convergence: "),
    "07_detect_digits": ("n_train, n_valid, epochs = 200, 50, 1", "digits on 50 images never seen"),
    "08_ensembles_and_averages": ("seeds, epochs, images = [0], 1, 100", "eight shifted views"),
    "09_fine_tuning": ("seeds, epochs, examples = [0], 2, [2, 5]", "fine_tune          5 of each"),
    "10_stop_and_resume": ("epochs = 5", "the records are the same text: True"),
    "11_own_data": ("epochs = 1", "each sample would be compared with every other"),
    "12_several_processes": ("epochs = 1", "of 23 updates in two processes, ended after 23 in one"),
}
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
    settings, words = SMALL[name]
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    at = next(
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    )
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(settings))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws inline
    # The kernel stands elsewhere, and finds the package where this test found it.
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent), prepend=os.pathsep)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    assert words in printed(notebook)

"""The table of models side by side, its verdicts, and the report that shows it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from planish import Artifact, Measurement
from planish.charts import bars
from planish.compare import NOT_MEASURED, Entry, Row, compare, verdict
from planish.record import Record
from planish.report import write_report
from planish.result import cells, columns, metric, text_table
from planish.timing import Timing
from planish.weights import Counts


def models() -> Any:
    """planish-fake's perceptron; importable once the plugin is installed, which is for the time of a test."""
    from planish_fake import models

    return models


DENSE = Counts(1000, 1000, {})
HALF = Counts(1000, 500, {})
SMALL = Counts(500, 500, {})


@pytest.mark.parametrize(
    ("ratio", "counts", "words"),
    [
        (None, DENSE, "reference"),
        ((1.5, 1.4, 1.6), DENSE, "faster"),
        ((1.5, 1.4, 1.6), HALF, "faster"),
        ((1.2, 1.04, 1.6), DENSE, "same speed"),
        ((1.0, 0.99, 1.01), HALF, "masked only"),
        ((1.2, 1.04, 1.6), HALF, "masked only"),
        ((0.5, 0.4, 0.6), HALF, "masked only"),
        ((0.5, 0.4, 0.6), DENSE, "slower"),
        ((0.5, 0.4, 0.6), SMALL, "slower"),
        ((1.0, 0.99, 1.01), SMALL, "same speed"),
        ((0.9, 0.8, 0.96), DENSE, "same speed"),
        ((1.0, 0.99, 1.01), Counts(1000, 995, {}), "same speed"),
        ((1.06, 1.05, 1.07), DENSE, "same speed"),
        ((1.06, 1.051, 1.07), DENSE, "faster"),
    ],
)
def test_verdict(ratio: tuple[float, float, float] | None, counts: Counts, words: str) -> None:
    assert verdict(ratio, DENSE, counts) == words


def row(label: str, **changes: Any) -> Row:
    quality = [Measurement("perplexity", 12.345, "", 7, 0.251, "CPU", "7 windows", True)]
    latency = Measurement("latency", 0.01234, "s", 21, 0.00056, "CPU", "median of 21 rounds", True)
    counts = Counts(1_234_567, 617_283, {"layer": (1000, 250), "empty": (0, 0)})
    made = Row(
        label, "d" * 64, "fake engine", 7_654_321, counts, quality, latency, (1.25, 1.21, 1.33), "faster"
    )
    return dataclasses.replace(made, **changes)


def test_rows_survive_json() -> None:
    for one in (row("a"), row("b", latency=None, speedup=None, quality=[])):
        assert Row.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_cells() -> None:
    headings = columns([row("a")])
    shown = dict(zip(headings, cells(row("a"), headings), strict=True))
    assert shown == {
        "model": "a",
        "runs in": "fake engine",
        "size on disk": "7.65 MB",
        "parameters": "1,234,567",
        "non-zero": "50.0 %",
        "perplexity": "12.35 ± 0.25 (n = 7)",
        "latency": "12.34 ± 0.56 ms",
        "speed": "1.25 x (1.21 to 1.33)",
        "verdict": "faster",
    }


def test_what_was_not_measured_says_so() -> None:
    rows = [
        row("a", speedup=None, verdict="reference"),
        row("b", quality=[], latency=None, speedup=None, verdict="x"),
    ]
    headings = columns(rows)
    shown = dict(zip(headings, cells(rows[1], headings), strict=True))
    assert [name for name, text in shown.items() if text == NOT_MEASURED] == [
        "perplexity",
        "latency",
        "speed",
        "verdict",
    ]
    assert dict(zip(headings, cells(rows[0], headings), strict=True))["speed"] == "1 x"
    assert text_table([]) == NOT_MEASURED


def test_metrics_of_several_tasks_have_a_column_each() -> None:
    other = row("b", quality=[Measurement("accuracy", 81.0, "%", 40, 1.5, "CPU", "40 samples", False)])
    table = text_table([row("a"), other]).splitlines()
    assert table[0].split("  ")
    assert "perplexity" in table[0]
    assert "accuracy" in table[0]
    assert "81.00 ± 1.50 % (n = 40)" in table[3]
    assert table[3].index("81.00") == table[0].index("accuracy")


def test_metric_without_spread() -> None:
    assert metric(Measurement("m", 1.23456, "bit", 1)) == "1.235 bit (n = 1)"
    assert metric(Measurement("m", -123.456, "")) == "-123.46 (n = 1)"


@pytest.mark.usefixtures("few_rounds")
class TestCompare:
    def entries(self, folder: Path) -> list[Entry]:
        small = models().write(folder / "small", widths=[6, 4, 3])
        return [Entry("large", models().write(folder / "large")), Entry("small", small)]

    def test_ratios_refer_to_the_reference(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_source: str
    ) -> None:
        import planish.compare

        timings = {
            name: Timing(name, "cpu", (seconds,) * 3)
            for name, seconds in (("0", 4.0), ("1", 1.0), ("2", 2.0))
        }
        monkeypatch.setattr(planish.compare, "_time", lambda *_: timings)
        entries = self.entries(tmp_path)
        entries.append(entries[0])
        told: list[tuple[int, int, str]] = []
        rows = compare(entries, models().source().task, reference=2, report=lambda *e: told.append(e))
        assert [r.label for r in rows] == ["large", "small", "large"]
        assert [r.speedup for r in rows] == [(0.5, 0.5, 0.5), (2.0, 2.0, 2.0), None]
        assert [r.verdict for r in rows] == ["slower", "faster", "reference"]
        assert [r.latency.value for r in rows if r.latency] == [4.0, 1.0, 2.0]
        assert rows[1].size == entries[1].artifact.bytes
        assert rows[1].counts.parameters == 6 * 4 + 4 + 4 * 3 + 3
        assert [t[0] for t in told] == [0, 1, 2, 3, 4]
        assert {t[1] for t in told} == {4}

    def test_quality_is_each_model_s_own(self, tmp_path: Path, fake_source: str) -> None:
        task = models().source().task
        entries = self.entries(tmp_path)
        rows = compare(entries, task, rounds=1)
        for entry, measured in zip(entries, rows, strict=True):
            answers = entry.artifact.load()({"x": models().data()["test_x"]}).argmax(dim=1)
            expected = 100 * float((answers == models().data()["test_y"]).double().mean())
            assert measured.quality[0].value == pytest.approx(expected)
            assert measured.latency
            assert "batch 16" in measured.latency.how

    def test_figures_are_those_of_the_saved_files(self, tmp_path: Path) -> None:
        entry = self.entries(tmp_path)[0]
        (measured,) = compare([entry], None)
        assert measured.size == sum(p.stat().st_size for p in entry.artifact.root.rglob("*") if p.is_file())
        assert (measured.latency, measured.verdict, measured.quality) == (None, NOT_MEASURED, [])


class Page(HTMLParser):
    """Text, tags and attributes of a page; well-formed nesting of what must be closed."""

    VOID = ("meta", "rect", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def record(**changes: Any) -> Record:
    made = Record(
        method="zero",
        distribution="planish-fake",
        version="1.2",
        config={"sparsity": 0.5, "label": "</pre><script>alert(1)</script>"},
        seed=7,
        key="abc",
        parent="p" * 64,
        data=None,
        device="a CPU",
        started=0.0,
        seconds=3.21,
        peak_memory=456_000_000,
        peak_memory_how="kernel mark",
        resumed_units=2,
        facts={"zeros": 162},
        libraries={"torch": "9.9"},
    )
    return dataclasses.replace(made, **changes)


EVIL = '<img src=x onerror="alert(1)">&"\''


class TestReport:
    def write(self, path: Path, rows: list[Row], records: list[tuple[str, Record]] | None = None) -> Page:
        write_report(path, "a title", rows, records or [])
        return Page(path.read_text())

    def test_every_figure_is_there(self, tmp_path: Path) -> None:
        other = Measurement("accuracy", 81.25, "%", 40, 1.5, "CPU", "40 samples", False)
        rows = [
            row("source", speedup=None, verdict="reference"),
            row("result", size=1_234_000, quality=[other]),
        ]
        page = self.write(tmp_path / "r.html", rows, [("01-abc", record())])
        text = "\n".join(page.text)
        for one in rows:
            for cell in cells(one, columns(rows)):
                assert cell in text
        for figure in (
            "3.2 s, 2 units taken over",
            "456 MB",
            "kernel mark",
            "162",
            "7 windows",
            "40 samples",
        ):
            assert figure in text
        assert "75.0 % of 1,000" in text
        assert '"torch": "9.9"' in text
        assert page.open == []

    def test_it_stands_alone(self, tmp_path: Path) -> None:
        page = self.write(tmp_path / "r.html", [row("a"), row("b")], [("01-abc", record())])
        assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
        assert not {"src", "href", "xlink:href", "onclick", "onload"} & {name for name, _ in page.attributes}
        assert not re.search(r"https?://|url\(|@import|//", (tmp_path / "r.html").read_text())

    def test_labels_are_escaped(self, tmp_path: Path) -> None:
        hostile = row(EVIL, runtime=EVIL, verdict=EVIL, counts=Counts(10, 5, {EVIL: (10, 5)}))
        hostile.quality.append(Measurement(EVIL, 1.0, EVIL, 1, None, EVIL, EVIL))
        write_report(
            tmp_path / "r.html",
            EVIL,
            [hostile, row("b")],
            [(EVIL, record(method=EVIL, facts={EVIL: EVIL}, peak_memory_how=EVIL))],
        )
        page = Page((tmp_path / "r.html").read_text())
        assert not {"img", "script"} & set(page.tags)
        assert not {"onerror", "src"} & {name for name, _ in page.attributes}
        assert page.open == []
        assert EVIL in "".join(page.text)

    def test_nothing_measured(self, tmp_path: Path) -> None:
        page = self.write(tmp_path / "r.html", [])
        assert "Figures: not measured." in "".join(page.text)
        assert "svg" not in page.tags

    def test_one_row_has_no_before_and_after(self, tmp_path: Path) -> None:
        assert "Before and after" not in "".join(self.write(tmp_path / "r.html", [row("a")]).text)

    def test_dense_models_have_no_chart_of_zeros(self, tmp_path: Path) -> None:
        dense = [row(name, counts=Counts(9, 9, {"w": (9, 9)})) for name in "ab"]
        assert "Zeros layer by layer" not in "".join(self.write(tmp_path / "r.html", dense).text)

    def test_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "r.html"
        path.write_text("old")

        def full(target: Path, text: str, **_: Any) -> int:
            target.write_bytes(text.encode()[:100])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_report(path, "title", [], [])
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


class TestCharts:
    def test_widths_are_in_proportion(self) -> None:
        svg = bars("size (MB)", [("a", 10.0, "ten"), ("b", 5.0, "five"), ("c", 0.0, "none")])
        a, b, c = (float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', svg))
        assert b == pytest.approx(a / 2, abs=0.1)
        assert c == 0
        assert ["ten" in svg, "five" in svg, "size (MB)" in svg] == [True] * 3

    def test_a_limit_is_the_full_bar(self) -> None:
        full, half = (bars("t", [("a", value, "")], limit=100.0) for value in (200.0, 50.0))
        widths = [float(re.findall(r'<rect [^>]*width="([\d.]+)"', svg)[0]) for svg in (full, half)]
        assert widths[1] == pytest.approx(widths[0] / 2, abs=0.1)

    def test_nothing_and_zeros(self) -> None:
        assert bars("t", []) == ""
        assert 'width="0.0"' in bars("t", [("a", 0.0, "0")])

    def test_long_labels_keep_their_end_and_their_whole_as_a_tip(self) -> None:
        label = "model.layers.0." + "x" * 60 + ".weight"
        svg = bars("t", [(label, 1.0, "")])
        assert f"<title>{label}</title>" in svg
        assert re.search(r"…x+\.weight<title>", svg)


def test_artifacts_of_a_copied_row_folder_are_not_needed(tmp_path: Path) -> None:
    """Rows are figures, not references to folders: they can be shown after the models are gone."""
    entry = Entry("a", models().write(tmp_path / "a"))
    (measured,) = compare([entry], None)
    shutil.rmtree(tmp_path / "a")
    assert "a" in text_table([measured])
    assert isinstance(entry.artifact, Artifact)
    assert torch.is_tensor(models().data()["test_x"])

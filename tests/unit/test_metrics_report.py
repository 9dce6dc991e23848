"""The report of a run's folder: its numbers, and the structure of its page. tests/plugins looks at it in a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_run import BATCH, Attempt, record_run

from farandole.adapters.errors import EngineUnavailableError, OptionError
from farandole.plugins.metrics import Reader
from farandole.plugins.metrics.report.history import SPLIT, History
from farandole.plugins.metrics.report.page import make_page

RESTARTED = (Attempt(4, 0, 200, "worker 3 was lost", error=True), Attempt(3, 150, 400), Attempt(4, 380, 500))
MARKUP = "<b>bold</b><script>window.hacked = 1</script>\"'&"


class Page(HTMLParser):
    """What a browser would find in a page: its tags, its text, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def numbers(self) -> Any:
        (numbers,) = (text for text, tag in zip(self.scripts, self.of("script"), strict=True) if "type" in tag)
        return json.loads(numbers)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., Page]:
    def make(*arguments: Any, **options: Any) -> Page:
        return Page(make_page(record_run(tmp_path / "run", *arguments, **options)))

    return make


def history(folder: Path, *arguments: Any, **options: Any) -> History:
    return History(Reader(record_run(folder / "run", *arguments, **options)).records())


# The numbers.


def test_curves_are_over_all_workers(tmp_path: Path) -> None:
    seen = history(tmp_path)
    found = seen.speed(limit=1000)
    assert found is not None
    unit, speed = found
    assert unit == "samples" and speed.value == pytest.approx(4 * BATCH * 1000 / 36)
    loss = seen.loss(limit=1000)
    assert loss is not None and loss.high is not None
    assert [*loss.step] == [*range(10, 401, 10)]
    assert loss.value[0] > 2 > loss.value[-1] and (loss.high > loss.value).all()


def test_few_points_are_means_of_all(tmp_path: Path) -> None:
    seen = history(tmp_path)
    all_points, few = seen.loss(limit=1000), seen.loss(limit=8)
    assert all_points is not None and few is not None
    assert len(few.step) == 8 and few.step[-1] == all_points.step[-1]
    assert few.value == pytest.approx(all_points.value.reshape(8, -1).mean(1))


def test_time_is_split_without_rest(tmp_path: Path) -> None:
    seen = history(tmp_path, slow=2)
    split = seen.split()
    assert [*split] == [phase for phase in SPLIT if phase not in ("save", "load")]
    steps = [seen.total(rank, "step_ms").mean for rank in seen.ranks]
    assert np.sum([*split.values()], 0) == pytest.approx(steps)
    assert np.argmax(split["data"]) == np.argmin(split["wait"]) == 2


def test_steps_that_were_done_again_count_once(tmp_path: Path) -> None:
    seen = history(tmp_path, RESTARTED)
    loss, waiting = seen.loss(limit=1000), seen.waiting(columns=1000)
    assert loss is not None and waiting is not None
    assert [*loss.step] == [*range(10, 501, 10)]
    assert [seen.redone(attempt) for attempt in range(3)] == [0, 50, 20]
    there = np.isfinite(waiting.percent)
    assert there[:3].all()
    assert [*waiting.step[~there[3]]] == [*range(160, 381, 10)], "worker 3 was gone in the second attempt"


def test_what_was_not_measured_is_left_out(report: Callable[..., Page], tmp_path: Path) -> None:
    page = report(logged=())
    assert [each["id"] for each in page.of("div") if each.get("role") == "img"] == ["loss", "speed", "split", "waiting"]
    for file in (tmp_path / "run").glob("worker-*.jsonl"):
        file.write_text(re.sub(r'"(wait_ms|loss)":(\[[^]]*\]|"?\w+"?),?', "", file.read_text()).replace(",}", "}"))
    bare = Page(make_page(tmp_path / "run"))
    assert [each["id"] for each in bare.of("div") if each.get("role") == "img"] == ["speed", "split"]
    assert "Waiting for others" not in bare.text


def test_a_run_that_measured_nothing_has_a_page(report: Callable[..., Page]) -> None:
    page = report([Attempt(2, 0, 0)])
    assert "nothing measured yet" in page.text


def test_lines_that_are_torn_are_left_out(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "run")
    whole = history(tmp_path).loss(limit=1000)
    with (folder / "worker-1.jsonl").open("a") as file:
        file.write('{"kind":"window","attempt":0,"ra\n{"kind":"from the future"}\n{"kind":"window","atte')
    assert "2 lines of the records were torn" in Page(make_page(folder)).text
    torn = History(Reader(folder).records()).loss(limit=1000)
    assert torn is not None and whole is not None and (torn.value == whole.value).all()


def test_a_loss_that_is_not_finite_is_said(report: Callable[..., Page]) -> None:
    page = report(loss_is_nan_at=120)
    assert "The loss was not finite in 1 window, for the first time before step 120." in page.text
    loss = page.numbers["loss"]
    assert [step for step, value in zip(loss["step"], loss["value"], strict=True) if value is None] == [120]


def test_a_clock_that_jumps_changes_no_curve(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "run", RESTARTED)
    before = Page(make_page(folder)).numbers
    for file in folder.glob("*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line["time"] -= 1e6 * line["attempt"] + 3600 * line["rank"]  # each attempt begins earlier
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = Page(make_page(folder))
    assert page.numbers == before
    assert "500 in 21 s" in page.text


def test_stragglers_and_restarts_are_said_and_marked(report: Callable[..., Page]) -> None:
    page = report(RESTARTED, slow=2)
    assert "Worker 2 was the straggler in 47 windows, from step 110 to 500: it waited for its data." in page.text
    assert "It cost 22 % of each step, 782 s an hour." in page.text
    assert "restarted from step 150 with 3 workers instead of 4; 50 steps were done again" in page.text
    assert [(mark["step"], mark["label"]) for mark in page.numbers["marks"]] == [(150, "4 → 3"), (380, "3 → 4")]
    assert set(page.numbers["stragglers"]["worker"]) == {2} == set(page.numbers["split"]["stragglers"])
    assert page.of("tr")[1] == {"class": "alarm"}, "the first row is the straggler's"


@pytest.mark.parametrize(
    ("attempt", "said", "level"),
    [
        (Attempt(2, 0, 50, "the training ended"), "the training ended", "good"),
        (Attempt(2, 0, 50, "worker 1 was lost", error=True), "worker 1 was lost", "alarm"),
        (Attempt(2, 0, 50), "running, or killed: last heard of at 2023-11-14", "warning"),
    ],
)
def test_how_it_ended(report: Callable[..., Page], attempt: Attempt, said: str, level: str) -> None:
    page = report([attempt])
    assert said in page.text
    assert page.of("span")[0]["class"] == f"state {level}"


# The page.


def test_only_its_own_scripts_may_run(report: Callable[..., Page]) -> None:
    page = report()
    (policy,) = (meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    run = [text for text, tag in zip(page.scripts, page.of("script"), strict=True) if "type" not in tag]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in run]
    assert len(run) == 2 and "plotly" in run[0]
    assert rules == {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{each}'" for each in hashes),
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    attributes = {name for _, found in page.tags for name in found}
    assert not [name for name in attributes if name in ("src", "href", "srcset") or name.startswith("on")]


def test_names_are_text(report: Callable[..., Page]) -> None:
    plain, named = report(), report(host=MARKUP, logged=[MARKUP])
    assert [tag for tag, _ in named.tags] == [tag for tag, _ in plain.tags]
    assert named.text.count(MARKUP) >= 6  # the number's title, and the hosts
    assert named.numbers["logged"][0]["name"] == MARKUP


def test_256_workers_make_a_small_page(tmp_path: Path) -> None:
    from plotly.offline import get_plotlyjs

    text = make_page(record_run(tmp_path / "run", [Attempt(256, 0, 80)], slow=77, slow_from=40))
    page = Page(text)
    assert len(text) - len(get_plotlyjs()) < 1e6
    assert len(page.numbers["waiting"]["percent"]) == 256 == len(page.numbers["split"]["workers"])


def test_a_long_run_makes_a_small_page(report: Callable[..., Page]) -> None:
    page = report([Attempt(2, 0, 1200)], every=1, logged=())
    numbers = page.numbers
    assert len(numbers["loss"]["step"]) == 1000 and len(numbers["waiting"]["percent"][0]) == 300


def test_100_000_names_make_a_small_page(report: Callable[..., Page]) -> None:
    page = report([Attempt(1, 0, 10)], logged=[f"number_{place}" for place in range(100_000)])
    assert "100,000 names were logged; the first 12 are shown." in page.text
    assert len(page.numbers["logged"]) == 12


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is not the folder of a run"):
        make_page(tmp_path)


def test_without_plotly_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(EngineUnavailableError, match=r"pip install 'farandole\[report\]'"):
        make_page(record_run(tmp_path / "run"))

"""The page with switches, in a real browser: what a person does, sees and is told."""

from dataclasses import replace

import pytest

from manystream.evaluation import Subsets
from manystream.evaluation.measurement import numbered_subsets
from manystream.evaluation.report import Run, write_report
from manystream.evaluation.showcase import Showcase, ShownSample
from manystream.tasks import Answer, Classification
from tests.evaluation.browser import NAMES, Browser, chromium
from tests.training.builders import CPU, tiny_model, tuple_batches

pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(
        chromium() is None, reason=f"no browser here: none of {', '.join(NAMES)} is on the path"
    ),
]

BY_BITS = {3: "rgb + depth", 1: "rgb", 2: "depth"}


@pytest.fixture(scope="module")
def runs():
    """Two networks, of which one has learned something."""
    batches, measured = tuple_batches(24), []
    for name, epochs in (("begun", 1), ("learned", 12)):
        task = Classification(classes=["bed", "desk", "sofa"])
        model = tiny_model(seed=epochs, task=task)
        history = model.fit(batches, batches, epochs=epochs, learning_rate=1e-2, **CPU)
        subsets, shown = model.evaluate_subsets(batches), model.show_samples(batches, count=5)
        measured.append(Run(name, task, history, subsets, {}, showcase=shown))
    return measured


@pytest.fixture(scope="module")
def browser(runs, tmp_path_factory):
    page = write_report(runs, tmp_path_factory.mktemp("page"), "what is left")
    with Browser() as opened:
        opened.open(page)
        yield opened
    assert opened.errors == []
    assert opened.requests == [page.as_uri()]


def expected(runs, bits):
    """What the page should say with the sensors of a subset: scores, then each answer."""
    scores = [f"{100 * run.subsets[BY_BITS[bits]]['mean_class_accuracy']:.1f} %" for run in runs]
    answers = []
    for number in range(len(runs[0].showcase.samples)):
        for run in runs:
            answer = run.showcase.samples[number].answers[bits]
            mark = "✓" if answer.is_right else "✗"
            answers.append((mark, answer.text, f"{int(100 * answer.confidence + 0.5)} % sure"))
    return scores, answers


def seen(browser):
    told = [browser.texts(f".answer .{part}") for part in ("mark", "word", "sure")]
    return browser.texts(".score .number"), list(zip(*told, strict=True))


def switch(browser, stream):
    browser.click(f'.switch input[data-stream="{stream}"]')


def state(browser):
    return browser.evaluate("[...document.querySelectorAll('.switch input')].map(b => b.checked)")


def off_pictures(browser):
    """Which pictures are hidden, by stream."""
    return browser.evaluate(
        "[0, 1].map(m => [...document.querySelectorAll(`.frame[data-stream='${m}']`)].map(f =>"
        " getComputedStyle(f.querySelector('img')).visibility === 'hidden'"
        " && f.innerText.trim() === 'off'))"
    )


def test_every_subset_shows_the_numbers_of_python(runs, browser):
    wanted = {bits: expected(runs, bits) for bits in BY_BITS}
    assert len({str(each) for each in wanted.values()}) == 3, "nothing would change"
    assert state(browser) == [True, True]
    assert seen(browser) == wanted[3]
    switch(browser, 1)
    assert state(browser) == [True, False]
    assert seen(browser) == wanted[1]
    assert off_pictures(browser) == [[False] * 5, [True] * 5]
    switch(browser, 1)
    switch(browser, 0)
    assert seen(browser) == wanted[2]
    assert off_pictures(browser) == [[True] * 5, [False] * 5]
    switch(browser, 0)
    assert seen(browser) == wanted[3]
    assert off_pictures(browser) == [[False] * 5] * 2
    assert browser.texts(".said") == ["mean class accuracy on 24 samples, chance 33.3 %"]


def test_the_last_sensor_stays_on(runs, browser):
    switch(browser, 0)
    switch(browser, 1)
    assert state(browser) == [False, True]
    assert seen(browser) == expected(runs, 2)
    (said,) = browser.texts(".said")
    assert said.startswith("At least one sensor must stay")
    switch(browser, 0)
    assert state(browser) == [True, True]
    (said,) = browser.texts(".said")
    assert said.startswith("mean class accuracy")


def test_switches_work_by_keyboard_and_have_their_names(runs, browser):
    named = "document.activeElement.labels[0].innerText"
    browser.evaluate("{ const h1 = document.querySelector('h1'); h1.tabIndex = -1; h1.focus(); }")
    browser.press("Tab", 9)
    assert browser.evaluate(named).split() == ["rgb", "on"]
    browser.press(" ", 32, " ")
    assert seen(browser) == expected(runs, 2)
    assert browser.evaluate(named).split() == ["rgb", "off"]
    browser.press("Tab", 9)
    assert browser.evaluate(named).split() == ["depth", "on"]
    switch(browser, 0)
    assert seen(browser) == expected(runs, 3)


def test_pictures_are_drawn(browser):
    drawn = "[...document.images].map(i => i.complete && i.naturalWidth > 0)"
    assert browser.evaluate(drawn) == [True] * (2 * 5 + 2)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("num_streams", [2, 4])
def test_nothing_is_wider_than_the_window(tmp_path, runs, width, num_streams):
    names = ("rgb", "depth", "thermal", "lidar")[:num_streams]
    pictures = runs[0].showcase.samples[0].pictures * (num_streams // 2)
    has = range(1, 2 ** (num_streams - 1))  # all but the last
    answers = {bits: Answer(f"answer {bits}", 0.5) for bits in has}
    sample = ShownSample("a thing with a longer name", (*pictures[:-1], None), answers)
    shown = Showcase(names, (sample,) * 3)
    measured = runs[0].subsets["rgb"]
    kept = dict.fromkeys(numbered_subsets(names), measured)
    of_streams = replace(runs[0], subsets=Subsets(kept, kept, measured), showcase=shown)
    page = write_report([of_streams], tmp_path, "a page")
    with Browser(width) as browser:
        browser.open(page)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.texts(".frame .none")[num_streams - 1] == "absent"
        switch(browser, 0)
        left = {2: "nothing left of this sample", 4: "answer 6"}[num_streams]
        assert browser.texts(".answer .word") == [left] * 3
        assert browser.errors == []

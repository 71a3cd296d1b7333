import base64
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from synfoc3d.errors import UserError
from synfoc3d.inference.prompt_record import PromptRecord
from synfoc3d.inference.report.page import write_report
from synfoc3d.inference.report.rows import estimate_tables, verdicts
from synfoc3d.inference.scores.comparison import Comparison, Estimate, PairedTest
from synfoc3d.inference.scores.evaluations import ALL_CASES, MEAN_OF_CLASSES, CaseResult, Evaluation
from synfoc3d.inference.scores.table_view import table_view
from synfoc3d.metrics import METRICS, PER_SLICE, PER_VOLUME, CaseMetrics

pytestmark = pytest.mark.usefixtures("four_metrics")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
]
QUIET += ["--disable-background-networking", "--disable-sync", "--enable-logging=stderr", "--v=0"]


class Page(HTMLParser):
    """Elements with their attributes, and the visible text, of a page."""

    def __init__(self, file):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, write_nifti):
    """Return a function that writes references, scans and the masks of models for some cases; labels of two classes."""

    def write(models, cases, shape=(16, 14, 6)):
        data = tmp_path_factory.mktemp("data")
        mask = np.zeros(shape, np.uint8)
        mask[3:9, 3:9, 1:4], mask[9:12, 3:9, 1:4] = 1, 2
        noise = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
        for case in cases:
            for folder in ("labelsTr", *(f"masks_{index}" for index in range(len(models)))):
                write_nifti(data / folder / f"{case}.nii.gz", mask)
            write_nifti(data / "imagesTr" / f"{case}_0000.nii.gz", noise)
        return data

    return write


def evaluate(data, index, cases, domain_of, value):
    """An evaluation with made-up figures: Dice ``value`` in the first case and a little less in each further one."""
    results = []
    for place, case in enumerate(cases):
        figures = {"dice": value - place / 100, "jaccard": value / 2, "hd95": 10 * value, "asd": 5 * value}
        metrics = CaseMetrics(figures, 9, 9, 0, 100)
        files = [data / folder / f"{case}.nii.gz" for folder in ("labelsTr", f"masks_{index}")]
        results.append(CaseResult(case, domain_of(place), *files, {"RV": metrics, "LV": metrics}))
    return Evaluation(data / "labelsTr", data / f"masks_{index}", {"RV": (1,), "LV": (2,)}, tuple(results), ())


def compare(data, models, cases, domain_of=lambda place: ["GE", "Siemens"][place % 2], baseline=None):
    """A comparison with figures that only depend on the model: mean 0.5 + index / 10 of every metric."""
    evaluations = {name: evaluate(data, i, cases, domain_of, 0.5 + i / 10) for i, name in enumerate(models)}
    domains = sorted({domain_of(place) for place in range(len(cases))} - {""})
    estimates, tests = [], []
    for domain in (*domains, ALL_CASES):
        for label in ("RV", "LV", MEAN_OF_CLASSES):
            for metric in METRICS:
                key = {"domain": domain, "label": label, "metric": metric, "n": len(cases)}
                for index, model in enumerate(models):
                    mean = 0.5 + index / 10
                    estimates.append(
                        Estimate(model=model, mean=mean, std=0.0625, low=mean - 0.1, high=mean + 0.1, **key)
                    )
                    if baseline not in (None, model):
                        shift = {"difference": index / 10, "low": 0.05, "high": 0.3, "p": 0.001, "p_holm": 0.0123}
                        tests.append(PairedTest(model=model, **shift, **key))
    return Comparison(
        labels=data / "labelsTr",
        predictions={name: (data / f"masks_{index}",) for index, name in enumerate(models)},
        evaluations=evaluations,
        baseline=baseline,
        estimates=tuple(estimates),
        tests=tuple(tests),
        note="Made-up figures.",
        failures={},
    )


CASES = ["a", "b", "c", "d"]


def train(data, trainer, tau, epochs=3):
    """Write what a synfoc3d training leaves, and return the folder where its validation masks would be."""
    fold = data / "Dataset501_Tiny" / f"{trainer}__nnUNetPlans__2d" / "fold_0"
    fold.mkdir(parents=True)
    settings = {"epochs": epochs, "method": {"tau": tau}}
    (fold / "synfoc3d.yaml").write_text(yaml.safe_dump({"settings": settings, "versions": {"torch": "2.15.0"}}))
    names = ("loss", "alpha", "self_confidence", "mutual_confidence", "pseudo_dice", "val_dice_conventional")
    rows = [[epoch, *np.random.default_rng(epoch).random(len(names)).round(4)] for epoch in range(epochs)]
    (fold / "synfoc3d_log.csv").write_text(
        "\n".join([",".join(("epoch", *names)), *(",".join(map(str, row)) for row in rows)])
    )
    return fold / "validation"


@pytest.fixture(scope="module")
def comparison(folders):
    """Two models, each with its training, on four cases of two domains; a fifth case failed."""
    models = ["nnU-Net", "SynFoC"]
    data = folders(models, CASES)
    masks = {"nnU-Net": (train(data, "A", 0.5),), "SynFoC": (train(data, "B", 0.95),)}
    made = compare(data, models, CASES, baseline="nnU-Net")
    return replace(made, predictions=masks, failures={"e": "e is damaged."})


@pytest.fixture(scope="module")
def file(comparison, tmp_path_factory):
    """The report of this comparison."""
    file = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(comparison, file)
    return file


@pytest.fixture(scope="module")
def page(file):
    """The same, read."""
    return Page(file)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes the report of another comparison and reads it."""

    def page(comparison, **options):
        write_report(comparison, tmp_path / "report.html", **options)
        return Page(tmp_path / "report.html")

    return page


def test_the_page_loads_nothing(page, file):
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    sources = [value for _, attrs in page.elements for key, value in attrs.items() if key in ("src", "href", "srcset")]
    assert sources and all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert not re.search(r"https?://|//cdn|@import|url\((?!#)", file.read_text(encoding="utf-8"))


def test_marks_stand_below_every_table_of_figures(comparison, write, page):
    mark = "The foundation network lite_medsam was trained on BUSI: its figures here (SynFoC) are not of unseen data."
    tables = len(estimate_tables(table_view(comparison))) + 1  # and the one of the summary
    assert write(replace(comparison, marks=(mark,))).text.count(mark) == tables
    assert ("class", "mark") not in [item for _, attrs in page.elements for item in attrs.items()]


def test_prompt_stands_on_the_card_of_its_model(comparison, write, page):
    name, evaluation = next(iter(comparison.evaluations.items()))
    asked = replace(evaluation, prompt=PromptRecord("point", file="/scans/points.csv", sha256="ab" * 32))
    text = write(replace(comparison, evaluations=comparison.evaluations | {name: asked})).text
    assert text.count("prompt point (points.csv, SHA-256 abababababab)") == 1
    assert "prompt" not in page.text


def test_every_link_within_the_page_leads_somewhere(page):
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    targets = {attrs["href"][1:] for tag, attrs in page.elements if tag in ("a", "use")}
    assert targets and targets <= set(ids)


def test_every_picture_has_a_description(page):
    assert all(attrs.get("alt") for tag, attrs in page.elements if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.elements if tag == "svg")


def test_pictures_are_whole(page):
    sources = [attrs["src"] for tag, attrs in page.elements if tag == "img"]
    assert {base64.b64decode(source.split(",")[1])[:2] for source in sources} == {b"\xff\xd8"}  # JPEG


def test_figures_of_the_comparison_are_shown(page):
    assert "60.00 ± 6.25 50.00 to 70.00" in page.text  # Dice of SynFoC in percent
    assert "0.60 ± 0.06 0.50 to 0.70" in page.text  # its 95HD in mm
    assert "+10.00, p = 0.012" in page.text


def test_every_estimate_has_its_cell(page, comparison):
    cells = re.findall(r"(\d+\.\d\d) ± \d", page.text)
    assert len(cells) == len(comparison.estimates) + 2 * len(METRICS)  # the headline is shown twice


def test_better_and_worse_follow_the_direction_of_the_metric(page):
    marked = [attrs["class"] for tag, attrs in page.elements if tag == "small" and attrs.get("class")]
    assert marked[:4] == ["better", "better", "worse", "worse"]
    best = [attrs["class"] for tag, attrs in page.elements if tag == "td" and "value" in attrs.get("class", "")]
    assert ["best" in name for name in best[:8]] == [False, False, True, True, True, True, False, False]


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (math.nan, "not tested."),
        (0.2, "p = 0.200: no significant difference."),
        (0.0123, "p = 0.012: higher."),
        (1e-5, "p < 0.001: higher."),
    ],
)
def test_sentence_against_the_baseline(comparison, p, words):
    tests = tuple(replace(test, p_holm=p) for test in comparison.tests)
    ((_, sentence),) = verdicts(table_view(replace(comparison, tests=tests)))
    assert (
        " ".join(sentence.split())
        == f"SynFoC against nnU-Net: Dice +10.00 points (95 % interval +5.00 to +30.00), {words}"
    )


def test_the_sentence_stands_in_the_page(page, comparison):
    assert " ".join(verdicts(table_view(comparison))[0][1].split()) in page.text


def test_without_a_baseline_nothing_is_tested(comparison):
    assert verdicts(table_view(replace(comparison, baseline=None, tests=()))) == []


def test_a_difference_of_a_single_pair_has_no_interval(comparison):
    nothing = {"low": math.nan, "high": math.nan, "p": math.nan, "p_holm": math.nan}
    tests = tuple(replace(test, n=1, **nothing) for test in comparison.tests)
    ((_, sentence),) = verdicts(table_view(replace(comparison, tests=tests)))
    assert sentence == "SynFoC against nnU-Net: Dice +10.00 points, not tested."


def test_unknown_figures_are_dashes(folders, write):
    made = compare(folders(["A", "B"], ["a"]), ["A", "B"], ["a"])
    empty = {"mean": math.nan, "std": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    page = write(replace(made, estimates=tuple(replace(estimate, **empty) for estimate in made.estimates)))
    assert page.text.count("– ± –") == len(made.estimates) + 2 * len(METRICS)  # the headline is shown twice
    assert not [attrs for _, attrs in page.elements if "best" in attrs.get("class", "")]


def test_negative_figures_have_a_minus_sign(comparison, write):
    tests = tuple(replace(test, difference=-test.difference, low=-0.3, high=-0.05) for test in comparison.tests)
    page = write(replace(comparison, tests=tests))
    assert "−10.00, p = 0.012" in page.text and "(95 % interval −30.00 to −5.00)" in page.text


def test_all_cases_and_the_mean_of_classes_come_first(comparison):
    tables = estimate_tables(table_view(comparison))
    assert [table.domain for table in tables] == [ALL_CASES, "GE", "Siemens"]
    assert [group.label for group in tables[0].groups] == [MEAN_OF_CLASSES, "RV", "LV"]


def test_note_failures_policy_and_empty_masks(page):
    assert "Made-up figures." in page.text
    assert "e : e is damaged." in page.text
    assert PER_VOLUME.empty_masks in page.text
    assert "nnU-Net RV 0 0 0" in page.text


def test_every_case_is_listed(page):
    assert "a GE 50.00 60.00 b Siemens 49.00 59.00" in page.text


def test_overlays_show_scan_and_models(page):
    assert page.count("img") == 3 * 3 * (1 + 2)  # cases, planes, scan and models
    assert [word in page.text for word in ("Best: a", "Median: b", "Worst: d")] == [True] * 3


def test_curves_of_every_training(page):
    for word in ("alpha", "self-confidence", "mutual confidence", "Pseudo-label quality", "Dice on validation patches"):
        assert page.text.count(word) >= 2
    assert "B, 2d, Dataset501_Tiny, fold 0." in page.text


def test_settings_and_versions_of_every_training(page):
    assert "method.tau 0.5 0.95" in page.text and "trainer A B" in page.text  # differ
    assert "epochs: 3 method: tau: 0.95" in page.text  # YAML
    assert "trained with torch 2.15.0" in page.text


def test_names_are_escaped(folders, write):
    name = '<b>&"$x$'
    page = write(compare(folders([name], ["a"]), [name], ["a"], lambda place: "<i>&"), title="<u>T&T")
    assert not {"b>", "i", "u"} & {tag for tag, _ in page.elements}
    assert name in page.text and "<i>&" in page.text and "<u>T&T" in page.text


def test_figures_per_slice_of_masks_that_say_nothing(folders, write):
    made = compare(folders(["A", "B"], ["a"]), ["A", "B"], ["a"])
    slices = {name: replace(evaluation, convention=PER_SLICE) for name, evaluation in made.evaluations.items()}
    text = write(replace(made, evaluations=slices)).text
    assert f"95HD [{PER_SLICE.unit}]" in text
    assert "Points: single slices" in text and PER_SLICE.empty_masks in text
    assert text.count("No curves are known for this model.") == 2
    assert text.count("does not tell which training its masks come from") == 2


def test_two_networks_of_one_training_without_scans(folders, write):
    data = folders(["A", "B"], ["a"])
    shutil.rmtree(data / "imagesTr")
    masks = train(data, "T", 0.95)
    predictions = {"A": (masks,), "B": (masks.with_name("validation_foundation"),)}
    page = write(replace(compare(data, ["A", "B"], ["a"], lambda place: ""), predictions=predictions))
    assert "From the same training as A." in page.text and "model conventional foundation" in page.text
    assert "Best: a" in page.text and "Worst" not in page.text
    assert "the masks are drawn on black" in page.text and page.count("img") == 3 * 2


def test_scans_of_another_folder(folders, write):
    data = folders(["A"], ["a", "b"])
    (data / "elsewhere").mkdir()
    (data / "imagesTr" / "a_0000.nii.gz").rename(data / "elsewhere" / "a_0000.nii.gz")
    page = write(compare(data, ["A"], ["a", "b"]), images=data / "elsewhere")
    assert page.count("img") == 3 * 2 + 3  # a with its scan, b without
    assert "holds no fitting scan" in page.text


def test_a_folder_of_scans_that_is_not_there(comparison, tmp_path):
    with pytest.raises(UserError, match="The folder of scans .*missing does not exist"):
        write_report(comparison, tmp_path / "report.html", images=tmp_path / "missing")


def test_nothing_is_written_if_a_mask_cannot_be_read(folders, tmp_path):
    data = folders(["A"], ["a"])
    (data / "masks_0" / "a.nii.gz").write_bytes(b"")
    with pytest.raises(UserError, match="masks_0.*cannot be read"):
        write_report(compare(data, ["A"], ["a"]), tmp_path / "new" / "report.html")
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def partial(comparison):
    """The comparison, with LV annotated in three of the four cases, not in the best one."""
    evaluations, fewer = {}, {"a": ["RV"]}
    for name, one in comparison.evaluations.items():
        cases = []
        for result in one.cases:
            names = fewer.get(result.case, one.classes)
            cases.append(replace(result, metrics={label: result.metrics[label] for label in names}))
        evaluations[name] = replace(one, cases=tuple(cases), annotations=Path("some/annotated.csv"))
    estimates = [replace(e, n=3) if e.label == "LV" else e for e in comparison.estimates]
    return replace(comparison, evaluations=evaluations, estimates=tuple(estimates))


def test_numbers_of_annotated_cases_are_shown(partial, write):
    page = write(partial)
    assert page.text.count("were annotated by some/annotated.csv: RV in 4, LV in 3.") == 2  # below figures, at the end
    tables = estimate_tables(table_view(partial))
    numbers = {group.label: {cells[0].estimate.n for cells in group.rows.values()} for group in tables[0].groups}
    assert numbers == {MEAN_OF_CLASSES: {4}, "RV": {4}, "LV": {3}}


def test_classes_that_were_not_annotated_are_named_below_the_pictures(partial, write):
    text = write(partial).text
    assert text.count("Not annotated in this case") == 1
    assert "Not annotated in this case, so neither filled nor scored: LV." in text.split("Median: b")[0]


def test_nothing_is_said_of_annotations_and_ignored_voxels_where_there_are_none(page):
    assert "annotated" not in page.text and "ignored by the reference" not in page.text


def test_the_drawing_of_nested_regions_is_explained(comparison, write, page):
    nested = {"RV": (1, 2), "LV": (2,)}
    evaluations = {name: replace(one, classes=nested) for name, one in comparison.evaluations.items()}
    assert "Of nested regions the innermost is filled" in write(replace(comparison, evaluations=evaluations)).text
    assert "nested" not in page.text


def test_ignored_voxels_are_in_the_legend(comparison, write):
    evaluations = {name: replace(one, ignore=3) for name, one in comparison.evaluations.items()}
    assert "ignored by the reference, not scored" in write(replace(comparison, evaluations=evaluations)).text


def test_a_large_comparison_stays_small(folders, tmp_path):
    models, cases = [f"model {index}" for index in range(5)], [f"case{index:02}" for index in range(20)]
    data = folders(models, cases, (60, 70, 50))
    made = compare(data, models, cases, lambda place: "ABC"[place % 3], models[0])
    trained = {name: (train(data, f"T{index}", 0.5, epochs=1000),) for index, name in enumerate(models)}
    write_report(replace(made, predictions=trained), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 6e6


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_without_a_complaint(file, tmp_path):
    command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "SynFoC against nnU-Net" in run.stdout
    assert "CONSOLE" not in run.stderr and "Refused" not in run.stderr

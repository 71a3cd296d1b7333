"""The table of curves."""

import math
from types import SimpleNamespace

import pytest

from synfoc3d.errors import UserError
from synfoc3d.methods.base import Panel
from synfoc3d.trainers.life_cycle.curves import EpochLog, epoch_means, read_rows
from synfoc3d.trainers.life_cycle.plain_log import PlainLog


@pytest.fixture
def log(tmp_path):
    """Two epochs, the second with an unknown value."""
    log = EpochLog(tmp_path)
    log.add(0, {"loss": 1.25, "pseudo_dice": 0.5})
    log.add(1, {"loss": 1 / 3, "pseudo_dice": math.nan})
    log.add(1, {"val_dice_conventional": 0.75})
    log.write()
    return log


def test_csv_has_one_row_per_epoch(log):
    lines = log.csv_file.read_text().splitlines()
    assert lines == ["epoch,loss,pseudo_dice,val_dice_conventional", "0,1.25,0.5,", "1,0.3333333,,0.75"]


def test_picture_is_drawn(log):
    assert log.picture.read_bytes().startswith(b"\x89PNG")


def test_picture_is_drawn_once_a_minute_and_after_the_last_epoch(tmp_path, monkeypatch):
    """Drawing takes as long as several steps of a small network; the table is written every time."""
    log, drawn = EpochLog(tmp_path), []
    monkeypatch.setattr(EpochLog, "_draw", lambda log: drawn.append(log.rows[-1]["epoch"]))
    for epoch, now in enumerate((1000.0, 1030.0, 1059.0, 1060.0, 1100.0, 1110.0)):
        monkeypatch.setattr("synfoc3d.trainers.life_cycle.curves.monotonic", lambda now=now: now)
        log.add(epoch, {"loss": 1.0})
        before = len(drawn)
        assert log.write(is_last=epoch == 5) == (len(drawn) > before)
        assert len(log.csv_file.read_text().splitlines()) == epoch + 2
    assert drawn == [0, 3, 5]


def test_nnunets_picture_is_drawn_when_ours_is(tmp_path):
    log, asked = PlainLog.__new__(PlainLog), []
    log.local_logger = SimpleNamespace(plot_progress_png=asked.append)
    log.plot_progress_png("at first")
    for log.draws in (False, True):
        log.plot_progress_png(f"draws={log.draws}")
    assert asked == ["at first", "draws=True"]


def test_known_values_are_drawn_in_their_panels_and_the_others_in_one_more(tmp_path):
    panels = (Panel("sizes", ("first", "missing")), Panel("nothing", ("unknown",)))
    log = EpochLog(tmp_path, panels)
    log.add(0, {"first": 1.0, "surprise": 2.0, "unknown": math.nan})
    assert log.drawn_panels() == [Panel("sizes", ("first",)), Panel("other", ("surprise",))]


def test_values_of_one_epoch_share_a_row(log):
    assert [row["epoch"] for row in log.rows] == [0, 1]


@pytest.mark.parametrize("source", ["checkpoint", "file"])
def test_continued_log_writes_the_earlier_rows_again_unchanged(log, source):
    before = log.csv_file.read_text()
    rows = log.rows_before(2) if source == "checkpoint" else read_rows(log.csv_file.parent, 2)
    continued = EpochLog(log.csv_file.parent, (), rows)
    continued.write()
    assert continued.csv_file.read_text() == before


def test_continued_log_forgets_epochs_after_the_checkpoint(log):
    for rows in (log.rows_before(1), read_rows(log.csv_file.parent, 1)):
        continued = EpochLog(log.csv_file.parent, (), rows)
        continued.add(1, {"loss": 2.0})
        assert [row["loss"] for row in continued.rows] == [1.25, 2.0]


def test_rows_of_a_checkpoint_do_not_follow_the_log(log):
    rows = log.rows_before(2)
    log.add(1, {"loss": 9.0})
    assert rows[1]["loss"] == 1 / 3


def test_fresh_log_ignores_an_earlier_file(log):
    assert EpochLog(log.csv_file.parent).rows == []
    assert read_rows(log.csv_file.parent, 0) == []


def test_empty_cells_are_read_as_unknown(log):
    rows = read_rows(log.csv_file.parent, 2)
    assert math.isnan(rows[1]["pseudo_dice"]) and math.isnan(rows[0]["val_dice_conventional"])


@pytest.mark.parametrize(
    "text", ["epoch,loss\n0,1.2\n1,x\n", "loss\n1\n", "epoch,loss\n0,1,2\n", "\0\n", "epoch\n\xff"]
)
def test_damaged_log_of_an_older_version_is_refused(log, text):
    log.csv_file.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"synfoc3d_log.csv is damaged, .* remove it to continue"):
        read_rows(log.csv_file.parent, 2)


def test_means_leave_out_unknown_values():
    outputs = [{"loss": 1.0, "quality": math.nan}, {"loss": 3.0, "quality": 0.25}]
    assert epoch_means(outputs) == {"loss": 2.0, "quality": 0.25}


def test_mean_of_nothing_known_is_unknown():
    assert math.isnan(epoch_means([{"quality": math.nan}, {"quality": math.nan}])["quality"])

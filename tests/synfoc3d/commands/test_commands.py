"""From arguments to calls, and from outcomes to exit status."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest

from synfoc3d.cli import main
from synfoc3d.inference import predict as prediction
from synfoc3d.networks.weights.known import embedded_weights, file_hash

MODEL = ["-d", "501", "-c", "2d"]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return a function that gives the choice and the options that arguments of predict lead to."""
    (tmp_path / "case_0000.nii.gz").touch()

    def call(*arguments):
        calls = []
        monkeypatch.setattr(prediction, "predict", lambda *given, **named: calls.append((given, named)) or 1)
        main(["predict", "-i", str(tmp_path), "-o", "OUT", *MODEL, "-device", "cpu", *arguments])
        (((_, _, choice), named),) = calls
        return choice, named["options"]

    return call


@pytest.fixture
def labels(tmp_path, write_label):
    """Folders of six references and of two models' masks, the second of them perfect."""
    for number in range(6):
        values = np.zeros((7, 6, 5), np.uint8)
        values[1:4, 1:4, 1:4] = 1
        write_label(tmp_path / "labels" / f"case{number}.nii.gz", values)
        write_label(tmp_path / "perfect" / f"case{number}.nii.gz", values)
        values[1, 1 : 2 + number % 3, 1] = 0
        write_label(tmp_path / "worse" / f"case{number}.nii.gz", values)
    return tmp_path


def test_defaults_of_predict_are_nnunets(asked):
    choice, options = asked()
    assert choice.folds == (0,) and choice.model is None
    assert (options.step_size, options.mirroring, options.precision) == (0.5, True, None)
    assert not (options.save_probabilities or options.skip_finished)


def test_fast_leaves_out_mirroring_and_takes_larger_steps(asked):
    _, options = asked("--fast")
    assert (options.step_size, options.mirroring, options.precision) == (0.75, False, "auto")


def test_step_size_counts_with_fast_too(asked):
    assert asked("--fast", "-step_size", "1")[1].step_size == 1


def test_flags_of_nnunet_arrive(asked):
    choice, options = asked(
        "-f", "1", "all", "-tr", "T", "-p", "P", "-chk", "best.pth", "--model", "foundation", "--disable_tta",
        "--save_probabilities", "--continue_prediction", "-num_parts", "3", "-part_id", "2", "-npp", "0", "-nps", "5",
        "--disable_progress_bar",
    )  # fmt: skip
    assert (choice.folds, choice.trainer, choice.plans) == ((1, "all"), "T", "P")
    assert (choice.checkpoint, choice.model) == ("best.pth", "foundation")
    assert not options.mirroring and options.save_probabilities and options.skip_finished
    assert (options.num_parts, options.part_id) == (3, 2)
    assert (options.preprocessing_processes, options.export_processes, options.progress_bar) == (0, 5, False)


def test_fold_that_is_no_number_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", "-i", "IN", "-o", "OUT", *MODEL, "-f", "first"])
    assert caught.value.code == 2 and "-f" in capsys.readouterr().err


def test_bad_scan_gives_exit_status_1_and_the_others_their_masks(trained, tmp_path, capsys):
    scans = shutil.copytree(trained.root / "scans" / "unlabeled", tmp_path / "scans")
    (scans / "Abad_0000.nii.gz").write_bytes(b"\x1f\x8b broken")
    options = ["-npp", "0", "-nps", "0", "--fast", "-device", "cpu", "--disable_progress_bar"]
    with pytest.raises(SystemExit) as caught:
        trained.command("predict", "-i", scans, "-o", tmp_path / "masks", *MODEL, *options)
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert "2 of 3 cases segmented, 1 failed:\n  Abad: " in said and "Abad_0000.nii.gz" in said
    assert len(list((tmp_path / "masks").glob("*.nii.gz"))) == 2


def test_scan_with_a_wrong_checksum_is_not_segmented(trained, tmp_path, capsys, flip_bit):
    scans = shutil.copytree(trained.root / "scans" / "unlabeled", tmp_path / "scans")
    damaged = flip_bit(scans / "Btrain002_0000.nii.gz")
    options = ["-npp", "0", "-nps", "0", "--fast", "-device", "cpu", "--disable_progress_bar"]
    with pytest.raises(SystemExit) as caught:
        trained.command("predict", "-i", scans, "-o", tmp_path / "masks", *MODEL, *options)
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert f"1 of 2 cases segmented, 1 failed:\n  Btrain002: {damaged} cannot be read" in said
    assert [file.name for file in (tmp_path / "masks").glob("*.nii.gz")] == ["Btrain003.nii.gz"]


def test_mask_on_another_grid_gives_exit_status_1_after_the_others_were_evaluated(labels, write_label, capsys):
    write_label(labels / "worse" / "case0.nii.gz", shape=(7, 6, 4))
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "-g", str(labels / "labels"), "-p", str(labels / "worse"), "-np", "1"])
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and "5 of 6 cases evaluated, 1 failed:\n  case0: " in err and "Dice %" in out


def test_evaluate_per_slice(labels, capsys):
    main(["evaluate", "-g", str(labels / "labels"), "-p", str(labels / "perfect"), "-np", "1", "--per-slice"])
    assert "95HD px" in capsys.readouterr().out


@pytest.fixture
def partly(labels, write_label):
    """The same, with a second class that is in the masks, and in the references of the first three cases alone."""
    for number in range(6):
        for folder in ("worse", "perfect", *(["labels"] if number < 3 else [])):
            write_label(labels / folder / f"case{number}.nii.gz", np.arange(210) % 3, (7, 6, 5))
    lines = [f"case{number},1" for number in range(3, 6)]
    (labels / "names.csv").write_text("\n".join(["case,classes", *lines]))
    return labels


def test_partly_annotated_cases_are_evaluated_and_compared(partly, capsys):
    common = ["-g", str(partly / "labels"), "--annotated", str(partly / "names.csv"), "-np", "1"]
    main(["evaluate", *common, "-p", str(partly / "perfect")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("all cases")]
    assert [(row[2], row[-1]) for row in rows[:2]] == [("1", "6"), ("2", "3")]
    main(["compare", *common, f"perfect={partly / 'perfect'}", "-o", str(partly / "out")])
    assert "names.csv: 1 in 6, 2 in 3." in " ".join(capsys.readouterr().out.split())


def test_compare_writes_report_and_tables(labels, capsys):
    models = [f"{name}={labels / name}" for name in ("worse", "perfect")]
    main(["compare", "-g", str(labels / "labels"), *models, "-o", str(labels / "out"), "-np", "1"])
    assert "against worse" in capsys.readouterr().out
    names = {file.name for file in (labels / "out").iterdir()}
    assert names == {"report.html", "comparison.md", "comparison.tex", "comparison.csv", "cases.csv"}


def test_compare_goes_on_without_a_case_that_a_model_lacks(labels, capsys):
    (labels / "perfect" / "case3.nii.gz").unlink()
    models = [f"{name}={labels / name}" for name in ("worse", "perfect")]
    with pytest.raises(SystemExit) as caught:
        main(["compare", "-g", str(labels / "labels"), *models, "-o", str(labels / "out"), "-np", "1"])
    err = capsys.readouterr().err
    assert caught.value.code == 1 and "5 of 6 cases compared, 1 failed:\n  case3: " in err and "perfect" in err
    assert (labels / "out" / "report.html").is_file()


def test_rank_looks_at_the_unlabeled_scans_of_the_dataset(trained, tmp_path, capsys):
    trained.command("rank", "-o", tmp_path, *MODEL, "-npp", "0", "-device", "cpu", "--disable_progress_bar")
    said = capsys.readouterr().out
    assert "Btrain002" in said and "Btrain003" in said and "Annotate from the top." in said
    with (tmp_path / "rank.csv").open(newline="") as file:
        assert {row["domain"] for row in csv.DictReader(file)} == {"B"}  # from the dataset's domains.csv


def test_export_says_how_to_use_the_model(trained, tmp_path, capsys):
    trained.command("export", *MODEL, "-o", tmp_path / "model.zip")
    assert "nnUNetv2_install_pretrained_model_from_zip" in capsys.readouterr().out
    assert (tmp_path / "model.zip").is_file()


def test_doctor_names_problems_and_exits_with_1(monkeypatch, capsys):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == 1 and "nnUNet_raw" in capsys.readouterr().out


def test_masks_open_in_nibabel_with_an_integer_type(trained, tmp_path):
    scan = trained.root / "scans" / "unlabeled" / "Btrain002_0000.nii.gz"
    trained.command("predict", "-i", scan, "-o", tmp_path / "m.nii.gz", *MODEL, "--fast", "-device", "cpu")
    assert nibabel.load(tmp_path / "m.nii.gz").get_data_dtype() == np.uint8


def test_pretrain_is_continued_with_its_own_settings(tmp_path, capsys):
    tiny = ["image_size=32", "batch_size=2", "validation_batches=1", "warmup_steps=1", "precision=float32"]
    arguments = ["pretrain", "-o", str(tmp_path / "run"), "-device", "cpu"]
    main([*arguments, "--set", "steps=2", "validate_every=2", *tiny])
    weights = tmp_path / "run" / "compact.pth"
    assert weights.is_file()
    assert f"--set foundation.name=compact foundation.checkpoint={weights}\n" in capsys.readouterr().out
    main([*arguments, "--c", "--set", "steps=4"])
    steps = [row.split(",")[0] for row in (tmp_path / "run" / "curves.csv").read_text().split()[1:]]
    assert steps == ["0", "2", "4"]


def test_pretrain_goes_on_from_the_weights_of_the_package(tmp_path):
    tiny = ["image_size=32", "batch_size=2", "validation_batches=1", "validate_every=1", "precision=float32"]
    settings = ["steps=1", "lr=1e-9", *tiny]
    for start, folder in (("compact", "continued"), (str(tmp_path / "continued" / "compact.pth"), "again")):
        main(["pretrain", "-o", str(tmp_path / folder), "--from", start, "-device", "cpu", "--set", *settings])
    records = [json.loads((tmp_path / folder / "record.json").read_text()) for folder in ("continued", "again")]
    assert [record["started_from"] for record in records] == [file_hash(embedded_weights()), records[0]["sha256"]]


def test_pretrain_writes_adapters_of_a_network_s_decoder(tmp_path, capsys):
    tiny = ["image_size=32", "batch_size=1", "validation_batches=1", "validate_every=9", "precision=float32"]
    arguments = ["pretrain", "-o", str(tmp_path / "run"), "-device", "cpu"]
    given = ["--objective", "propagation", "--network", "compact"]
    main([*arguments, *given, "--set", "steps=1", "rank=2", *tiny])
    weights = tmp_path / "run" / "propagation_compact.pth"
    assert weights.is_file()
    assert f"--set foundation.name=compact foundation.adapters={weights}\n" in capsys.readouterr().out
    main([*arguments, "--c", "--set", "steps=2"])
    assert json.loads((tmp_path / "run" / "record.json").read_text())["steps"] == 2


def test_pretrain_of_the_compact_network_takes_no_other(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["pretrain", "-o", str(tmp_path), "--network", "compact", "-device", "cpu"])
    assert "--network names whose decoder gets adapters: give --objective propagation" in capsys.readouterr().err


def test_pretrain_from_a_missing_file(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        main(["pretrain", "-o", str(tmp_path), "--from", str(tmp_path / "gone.pth"), "-device", "cpu"])
    assert "gone.pth" in capsys.readouterr().err

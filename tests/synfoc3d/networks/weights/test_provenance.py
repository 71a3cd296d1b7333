"""What foundation networks have seen in their own training, judged by names."""

import subprocess
import sys
from typing import Any

import pytest

from synfoc3d.config import FoundationSettings
from synfoc3d.errors import UserError
from synfoc3d.networks.weights.known import KNOWN
from synfoc3d.networks.weights.provenance import Provenance, assumed_identity, has_seen, provenance

PUBLISHED = {
    "name": "lite_medsam",
    "checkpoint": "/packages/lite_medsam.pth",
    "sha256": KNOWN["lite_medsam"].published_hash,
    "in_checkpoint": False,
}
EMBEDDED = {"name": "compact", "checkpoint": "/package/compact.pth", "sha256": "ab", "in_checkpoint": True}


def judged(identity: dict[str, Any], *names: str, **settings: Any) -> Provenance:
    foundation = FoundationSettings(name=identity["name"], **settings).model_dump()
    found = provenance(foundation, identity, *names)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("dataset", "seen"),
    [
        ("Dataset524_BUSI", "yes"),
        ("busi_128", "yes"),
        ("Dataset507_BraTS2023", "yes"),
        ("Task05_Prostate", "yes"),
        ("Dataset005_Prostate", "yes"),
        ("Dataset510_MSD_Prostate", "yes"),
        ("Task02_Heart", "yes"),
        ("Dataset218_AMOS2022", "yes"),
        ("Dataset300_AbdomenCT-1K", "yes"),
        ("Dataset521_Prostate", "perhaps"),  # one of the benchmark's sites was seen, but anybody's may be called so
        ("Dataset530_MACT", "perhaps"),
        ("Dataset525_ACDC", "unknown"),
        ("Dataset501_Heart", "unknown"),  # no more MSD's than anybody's
        ("Dataset501_Placenta", "unknown"),  # "la" and "acdc" are no parts of words
        ("Dataset501_Busily", "unknown"),
        ("", "unknown"),
        ("Dataset523_MnMs", "no"),
        ("Dataset523_M&Ms", "no"),
        ("Dataset526_LA", "no"),
        ("Dataset522_Fundus", "no"),
        ("Dataset540_PROMISE12", "no"),
        ("Task04_Hippocampus", "no"),
        ("Dataset531_Fundus_PAPILA", "yes"),  # what was seen weighs more
    ],
)
def test_lite_medsam_is_judged_by_the_words_of_a_name(dataset: str, seen: str) -> None:
    assert has_seen("lite_medsam", dataset) == seen


@pytest.mark.parametrize(("domains", "seen"), [(("UCL", "RUNMC"), "yes"), (("UCL", "HK"), "perhaps")])
def test_domains_tell_more_than_the_dataset(domains: tuple[str, ...], seen: str) -> None:
    assert has_seen("lite_medsam", "Dataset521_Prostate", *domains) == seen


@pytest.mark.parametrize(
    ("dataset", "seen"), [("Dataset524_BUSI", "perhaps"), ("Dataset525_ACDC", "unknown"), ("Dataset526_LA", "unknown")]
)
def test_medsam_may_have_seen_what_its_light_version_has(dataset: str, seen: str) -> None:
    assert has_seen("medsam_vit_b", dataset) == seen


@pytest.mark.parametrize("name", ["compact", "sam_vit_b", "sam_vit_l", "sam_vit_h", "mobile_sam"])
@pytest.mark.parametrize("dataset", ["Dataset524_BUSI", "Dataset501_Mine"])
def test_networks_without_medical_images_have_seen_nothing(name: str, dataset: str) -> None:
    assert has_seen(name, dataset) == "no"


def test_unknown_network_is_refused() -> None:
    with pytest.raises(UserError, match="Unknown foundation network 'medsam'"):
        has_seen("medsam", "Dataset524_BUSI")


@pytest.mark.parametrize("known", KNOWN.values(), ids=lambda known: known.name)
def test_every_network_says_what_it_was_trained_on(known: Any) -> None:
    assert known.trained_on.text and known.license
    assert known.trained_on.medical == bool(known.trained_on.collections)


def test_log_says_license_training_and_judgment() -> None:
    text = judged(PUBLISHED, "Dataset524_BUSI").sentence("Dataset524_BUSI")
    assert text.startswith("Foundation weights lite_medsam: license Apache-2.0, trained on the training set of the ")
    assert text.endswith(" Have they seen Dataset524_BUSI? yes: by its name; BUSI is in the training set.")


def test_facts_for_the_record() -> None:
    assert judged(EMBEDDED, "Dataset524_BUSI").facts() == {
        "license": "Apache-2.0",
        "trained_on": "generated images only",
        "seen": "no",
        "seen_because": "they were trained without medical images",
    }


@pytest.mark.parametrize(("given", "seen"), [(True, "yes"), (False, "no")])
def test_the_setting_weighs_more_than_the_name(given: bool, seen: str) -> None:
    found = judged(PUBLISHED, "Dataset524_BUSI" if seen == "no" else "Dataset523_MnMs", seen=given)
    assert (found.seen, found.because) == (seen, "foundation.seen says so")


def test_random_weights_have_seen_nothing() -> None:
    random = {"name": "lite_medsam", "checkpoint": None, "sha256": None, "in_checkpoint": True}
    found = judged(random, "Dataset524_BUSI", checkpoint="random")
    assert (found.license, found.trained_on, found.seen) == ("none", "nothing", "no")


@pytest.mark.parametrize("identity", [PUBLISHED, EMBEDDED], ids=["published", "embedded"])
def test_another_file_may_have_been_trained_on_anything(identity: dict[str, Any]) -> None:
    other = identity | {"checkpoint": "/mine/tuned.pth", "sha256": "cd", "in_checkpoint": False}
    found = judged(other, "Dataset523_MnMs")
    assert (found.seen, found.because) == ("unknown", "tuned.pth may have been trained on anything")
    assert found.trained_on.endswith("; what else tuned.pth was trained on is not known")


def test_another_file_has_seen_what_the_published_one_has() -> None:
    assert judged(PUBLISHED | {"sha256": "cd"}, "Dataset524_BUSI").seen == "yes"


def test_adapters_may_have_been_trained_on_anything() -> None:
    found = judged(EMBEDDED, "Dataset523_MnMs", lora="/mine/epoch_159.pth")
    assert (found.seen, found.because) == ("unknown", "epoch_159.pth may have been trained on anything")


@pytest.mark.parametrize("name", [None, "sam9"])
def test_nothing_is_said_of_no_network_and_of_unknown_ones(name: str | None) -> None:
    assert provenance({}, {"name": name, "checkpoint": "a.pth"}, "Dataset524_BUSI") is None
    assert provenance({}, {}, "Dataset524_BUSI") is None


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("checkpoint", [None, "random", "/mine/tuned.pth"])
def test_settings_alone_tell_of_a_training_that_is_gone(name: str, checkpoint: str | None) -> None:
    settings = FoundationSettings(name=name, checkpoint=checkpoint).model_dump()  # type: ignore[arg-type]
    found = provenance(settings, assumed_identity(settings), "Dataset524_BUSI")
    assert found is not None and found.network == name
    expected = {None: has_seen(name, "Dataset524_BUSI"), "random": "no"}
    if checkpoint in expected:
        assert found.seen == expected[checkpoint] and "tuned" not in found.trained_on
    else:
        assert found.seen != "no" or KNOWN[name].hash_algorithm == "md5"


def test_settings_of_an_unknown_network_tell_nothing() -> None:
    assert provenance({}, assumed_identity({"name": "sam9"}), "Dataset524_BUSI") is None


def test_torch_is_not_imported() -> None:
    code = "import sys, synfoc3d.networks.weights.provenance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

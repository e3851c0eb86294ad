"""What is declared, that records keep to it, and that the statistics err as rarely as they promise."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from nanochat.common import UserError, base_dir
from nanochat.evidence.declared import (
    FILE,
    declaration_of,
    declared_at,
    read_declaration,
    refused_records,
    too_old,
)
from nanochat.evidence.inference import (
    Estimate,
    World,
    estimate,
    exponent,
    holm,
    p_difference,
    p_equivalence,
    simulate,
    verdict,
)
from nanochat.provenance import ROOT

TEXT = (ROOT / FILE).read_text(encoding="utf-8")
DECLARED = read_declaration()


def test_twelve_questions_are_declared_as_the_home_page_asks_them() -> None:
    home = (ROOT / "lit" / "index.md").read_text(encoding="utf-8")
    assert len(DECLARED.experiments) == 12
    for one in DECLARED.experiments:
        assert one.question in home
        assert one.comparisons or one.tests, one.name


def test_every_test_declared_is_there_and_no_other() -> None:
    text = (ROOT / "tests" / "test_identities.py").read_text(encoding="utf-8")
    there = re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)
    assert sorted(there) == sorted(name for one in DECLARED.experiments for name in one.tests)


def test_every_arm_is_tuned_over_five_values_and_a_factor_of_sixteen() -> None:
    for one in DECLARED.experiments:
        for arm in one.arms:
            names = {name for axis in arm.axes for name in axis.fields}
            assert names >= {"matrix_lr", "embedding_lr"}, (one.name, arm.name)
            for axis in arm.axes:
                assert len(axis.values) >= 5
                assert axis.values[-1] / axis.values[0] >= 16 * (1 - 1e-9)
                assert list(axis.values) == sorted(axis.values)


def test_every_setting_declared_makes_a_model() -> None:
    for one in DECLARED.experiments:
        for arm in one.arms:
            for size in arm.sizes:
                for device in ("cpu", "cuda"):
                    setting = DECLARED.protocol.setting(size, device, one.base | arm.changes)
                    assert setting.n_embd % setting.n_head == 0


def test_ten_fresh_seeds_that_no_choice_has_seen() -> None:
    fresh, tuning = set(DECLARED.protocol.fresh_seeds), set(DECLARED.protocol.tuning_seeds)
    assert len(fresh) == 10
    assert not fresh & tuning


def test_five_claims_about_loss_are_tested_at_two_sizes() -> None:
    two = {one.name for one in DECLARED.experiments if len(one.sizes) > 1}
    assert two == {"tied-head", "activation", "qk-norm", "norm-after-embedding", "optimizers"}


def test_each_comparison_has_a_margin_a_direction_and_an_arm() -> None:
    for one in DECLARED.experiments:
        for compared in one.comparisons:
            assert compared.margin > 0
            assert compared.expected in ("better", "worse", "equivalent")
            assert compared.arm in ["", *(arm.name for arm in one.arms)]


def test_the_checksum_follows_what_is_declared_and_not_how_it_is_worded() -> None:
    before = {one.name: one.checksum for one in DECLARED.experiments}

    def changed(old: str, new: str) -> set[str]:
        assert old in TEXT
        after = declaration_of(TEXT.replace(old, new, 1))
        return {one.name for one in after.experiments if one.checksum != before[one.name]}

    assert changed("Without the cap raw", "Lacking the cap, raw") == set()
    assert changed("changes = { softcap = 0.0 }", "changes = { softcap = 30.0 }") == {"softcap"}
    assert changed("level = 0.05", "level = 0.1") == set(before)


def test_a_damaged_declaration_is_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / FILE).write_text("[protocol", encoding="utf-8")
    with pytest.raises(UserError, match="make tangle") as caught:
        read_declaration(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project under git, with the declaration in a commit."""
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    commit(tmp_path, FILE, TEXT)
    return tmp_path


def commit(root: Path, path: str, text: str) -> str:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    when = ["--date", "2026-11-27T19:00:00+00:00"]
    subprocess.run(["git", *who, "commit", "-qm", "x", *when], cwd=root, check=True)
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True)
    return found.stdout.strip()


PLACE = "results/declared-softcap.json"


def recorded(checksum: str, started: str = "2026-11-27T20:00:00+00:00") -> dict[str, str]:
    """What a record says of its declaration and its beginning."""
    return {"declaration": checksum, "declared": "2026-11-27", "started": started}


def test_a_record_after_its_declaration_is_accepted_and_one_before_is_refused(project: Path) -> None:
    one = DECLARED.experiment("softcap")
    record = recorded(one.checksum)
    assert too_old(project, one, record, PLACE) is None  # not committed yet
    commit(project, PLACE, json.dumps(record))
    assert too_old(project, one, record, PLACE) is None
    other = declaration_of(TEXT.replace("softcap = 0.0", "softcap = 30.0", 1)).experiment("softcap")
    late = recorded(other.checksum)
    commit(project, PLACE, json.dumps(late))
    since = commit(project, FILE, TEXT.replace("softcap = 0.0", "softcap = 30.0", 1))
    assert declared_at(project, other) == since
    assert "not after its declaration" in (too_old(project, other, late, PLACE) or "")
    anew = recorded(other.checksum, "2026-11-27T21:00:00+00:00")  # run again: another record in its place
    assert too_old(project, other, anew, PLACE) is None  # not committed yet
    commit(project, PLACE, json.dumps(anew))
    assert too_old(project, other, anew, PLACE) is None


def test_a_record_of_trials_from_before_its_declaration_was_written_is_refused(project: Path) -> None:
    """Kept trials under a margin that was changed after they had been seen."""
    one = DECLARED.experiment("softcap")
    early = recorded(one.checksum, "2026-11-27T18:59:59+00:00")
    assert "before its declaration was written" in (too_old(project, one, early, PLACE) or "")
    commit(project, PLACE, json.dumps(early))
    assert "before its declaration was written" in (too_old(project, one, early, PLACE) or "")


def test_in_a_shallow_copy_the_dates_have_to_do(project: Path, tmp_path: Path) -> None:
    one = DECLARED.experiment("softcap")
    commit(project, PLACE, json.dumps(recorded(one.checksum)))
    copy = tmp_path / "copy"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{project}", str(copy)], check=True)
    assert too_old(copy, one, recorded(one.checksum), PLACE) is None
    assert "before the declaration" in (too_old(copy, one, recorded(one.checksum, "2026-11-26"), PLACE) or "")


def test_a_record_in_the_very_commit_of_its_declaration_is_refused(tmp_path: Path) -> None:
    one = DECLARED.experiment("softcap")
    subprocess.run(["git", "init", "-q", "."], cwd=tmp_path, check=True)
    (tmp_path / "results").mkdir()
    (tmp_path / PLACE).write_text(json.dumps(recorded(one.checksum)), encoding="utf-8")
    commit(tmp_path, FILE, TEXT)
    assert "not after its declaration" in (too_old(tmp_path, one, recorded(one.checksum), PLACE) or "")


def test_without_git_the_dates_have_to_do(tmp_path: Path) -> None:
    one = DECLARED.experiment("softcap")
    early, late = (recorded(one.checksum, f"2026-11-{day}T20:00:00+00:00") for day in (26, 28))
    assert "before the declaration" in (too_old(tmp_path, one, early, PLACE) or "")
    assert too_old(tmp_path, one, late, PLACE) is None


def test_make_check_refuses_a_record_that_is_damaged_or_too_old(tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir(parents=True)
    (tmp_path / "results").mkdir()
    (tmp_path / FILE).write_text(TEXT, encoding="utf-8")
    assert refused_records(tmp_path) == []
    sum_of = DECLARED.experiment("softcap").checksum
    for text, says in (("[", "damaged"), ("{}", "damaged"), ("[]", "damaged")):
        (tmp_path / PLACE).write_text(text, encoding="utf-8")
        assert [says in line for line in refused_records(tmp_path)] == [True]
    old = f'{{"declaration": "{sum_of}", "declared": "2026-11-27", "started": "2026-11-26"}}'
    (tmp_path / PLACE).write_text(old, encoding="utf-8")
    (line,) = refused_records(tmp_path)
    assert line.startswith(PLACE)
    assert "before the declaration" in line
    assert f"move the trials that are kept in {base_dir() / 'evidence'}" in line
    (tmp_path / PLACE).write_text(old.replace("11-26", "11-28"), encoding="utf-8")
    assert refused_records(tmp_path) == []


# Statistics


def test_with_one_speech_it_is_the_paired_t_test() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 10))
    found = estimate((a - b)[:, None])
    expected = stats.ttest_rel(a, b)
    assert p_difference(found) == pytest.approx(expected.pvalue)
    assert found.interval() == pytest.approx(tuple(expected.confidence_interval()))


def test_the_error_adds_what_seeds_and_what_speeches_contribute() -> None:
    seeds, speeches = np.arange(4.0)[:, None], np.arange(3.0)[None, :]
    both = estimate(seeds + 10 * speeches)
    assert both.error**2 == pytest.approx(stats.sem(seeds[:, 0]) ** 2 + 100 * stats.sem(speeches[0]) ** 2)
    assert both.freedom == 2


def test_two_one_sided_tests_against_the_margin() -> None:
    sure, unsure, outside = Estimate(0.002, 0.001, 9), Estimate(0.002, 0.02, 9), Estimate(0.011, 0.001, 9)
    assert p_equivalence(sure, 0.01) < 0.001
    assert p_equivalence(unsure, 0.01) > 0.05
    assert p_equivalence(outside, 0.01) > 0.5
    one_sided = stats.t.sf((0.01 - 0.002) / 0.001, 9)
    assert p_equivalence(sure, 0.01) == pytest.approx(one_sided)


def test_holm_raises_the_smallest_most() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("mean", "different", "equivalent", "seen", "says"),
    [
        (0.02, 0.01, 0.9, True, "worse"),
        (-0.02, 0.01, 0.9, True, "better"),
        (-0.02, 0.01, 0.9, False, "better"),
        (0.002, 0.01, 0.01, True, "equivalent within the margin"),
        (0.002, 0.5, 0.01, True, "equivalent within the margin"),
        (0.002, 0.5, 0.01, False, "could not have been seen"),
        (0.002, 0.5, 0.5, True, "not determined"),
        (0.002, 0.5, 0.5, False, "could not have been seen"),
    ],
)
def test_verdicts(mean: float, different: float, equivalent: float, seen: bool, says: str) -> None:
    assert verdict(mean, different, equivalent, 0.05, seen) == says


def test_the_procedure_errs_as_rarely_as_it_promises_and_sees_the_control() -> None:
    """A rate of at most 0.05 gives more than the bound in one of a thousand such tests."""
    runs = 600
    found = simulate(World(), runs, seed=1)
    bound = float(stats.binom.ppf(0.999, runs, 0.05)) / runs
    assert found["false difference"] <= bound
    assert found["false equivalence"] <= bound
    assert found["control seen"] >= float(stats.binom.ppf(0.001, runs, 0.8)) / runs
    # Comparisons of one book share the book's arm, so the book, not the comparison, counts as one draw.
    assert found["interval covers"] >= float(stats.binom.ppf(0.001, runs, 0.95)) / runs


def test_an_error_over_seeds_alone_would_not_cover_other_speeches() -> None:
    world = replace(World(), of_speeches=0.02, comparisons=4)
    drawn = world.differences(400, np.zeros(4), np.random.default_rng(0))
    alone = estimate(drawn.mean(axis=-1, keepdims=True))
    low, high = alone.interval()
    assert ((low <= 0) & (high >= 0)).mean() < 0.7
    low, high = estimate(drawn).interval()
    assert ((low <= 0) & (high >= 0)).mean() > 0.93


def test_the_exponent_of_made_up_losses_is_found() -> None:
    rates = [2.0**k for k in range(-4, 5)]
    points = {w: [(r, (np.log(r) + 0.5 * np.log(w / 256)) ** 2) for r in rates] for w in (64, 128, 256, 512)}
    assert exponent(points) == pytest.approx(-0.5, abs=1e-6)


def test_the_page_says_what_is_tested() -> None:
    page = (ROOT / "lit" / "91-declared-before.md").read_text(encoding="utf-8")
    count = sum(len(one.compared(size)) for one in DECLARED.experiments for size in one.sizes)
    assert World().comparisons == count
    assert re.search(rf"Of {count} comparisons", page)

"""Submissions to a fake Kaggle: refusals, questions, and the log."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import written
from conftest import TEST_IDS, Tiny
from kaggle_server import TOKEN, USER, Kaggle, serve
from typer.testing import CliRunner, Result

from pipeline.__main__ import app
from pipeline.core import freshness
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_json
from pipeline.core.recorded import write_recipe
from pipeline.core.run import Run, open_run
from pipeline.core.verdict import Reason, to_json
from pipeline.encode import sanity
from pipeline.kaggle import sent
from pipeline.kaggle.push_bundle import push_bundle
from pipeline.kaggle.submit import Kernel, Request, offer

CHECK = Reason("check", "weak group", "Patient p3 scores 0.2.")
STOP = Reason("stop", "no better than a constant", "It is no better than empty masks.")


class Submitting:
    """A run with a submission, and the command."""

    def __init__(self, tiny: Tiny, kaggle: Kaggle) -> None:
        tiny.settings["kaggle"] = "tiny-cup"
        tiny.save()
        self.tiny, self.kaggle = tiny, kaggle
        self.run: Run = tiny.run("decode")
        self.encoded()

    def encoded(self, *reasons: Reason, first: str = "", **result: Any) -> None:
        """Writes what encode leaves."""
        tuned = written.RESULT | result
        write_json(self.run.postprocess, tuned)
        rows = [f"{name},{first if name == 't1' else '1 5'}" for name in TEST_IDS]
        self.run.submission.parent.mkdir(exist_ok=True)
        self.run.submission.write_text("\n".join(["id,mask", *rows]) + "\n")
        digest = freshness.hash_file(self.run.submission)
        write_json(self.run.record, written.record_of(tuned, to_json(reasons)) | {"sha256": digest})

    def __call__(self, *words: str, answer: str | None = None) -> Result:
        done = CliRunner().invoke(app, ["submit", str(self.tiny.recipe_path), *words], input=answer)
        assert TOKEN not in done.output
        return done

    def refused(self, *words: str) -> str:
        done = self(*words)
        assert done.exit_code == 1 and done.exception is not None
        assert not self.kaggle.submissions
        return str(done.exception)

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run.record.read_text())
        return found


@pytest.fixture
def submit(tiny: Tiny, tmp_path: Path) -> Iterator[Submitting]:
    for kaggle in serve(tmp_path / "home"):
        yield Submitting(tiny, kaggle)


def test_a_fine_file_is_sent_and_its_score_written(submit: Submitting) -> None:
    submit.kaggle.scores = [{"status": "COMPLETE", "publicScore": "0.71", "privateScore": "0.69"}]
    done = submit("-m", "first try", "--wait", "5s")
    assert done.exit_code == 0, done.exception
    assert "public score 0.71; estimated 0.6500, 95 % 0.5500 to 0.7500" in done.output
    assert "private score 0.69" in done.output
    assert list(submit.kaggle.uploads.values()) == [submit.run.submission.read_bytes()]
    (call,) = submit.kaggle.calls("CreateSubmission")
    assert call["competitionName"] == "tiny-cup" and call["submissionDescription"] == "first try"
    (row,) = sent.read().to_dict("records")
    expected = {"run": "small", "status": "complete", "public": "0.71", "private": "0.69", "estimate": "0.65",
                "low": "0.55", "high": "0.75", "verdict": "fine", "ref": "700", "competition": "tiny"}  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    (said,) = submit.record["kaggle"]
    assert said["public"] == 0.71 and said["private"] == 0.69 and said["message"] == "first try"


def test_without_a_terminal_nobody_waits(submit: Submitting) -> None:
    done = submit()
    assert done.exit_code == 0 and "submissions tiny` will show its score" in done.output
    assert not submit.kaggle.calls("GetSubmission")
    assert sent.read()["status"].tolist() == ["pending"]
    assert submit.record["kaggle"][0]["public"] is None


def test_an_invalid_file_is_refused(submit: Submitting) -> None:
    submit.encoded(first="9999 5")
    message = submit.refused("--yes", "--force")
    assert "is invalid, and nothing was submitted: row 2" in message
    submit.run.submission.write_text("id,mask\n")
    assert "was changed after encode wrote it" in submit.refused("--yes", "--force")
    submit.run.submission.unlink()
    assert "does not exist: `python -m pipeline run" in submit.refused("--yes", "--force")


def test_a_doubtful_one_is_asked_about(submit: Submitting) -> None:
    submit.encoded(CHECK)
    message = submit.refused()
    assert message.startswith("The verdict on small is CHECK FIRST: Patient p3 scores 0.2.")
    assert message.endswith("There is no terminal to ask on: add --yes to agree.")
    assert submit("--yes").exit_code == 0
    again = submit()
    assert "The same file was already submitted on " in str(again.exception) and len(submit.kaggle.submissions) == 1


def test_do_not_submit_needs_force(submit: Submitting) -> None:
    submit.encoded(STOP)
    assert "DO NOT SUBMIT: It is no better than empty masks. --force" in submit.refused("--yes")
    assert submit("--force").exit_code == 0 and len(submit.kaggle.submissions) == 1


def test_an_upload_that_is_cut_short_submits_nothing(submit: Submitting) -> None:
    submit.kaggle.upload_status = 400
    assert "was incomplete; nothing was submitted" in submit.refused()
    assert sent.read().empty
    submit.kaggle.fails["CreateSubmission"], submit.kaggle.upload_status = (403, "Submissions are over"), 200
    message = submit.refused()
    assert (
        "(403: Submissions are over): join the competition and accept its rules" in message
        and "Nothing was submitted." in message
    )
    assert sent.read().empty


@pytest.mark.parametrize("arrives", [True, False])
def test_a_lost_answer_is_settled_before_it_is_sent_again(submit: Submitting, arrives: bool) -> None:
    if arrives:
        submit.kaggle.loses.add("CreateSubmission")
    else:
        submit.kaggle.fails["CreateSubmission"] = 503, "busy"
    message = str(submit("-m", "mine").exception)
    assert "The submission may still have arrived: `python -m pipeline submissions tiny` checks this" in message
    assert "othing was submitted" not in message and sent.read()["status"].tolist() == ["sending"]
    submit.kaggle.loses.clear()
    submit.kaggle.fails.clear()
    assert ("has already sent it, so nothing was submitted" in submit("-m", "mine").output) is arrives
    assert len(submit.kaggle.submissions) == 1 and sent.read()["status"].tolist() == ["pending"]


def test_no_submission_is_left_today(submit: Submitting) -> None:
    submit.kaggle.allowed = 0
    assert "No submissions to tiny-cup are left for today" in submit.refused()


def test_a_token_that_expires_while_the_score_is_awaited(submit: Submitting) -> None:
    submit.kaggle.fails["GetSubmission"] = 401, "expired"
    message = str(submit("--wait", "5s").exception)
    assert message.startswith("Could not ask for the score: Kaggle rejects the token (401)")
    assert "The submission was sent (its number is 700); `python -m pipeline submissions tiny` will show" in message
    assert sent.read()["status"].tolist() == ["pending"]


def test_what_kaggle_cannot_score(submit: Submitting) -> None:
    submit.kaggle.scores = [{"status": "ERROR", "errorDescription": "Submission must have 4 rows"}]
    assert (
        str(submit("--wait", "5s").exception) == "Kaggle could not score the submission: Submission must have 4 rows."
    )
    assert sent.read()["status"].tolist() == ["error"]


def test_a_kill_between_sending_and_writing_is_noticed(submit: Submitting) -> None:
    submit("-m", "mine")
    sent.update(sent.read()["sent"][0], "small", {"ref": None, "status": "sending"})
    done = submit("-m", "mine")
    assert "has already sent it, so nothing was submitted" in done.output and len(submit.kaggle.submissions) == 1
    assert sent.read()["ref"].tolist() == ["700"]
    submit.kaggle.submissions.clear()
    sent.update(sent.read()["sent"][0], "small", {"ref": None, "status": "sending"})
    assert submit("-m", "mine").exit_code == 0  # it had not arrived
    assert len(submit.kaggle.submissions) == 1 and sent.read()["status"].tolist() == ["pending"]


def test_a_kernel_of_a_code_competition(submit: Submitting) -> None:
    submit.run.submission.unlink()  # nothing is uploaded from here
    done = submit("-k", f"{USER}/bundle", "-v", "3", "-m", "offline")
    assert done.exit_code == 0, done.exception
    (call,) = submit.kaggle.calls("CreateCodeSubmission")
    wanted = {"kernelOwner": USER, "kernelSlug": "bundle", "kernelVersion": 3, "fileName": "submission.csv"}
    assert {name: call[name] for name in wanted} == wanted
    assert sent.read()["what"].tolist() == [f"{USER}/bundle/3"]
    assert "must be given together" in str(submit("-k", "bundle").exception)


def test_a_kernel_that_ran_is_offered(submit: Submitting, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request("offline", Kernel(f"{USER}/bundle", 3))
    (said,) = offer(submit.run, request)
    assert said.startswith("not submitted; `python -m pipeline submit ")
    assert said.endswith(f" -k {USER}/bundle -v 3 -m offline` submits it") and not submit.kaggle.submissions
    assert "submitted ada/bundle/3 to tiny-cup" in list(offer(submit.run, replace(request, yes=True)))


def test_a_bundle_is_pushed_and_offered(submit: Submitting, capsys: Any) -> None:
    folder = submit.run.folder / "bundle"
    named = {"id": "USERNAME/small-bundle", "title": "small-bundle", "licenses": [{"name": "other"}]}
    write_json(folder / "dataset" / "dataset-metadata.json", named)
    write_json(folder / "dataset" / "bundle.json", {"output": "submission.csv"})
    (folder / "kernel").mkdir()
    (folder / "kernel" / "inference.py").write_text("")
    write_json(folder / "kernel" / "kernel-metadata.json", {
        "id": "USERNAME/small-inference", "title": "small-inference", "code_file": "inference.py",
        "language": "python", "kernel_type": "script", "dataset_sources": ["USERNAME/small-bundle"],
    })  # fmt: skip
    submit.kaggle.kernel_files = {"submission.csv": b"id,mask\n"}
    with pytest.raises(PipelineError, match="that is not valid: 4 of 4 test ids are missing"):
        list(push_bundle(submit.run, folder, Request("offline")))
    empty = "".join(["id,mask\n", *(f"{name},\n" for name in TEST_IDS)])
    submit.kaggle.kernel_files = {"submission.csv": empty.encode()}
    submit.kaggle.log.append({"stream_name": "stderr", "time": 1.0, "data": "note: 4 of 4 images not reached\n"})
    judged = sanity.Reason("stop", "all masks empty", "All masks are empty: 4 of 4 test images.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sanity, "find_reasons", lambda *arguments, **options: [judged])
        for request in (Request("offline", yes=True), Request("offline")):
            with pytest.raises(PipelineError, match="DO NOT SUBMIT: All masks are empty.* -m offline --force` submits"):
                list(push_bundle(submit.run, folder, request))
    assert not submit.kaggle.submissions and "note: 4 of 4 images not reached" in capsys.readouterr().err
    message = submit.refused("-k", f"{USER}/small-inference", "-v", "3", "--yes")
    assert "DO NOT SUBMIT: All masks are empty" in message
    submit.kaggle.kernel_files = {"submission.csv": submit.run.submission.read_bytes()}
    said = list(push_bundle(submit.run, folder, Request("offline")))
    assert said[0].startswith("the commit run of ada/small-inference, version 4, wrote a valid submission.csv: work/")
    assert said[-1].startswith("not submitted; ") and "-k ada/small-inference -v 4" in said[-1]
    assert submit.kaggle.calls("SaveKernel")[1]["datasetDataSources"] == ["ada/small-bundle"]
    assert "submitted ada/small-inference/5 to tiny-cup" in list(
        push_bundle(submit.run, folder, Request("offline", yes=True))
    )


def test_the_list_fetches_scores_and_says_what_to_select(submit: Submitting) -> None:
    for number, (estimate, public) in enumerate([(0.70, 0.71), (0.69, 0.75), (0.69, 0.60), (0.5, 0.9)]):
        fold = {"score": estimate, "interval_95": [estimate - 0.04, estimate + 0.04]}
        submit.encoded(first=f"{number + 1} 5", scores=written.RESULT["scores"] | {"fold_model": fold})
        if number == 2:  # differs most
            submit.encoded(first="100 900", scores=written.RESULT["scores"] | {"fold_model": fold})
        kept = submit.run.submission.with_name(f"kept-{number}.csv")
        kept.write_bytes(submit.run.submission.read_bytes())
        submit("-m", f"number {number}")
        submit.kaggle.submissions[-1] |= {"status": "COMPLETE", "publicScore": str(public)}
    rows = sent.read("tiny")
    assert rows["public"].tolist() == ["0.71", "0.75", "0.6", ""]  # the last was not asked for yet
    assert "Nothing has been submitted to other yet" in str(CliRunner().invoke(app, ["submissions", "other"]).exception)
    write_recipe(submit.run)  # where the competition's YAML is found that lies somewhere else
    done = CliRunner().invoke(app, ["submissions"])
    assert done.exit_code == 0, done.exception
    assert "estimate and public score: a correlation needs 6 scored submissions; 4 so far" in done.output
    (said,) = (line for line in done.output.splitlines() if line.startswith("select small of "))
    assert "has the best honest estimate (0.7000); of the 2 within one standard error (0.0204) of it, " in said
    assert "small (0.6900) differs most: in " in said and "number 3" in done.output
    assert sent.read("tiny")["public"].tolist() == ["0.71", "0.75", "0.6", "0.9"]


def test_the_scores_survive_encode_and_leave_it_up_to_date(submit: Submitting) -> None:
    step = freshness.Step("encode", "encode", submit.run.folder / "submission.manifest.json", (),
                          (submit.run.submission, submit.run.record), {})  # fmt: skip
    freshness.record(step, 1.0)
    assert not freshness.stale(step)
    submit("-m", "once")
    assert submit.record["kaggle"] and not freshness.stale(step)
    submit.run.record.write_text(submit.run.record.read_text() + " ")
    assert freshness.stale(step)


def test_the_competition_must_be_known_to_kaggle(tiny: Tiny) -> None:
    opened = open_run(str(tiny.recipe_path))
    from pipeline.kaggle.submit import slug_of

    with pytest.raises(Exception, match="does not give its name on Kaggle"):
        slug_of(opened)

"""Publishing: one MLflow run for each result, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from stages.tracking import outbox, runs, server
from tests.tracking.conftest import Answer, Results

A, B = "a" * 64, "b" * 64
DEAD = "http://127.0.0.1:9"
Publish = Callable[[], bool]


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def test_result_is_a_parent_with_its_figures_and_a_child_for_each_repeat(results: Results, publish: Publish) -> None:
    results.add("probe", A, accuracy=0.8)
    assert publish()
    (parent,) = results.parents()
    assert (parent["name"], parent["status"]) == ("probe", "FINISHED")
    assert parent["latest_metrics"]["accuracy"] == 0.8
    assert {"accuracy_low", "accuracy_sd", "train_seconds", "trained_parameters"} <= set(parent["latest_metrics"])
    assert "extract_seconds" not in parent["latest_metrics"]  # null: unknown
    tags = {k: parent["tags"][k] for k in ("fingerprint", "names", "family", "kind")}
    assert tags == {"fingerprint": A, "names": "probe", "family": "feature", "kind": "logistic"}
    params = parent["params"]
    assert (params["dataset"], params["dataset.group"], params["transfer.C"]) == ("cells", "module", "[0.1, 1.0]")
    assert (params["features.cut"], params["network"]) == ("pooled", "tf_efficientnet_lite0")
    children = sorted(results.children(parent), key=lambda run: run["name"])
    assert [run["name"] for run in children] == ["repeat 0", "repeat 1"]
    # Of the first four images three are classified rightly, of the other four three.
    assert [run["latest_metrics"]["repeat/accuracy"] for run in children] == [0.75, 0.75]
    assert [run["params"]["chosen.C"] for run in children] == ["0.1", "1.0"]
    assert not {"accuracy", "fingerprint"} & {*children[0]["latest_metrics"], *children[0]["tags"]}


def test_training_curves_go_by_epoch(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    publish()
    child = results.children(results.parents()[0])[0]
    history = store_client(results).get_metric_history(child["run_uuid"], "curve/train_loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.7), (2, 0.5)]


def test_dataset_plots_pictures_and_model_belong_to_the_parent(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    (results.root / "reports" / "report.html").write_text("<html>")
    publish()
    (parent,) = results.parents()
    run = store_client(results).get_run(parent["run_uuid"])
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("cells", (b"cells".hex() * 64)[:36])
    assert json.loads(dataset.dataset.profile)["counts"] == {"defective": 3, "sound": 5}
    folder = local(parent["artifact_uri"])
    assert folder.is_relative_to(results.root / "mlartifacts")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"plots/roc.csv", "plots/confusion.csv", "pictures/confusion.png", "metrics.json"} <= found
    assert {"cost.json", "run.json", "report.html"} <= found
    assert len(run.outputs.model_outputs) == 1
    model = store_client(results).get_logged_model(run.outputs.model_outputs[0].model_id)
    assert (model.status, {m.key: m.value for m in model.metrics}["accuracy"]) == ("READY", 0.75)


def store_client(results: Results) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{results.root / 'mlflow.db'}")


def test_published_again_nothing_is_added(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    publish()
    before = results.runs()
    assert publish()
    assert results.runs() == before


def test_with_nothing_to_do_mlflow_is_not_imported(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    publish()
    script = (
        "import sys; from stages.params import Params; from stages.publish import publish;"
        f"assert publish(Params.model_validate_json({results.params.model_dump_json()!r}));"
        "assert not {'mlflow', 'sqlalchemy', 'pandas', 'torch'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=results.root, env={"PYTHONPATH": str(root)}, check=True)


def test_renamed_run_keeps_its_mlflow_run_and_needs_no_model(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    publish()
    (before,) = results.parents()
    results.rename("probe", "linear")
    results.lose("linear")
    assert publish()
    (after,) = results.parents()
    assert (after["run_uuid"], after["name"]) == (before["run_uuid"], "linear")
    assert after["tags"]["names"] == "linear, probe"


def test_two_names_for_one_result_are_one_run(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    results.add("same", A)
    publish()
    (parent,) = results.parents()
    assert parent["tags"]["names"] == "probe, same"


def test_changed_run_of_the_same_name_is_a_second_result(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    publish()
    shutil.rmtree(results.root / "data/evaluations/probe")
    results.add("probe", B)
    publish()
    assert sorted(run["tags"]["fingerprint"] for run in results.parents()) == [A, B]


def test_each_data_set_has_its_experiment_under_the_prefix(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFER_EXPERIMENT_PREFIX", "solar/")
    results.add("probe", A, dataset="cells")
    results.add("other", B, dataset="cells-published")
    publish()
    names = {e.name for e in store_client(results).search_experiments()}
    assert {"solar/cells", "solar/cells-published"} <= names


def test_another_prefix_holds_its_own_runs(results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    results.add("probe", A)
    for prefix in ("one/", "two/", "one/"):
        monkeypatch.setenv("TRANSFER_EXPERIMENT_PREFIX", prefix)
        assert publish()
    assert len(results.parents()) == 2


def test_deleted_store_is_filled_again(results: Results, publish: Publish, empty_store: Path) -> None:
    results.add("probe", A)
    results.add("svm", B)
    publish()
    shutil.copyfile(empty_store, results.root / "mlflow.db")
    shutil.rmtree(results.root / "mlartifacts")
    assert publish()
    assert {run["tags"]["fingerprint"] for run in results.parents()} == {A, B}
    assert all(local(run["artifact_uri"]).is_dir() for run in results.parents())


def test_run_deleted_in_mlflow_is_restored_with_its_repeats(
    results: Results, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    publish()
    before, client = results.runs(), store_client(results)
    for run in before:
        client.delete_run(run["run_uuid"])
    assert publish()
    assert {run["run_uuid"] for run in results.runs()} == {run["run_uuid"] for run in before}
    assert warnings(capsys) == [
        "warning: the run probe had been deleted in MLflow and is restored: params.yaml still names it"
    ]


def test_experiment_deleted_in_mlflow_is_restored_and_no_run_is_made(
    results: Results, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    publish()
    before, client = results.runs(), store_client(results)
    client.delete_experiment(before[0]["experiment_id"])
    assert results.runs() == []
    assert publish()
    assert {run["run_uuid"] for run in results.runs()} == {run["run_uuid"] for run in before}
    assert len(warnings(capsys)) == 1


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


CALLS = ["create_run", "log_inputs", "log_artifacts", "log_model_artifacts", "log_batch", "set_terminated", "set_tag"]


@pytest.mark.parametrize("call", CALLS)
def test_publish_killed_after_any_call_is_completed_by_the_next(
    call: str, results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    results.add("probe", A)
    original = getattr(MlflowClient, call)

    def killed(self: Any, run: str, *args: Any, **kwargs: Any) -> None:
        original(self, run, *args, **kwargs)
        if call in ("create_run", "log_model_artifacts") or "family" in self.get_run(run).data.tags:
            raise Killed  # with the parent half made

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, killed)
        with pytest.raises(Killed):
            publish()
    assert publish()
    (parent,) = results.parents()
    assert (parent["status"], parent["tags"]["fingerprint"]) == ("FINISHED", A)
    assert len(results.children(parent)) == len(results.runs()) - 1 == 2
    assert not outbox.pending()


def test_work_of_another_machine_is_left_alone_until_it_is_old(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.add("probe", A)
    publish()
    client = store_client(results)
    experiment = results.parents()[0]["experiment_id"]
    theirs = client.create_run(experiment, tags={runs.UNFINISHED: f"{A} elsewhere"})
    client.delete_tag(results.parents()[0]["run_uuid"], "fingerprint")
    publish()
    assert client.get_run(theirs.info.run_id).info.lifecycle_stage == "active"
    monkeypatch.setattr(runs, "HOURS_UNTIL_ABANDONED", -1)
    client.delete_tag(next(r["run_uuid"] for r in results.parents() if "fingerprint" in r["tags"]), "fingerprint")
    publish()
    assert client.get_run(theirs.info.run_id).info.lifecycle_stage == "deleted"


def test_work_that_a_machine_with_a_fast_clock_takes_for_given_up_waits_and_is_made_again(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)

    def meanwhile_deleted(client: Any, experiment: str, run: str, entry: Path, result: Any) -> str:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(runs, "HOURS_UNTIL_ABANDONED", -1)
            elsewhere.setattr(runs, "_mark", lambda fingerprint: f"{fingerprint} elsewhere")
            runs._delete_half_made(client, experiment, A)
        return original(client, experiment, run, entry, result)

    original = runs.log_model
    with monkeypatch.context() as here:
        here.setattr(runs, "log_model", meanwhile_deleted)
        assert not publish()
    (warning,) = warnings(capsys)
    assert "; 1 result waits in " in warning
    assert publish()
    (parent,) = results.parents()
    assert (parent["status"], parent["tags"]["fingerprint"]) == ("FINISHED", A)
    assert len(results.children(parent)) == 2


def test_of_two_machines_that_publish_at_once_the_first_stays(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.add("probe", A)
    publish()
    (first,) = results.parents()
    shutil.rmtree(results.root / "data/evaluations/probe")
    results.add("probe", B)
    # The other machine's run appears after this one has looked for it.
    monkeypatch.setattr(runs, "find", lambda *_: store_client(results).set_tag(first["run_uuid"], "fingerprint", B))
    assert publish()
    assert [run["run_uuid"] for run in results.parents()] == [first["run_uuid"]]


def test_machine_that_began_first_and_ends_last_deletes_what_the_other_has_put_there_meanwhile(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.add("probe", A)
    publish()
    (later,) = results.parents()
    client = store_client(results)
    shutil.rmtree(results.root / "data/evaluations/probe")
    results.add("linear", B)

    def create_long_ago(_: object, experiment: str, name: str, tags: dict[str, str]) -> str:
        return str(client.create_run(experiment, start_time=1, run_name=name, tags=tags).info.run_id)

    monkeypatch.setattr(runs, "find", lambda *_: client.set_tag(later["run_uuid"], "fingerprint", B))
    monkeypatch.setattr(runs, "_create", create_long_ago)
    assert publish()
    (only,) = results.parents()
    assert only["run_uuid"] != later["run_uuid"]
    assert set(only["tags"]["names"].split(", ")) == {"linear", "probe"}


def test_class_weights_of_classes_whose_names_mlflow_does_not_take_are_logged_as_one_value(
    results: Results, publish: Publish
) -> None:
    results.add("probe", A)
    path = results.root / "data/models/probe/run.json"
    facts = json.loads(path.read_text())
    facts["transfer"]["class_weight"] = {"cracked (deep) & wet": 2.0}
    path.write_text(json.dumps(facts))
    assert publish()
    (parent,) = results.parents()
    assert json.loads(parent["params"]["transfer.class_weight"]) == {"cracked (deep) & wet": 2.0}


def test_run_of_an_earlier_split_is_not_published_as_one_of_today(
    results: Results, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    path = results.root / "data/prepared/cells/dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content_hash": "0" * 64}))
    assert not publish()
    assert "data/prepared/cells" in warnings(capsys)[0]


def test_dead_server_costs_one_line_and_the_outbox_outlives_the_project(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    assert not publish()
    (warning,) = warnings(capsys)
    assert warning.startswith(f"warning: {DEAD} does not answer (Connection refused); 1 result waits in ")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name in ("data", "reports"):
        shutil.rmtree(results.root / name)
    results.entries.clear()
    assert publish()
    (parent,) = results.parents()
    assert parent["tags"]["fingerprint"] == A
    assert (local(parent["artifact_uri"]) / "pictures" / "confusion.png").read_bytes() == b"picture"
    assert not outbox.pending()


@pytest.mark.parametrize(
    ("status", "seconds", "message"),
    [(500, 0.0, "answers with an error (500 Internal Server Error)"), (200, 1.0, "does not answer")],
    ids=["failing", "slow"],
)
def test_a_server_that_fails_or_is_slow_costs_one_line_and_the_result_goes_out_later(
    status: int,
    seconds: float,
    message: str,
    results: Results,
    publish: Publish,
    stub: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def answer(*_: Any) -> Answer:
        time.sleep(seconds)
        return status, {}

    monkeypatch.setattr(server, "SECONDS_TO_ANSWER", 0.3)
    results.add("probe", A)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stub(answer))
    assert not publish()
    (warning,) = warnings(capsys)
    assert message in warning
    assert "; 1 result waits in " in warning
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert publish()
    assert [run["tags"]["fingerprint"] for run in results.parents()] == [A]
    assert not outbox.pending()


def test_a_server_that_fails_once_it_is_written_to_costs_one_line(
    results: Results, publish: Publish, stub: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    results.add("probe", A)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stub(lambda path, _: (200 if path.endswith("/search") else 500, {})))
    assert not publish()
    (warning,) = warnings(capsys)
    assert "; 1 result waits in " in warning
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert publish()
    assert [run["tags"]["fingerprint"] for run in results.parents()] == [A]


def test_results_that_the_store_has_leave_the_outbox_unsent(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    results.add("probe", A)
    publish()
    before = results.runs()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    publish()
    assert len(outbox.pending()) == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert publish()
    assert results.runs() == before
    assert not outbox.pending()


def test_what_is_not_here_is_named_in_one_line_and_the_rest_is_published(
    results: Results, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    results.add("svm", B)
    results.lose("svm")
    assert not publish()
    assert [run["name"] for run in results.parents()] == ["probe"]
    (warning,) = warnings(capsys)
    assert warning.startswith(
        "warning: not published: svm; data/evaluations/svm, data/models/svm cannot be had from DVC"
    )


def test_result_that_waits_is_sent_though_its_model_is_gone(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    publish()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    results.rename("probe", "linear")
    results.lose("linear")
    capsys.readouterr()
    assert publish()
    assert warnings(capsys) == []
    assert results.parents()[0]["tags"]["names"] == "linear, probe"


def test_result_with_a_file_missing_is_said_and_fails_no_stage(
    results: Results, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    results.add("svm", B)
    (results.root / "data/models/svm/repeat-0/features.json").unlink()
    assert not publish()
    (warning,) = warnings(capsys)
    assert warning.startswith("warning: not published: svm; data/models/svm/repeat-0/features.json is not there: run")
    assert [run["name"] for run in results.parents()] == ["probe"]


def test_model_of_another_result_is_not_published_as_this_one(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    facts = results.root / "data/models/probe/run.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "fingerprint": B}))
    assert not publish()
    assert results.parents() == []


def test_result_that_mlflow_refuses_does_not_hold_up_the_others(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(client: Any, experiment: str, run: str, entry: Path, result: Any) -> str:
        if result["fingerprint"] == A:
            raise MlflowException("no such thing\nand more")
        return original(client, experiment, run, entry, result)

    original = runs.log_model
    monkeypatch.setattr(runs, "log_model", refuse)
    results.add("probe", A)
    results.add("svm", B)
    assert not publish()
    (warning,) = warnings(capsys)
    assert ": no such thing; 1 result waits in " in warning
    assert [run["tags"]["fingerprint"] for run in results.parents() if run["status"] == "FINISHED"] == [B]
    monkeypatch.undo()


def test_long_params_are_cut_so_that_they_still_differ(results: Results, publish: Publish) -> None:
    results.add("probe", A)
    results.add("svm", B)
    facts = results.root / "data/models/svm/run.json"
    content = json.loads(facts.read_text())
    content["transfer"]["names"] += "y"
    facts.write_text(json.dumps(content))
    publish()
    values = [run["params"]["transfer.names"] for run in results.parents()]
    assert len(set(values)) == 2
    assert all(len(value) == 6000 for value in values)


def test_run_without_a_report_is_said_and_the_rest_is_published(
    results: Results, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    results.add("svm", B)
    shutil.rmtree(results.root / "reports/runs/svm")
    assert not publish()
    assert warnings(capsys) == ["warning: not evaluated yet, so not published: svm; run `dvc repro`"]
    assert len(results.parents()) == 1


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--strict"], 1)])
def test_exit_code_tells_only_with_strict(
    arguments: list[str], code: int, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages import publish as module
    from stages.cli import guard

    results.add("probe", A)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    monkeypatch.setattr(module, "read_params", lambda: results.params)
    monkeypatch.setattr(sys, "argv", ["publish", *arguments])
    with pytest.raises(SystemExit) as end:
        guard(module.main)
    assert end.value.code == code


def main(results: Results, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Publish as a program does; returns its exit code."""
    from stages import publish as module
    from stages.cli import guard

    monkeypatch.setattr(module, "read_params", lambda: results.params)
    monkeypatch.setattr(sys, "argv", ["publish", *arguments])
    with pytest.raises(SystemExit) as end:
        guard(module.main)
    return end.value.code


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), ".transfer/outbox/a\nb")


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--strict"], 1)])
def test_outbox_on_a_full_disk_is_told_in_one_line(
    arguments: list[str],
    code: int,
    results: Results,
    publish: Publish,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results.add("probe", A)
    results.add("svm", B)
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "put", no_space)
        assert main(results, patch, *arguments) == code
    expected = "not published: probe, svm; .transfer/outbox/a\\nb cannot be written or read: No space left on device"
    assert capsys.readouterr().err == f"warning: {expected}\n"
    assert publish()
    assert len(results.parents()) == 2


@pytest.mark.parametrize(("arguments", "code"), [([], 0), (["--strict"], 1)])
def test_lock_that_cannot_be_taken_is_told_in_one_line(
    arguments: list[str],
    code: int,
    results: Results,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results.add("probe", A)
    (results.root / ".transfer").write_text("no folder")
    assert main(results, monkeypatch, *arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: not published: {results.root / '.transfer'} cannot be written or read: ")


def test_entry_of_the_outbox_that_a_crash_has_cut_off_is_made_again(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results.add("probe", A)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", DEAD)
        publish()
    (entry,) = outbox.pending()
    (entry / outbox.RESULT).write_bytes(b"")
    capsys.readouterr()
    assert publish()
    (warning,) = warnings(capsys)
    assert warning.startswith(f"warning: {entry} is not whole and is removed")
    assert [run["tags"]["fingerprint"] for run in results.parents()] == [A]


def test_fault_of_ours_does_not_fail_the_stage_but_is_told(
    results: Results, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages import publish as module

    monkeypatch.setattr(module, "read_params", lambda: results.params)
    monkeypatch.setattr(module, "publish", lambda _: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["publish"])
    module.main()
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["publish", "--strict"])
    with pytest.raises(ZeroDivisionError):
        module.main()


def test_four_publishers_at_once_make_the_store_and_one_run_for_each_result(results: Results) -> None:
    results.add("probe", A)
    results.add("svm", B)
    script = (
        "from stages.params import Params; from stages.publish import publish;"
        f"assert publish(Params.model_validate_json({results.params.model_dump_json()!r}))"
    )
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "MLFLOW_DISABLE_TELEMETRY": "true"}
    publishers = [subprocess.Popen([sys.executable, "-c", script], cwd=results.root, env=env) for _ in range(4)]
    assert [publisher.wait(timeout=300) for publisher in publishers] == [0, 0, 0, 0]
    assert sorted(run["tags"]["fingerprint"] for run in results.parents()) == [A, B]
    assert len(results.runs()) == 2 + 2 * 2


def test_models_that_a_fresh_clone_lacks_are_fetched_from_dvc(
    results: Results, publish: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DVC_NO_ANALYTICS", "true")
    results.add("probe", A)
    outputs = ["data/models/probe", "data/evaluations/probe", "data/prepared/cells"]
    stage = {"cmd": "true", "outs": outputs}
    (results.root / "dvc.yaml").write_text(json.dumps({"stages": {"all": stage}}))
    dvc = f"{sys.executable} -m dvc"
    remote = f"{dvc} remote add -d shared '{tmp_path / 'remote'}'"
    commands = (
        f"git init -q && {dvc} init -q && {remote} -q && {dvc} commit -q -f && {dvc} push -q && rm -rf .dvc/cache data"
    )
    subprocess.run(commands, shell=True, cwd=results.root, check=True)
    assert publish()
    (parent,) = results.parents()
    assert parent["tags"]["fingerprint"] == A
    assert parent["tags"]["dvc.revision"].endswith(".dir")
    assert (results.root / "data/models/probe/run.json").is_file()

"""Each record becomes one complete MLflow run, and the record on disk is the current run of its point."""

from __future__ import annotations

import faults
import pytest
from mlflow_grid import artifacts, runs_of, write_language, write_point

from blast.experiment.plan.paths import GridFolder
from blast.experiment.tracking.importer import import_grid, main
from blast.experiment.tracking.store import open_client, tracking_uri
from blast.files import write_json


def test_a_record_becomes_a_run_with_everything_in_it(mlflow_folder: GridFolder) -> None:
    record = write_point(mlflow_folder, "p1")
    summary = import_grid(mlflow_folder.root)
    assert summary.added == ["p1"]
    assert not summary.faults
    (run,) = runs_of(mlflow_folder)
    assert (run.info.run_name, run.info.status) == ("p1", "FINISHED")
    assert run.info.end_time - run.info.start_time == 40_000
    assert run.data.params["block"] == "16x32"
    assert run.data.params["training.steps"] == "3"
    assert run.data.metrics["quality/loss"] == 2.0
    assert run.data.metrics["quality/loss_stderr"] == pytest.approx(0.1)
    assert run.data.metrics["sparsity/achieved"] == 0.5
    assert run.data.metrics["memory/weights_bytes"] == 4096
    assert {
        "record_digest": record["record_digest"],
        "commit": "c0ffee",
        "superseded": "false",
    }.items() <= run.data.tags.items()
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["pystdlib"]
    found = {str(file.relative_to(artifacts(run))) for file in artifacts(run).rglob("*") if file.is_file()}
    assert found == {"point.json", "record.json", "log.txt", "masks/over_time.png", "masks/last.png"}


def test_long_curves_are_imported_completely(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1", steps=2100)
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    client = open_client(tracking_uri(mlflow_folder.root.parent))
    history = client.get_metric_history(run.info.run_id, "curves/train_loss")
    assert [point.step for point in history] == list(range(2100))
    assert history[4].value == 1.0


def test_the_training_time_is_imported_by_step(mlflow_folder: GridFolder) -> None:
    record = write_point(mlflow_folder, "p1")
    record["run"]["training_seconds"] = {"step": [9, 19], "value": [1.5, 2.5], "compiling": [1.0, 1.0]}
    write_json(mlflow_folder.record("p1"), record)
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    history = open_client(tracking_uri(mlflow_folder.root.parent)).get_metric_history(
        run.info.run_id, "curves/training_time"
    )
    assert [(point.step, point.value) for point in history] == [(9, 1.5), (19, 2.5)]


def test_importing_twice_adds_nothing(mlflow_folder: GridFolder) -> None:
    write_language(mlflow_folder, write_point(mlflow_folder, "p1"))
    import_grid(mlflow_folder.root)
    before = [(run.info.run_id, run.data.tags) for run in runs_of(mlflow_folder)]
    summary = import_grid(mlflow_folder.root)
    assert (summary.added, summary.amended, summary.superseded, summary.unchanged) == ([], [], [], ["p1"])
    assert [(run.info.run_id, run.data.tags) for run in runs_of(mlflow_folder)] == before


def test_later_language_metrics_are_added_to_the_run(mlflow_folder: GridFolder) -> None:
    record = write_point(mlflow_folder, "p1")
    import_grid(mlflow_folder.root)
    write_language(mlflow_folder, record, accuracy=0.5)
    assert import_grid(mlflow_folder.root).amended == ["p1"]
    assert import_grid(mlflow_folder.root).amended == []
    (run,) = runs_of(mlflow_folder)
    assert run.data.metrics["pystdlib_next_line/acc"] == 0.5
    assert run.data.metrics["pystdlib_next_line/acc_stderr"] == pytest.approx(0.02)
    assert run.data.metrics["quality/loss"] == 2.0
    write_language(mlflow_folder, record, accuracy=0.25)
    assert import_grid(mlflow_folder.root).amended == ["p1"]
    (run,) = runs_of(mlflow_folder)
    assert run.data.metrics["pystdlib_next_line/acc"] == 0.25


def test_language_metrics_of_another_record_are_ignored(mlflow_folder: GridFolder) -> None:
    write_language(mlflow_folder, write_point(mlflow_folder, "p1", loss=2.0))
    write_point(mlflow_folder, "p1", loss=1.0)
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    assert "pystdlib_next_line/acc" not in run.data.metrics


def test_a_rerun_is_a_new_run_and_the_old_one_is_superseded(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1", loss=2.0)
    write_point(mlflow_folder, "p2")
    import_grid(mlflow_folder.root)
    write_point(mlflow_folder, "p1", loss=1.5)
    summary = import_grid(mlflow_folder.root)
    assert (summary.added, summary.superseded) == (["p1"], ["p1"])
    found = {
        (run.info.run_name, run.data.metrics["quality/loss"]): run.data.tags["superseded"]
        for run in runs_of(mlflow_folder)
    }
    assert found == {("p1", 2.0): "true", ("p1", 1.5): "false", ("p2", 2.0): "false"}


def test_the_record_on_disk_is_the_current_run_even_if_it_is_the_older_one(mlflow_folder: GridFolder) -> None:
    for loss in (2.0, 1.5, 2.0):
        write_point(mlflow_folder, "p1", loss=loss)
        import_grid(mlflow_folder.root)
    found = {run.data.metrics["quality/loss"]: run.data.tags["superseded"] for run in runs_of(mlflow_folder)}
    assert found == {2.0: "false", 1.5: "true"}


def test_a_failed_point_is_a_failed_run_with_its_cause(mlflow_folder: GridFolder) -> None:
    write_point(mlflow_folder, "p1", failed=True)
    import_grid(mlflow_folder.root)
    (run,) = runs_of(mlflow_folder)
    assert run.info.status == "FAILED"
    assert run.data.tags["cause"] == "the loss is nan at step 1"
    assert (artifacts(run) / "log.txt").is_file()


def test_an_incomplete_run_of_a_killed_import_is_imported_again(
    mlflow_folder: GridFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_point(mlflow_folder, "p1")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifacts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            import_grid(mlflow_folder.root)
    assert import_grid(mlflow_folder.root).added == ["p1"]
    (run,) = runs_of(mlflow_folder)
    assert (artifacts(run) / "masks" / "last.png").is_file()


@pytest.mark.fault(
    fault="A record or its masks are damaged when they are imported.",
    topic="MLflow",
    happens="The others are imported. The import exits with 1.",
    reads=(
        "…: this record is damaged or half-written; delete it and run again: only this point is "
        "redone. … these masks are damaged; delete them and run the point again."
    ),
    lost="nothing",
)
def test_a_damaged_record_is_reported_and_the_others_are_imported(
    mlflow_folder: GridFolder, capsys: pytest.CaptureFixture[str], reads: faults.Reads
) -> None:
    write_point(mlflow_folder, "p1")
    whole = mlflow_folder.record("p1").read_text()
    mlflow_folder.record("p0").write_text(whole[: len(whole) // 2])
    write_point(mlflow_folder, "p2")
    (mlflow_folder.work("p2") / "masks.safetensors").write_bytes(b"half")
    assert main(["--grid-dir", str(mlflow_folder.root)]) == 1
    captured = capsys.readouterr()
    assert "2 runs added" in captured.out
    assert "p0.json" in captured.err
    reads(captured.err)
    assert "masks.safetensors" in captured.err

"""Loggers beside the files that every run writes: TensorBoard and MLflow, through their own libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mnist_exp.checked import checked
from mnist_exp.errors import UserError

_MLFLOW_STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}


class TensorBoardLogger:
    """Write scalars to ``folder``/tensorboard of the run; view with ``tensorboard --logdir outputs``."""

    def start(self, folder: Path, parameters: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("logger=tensorboard needs TensorBoard: `pip install 'mnist_exp[tensorboard]'`") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("config", "\n".join(f"    {k}: {v}" for k, v in parameters.items()))

    def log(self, metrics: dict[str, float], epoch: int | None = None) -> None:
        for key, value in metrics.items():
            self.writer.add_scalar(key, value, epoch or 0)
        self.writer.flush()

    def finish(self, status: str) -> None:
        self.writer.close()


@checked
class MLflowLogger:
    """Log parameters and metrics to MLflow: ``tracking_uri`` (a SQLite file by default) and ``experiment_name``."""

    def __init__(self, *, tracking_uri: str, experiment_name: str):
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name

    def start(self, folder: Path, parameters: dict[str, Any]) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise UserError("logger=mlflow needs MLflow: `pip install 'mnist_exp[mlflow]'`") from error
        if self.tracking_uri.startswith("sqlite:///"):
            Path(self.tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.client = MlflowClient(self.tracking_uri)
        found = self.client.get_experiment_by_name(self.experiment_name)
        experiment = found.experiment_id if found else self.client.create_experiment(self.experiment_name)
        # a resumed run goes on in the MLflow run of its folder
        runs = self.client.search_runs([experiment], f"tags.folder = '{folder}'")
        self.run_id = (
            runs[0] if runs else self.client.create_run(experiment, tags={"folder": str(folder)}, run_name=folder.name)
        ).info.run_id
        self.client.update_run(self.run_id, "RUNNING")
        if not runs:
            for key, value in parameters.items():
                self.client.log_param(self.run_id, key, value)

    def log(self, metrics: dict[str, float], epoch: int | None = None) -> None:
        for key, value in metrics.items():
            self.client.log_metric(self.run_id, key, value, step=epoch or 0)

    def finish(self, status: str) -> None:
        self.client.set_terminated(self.run_id, _MLFLOW_STATUS.get(status, "FAILED"))

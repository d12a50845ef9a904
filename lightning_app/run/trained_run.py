"""A finished run: its model with a checkpoint's weights, and its datamodule, made again from the run's folder."""

import zipfile
from pathlib import Path

import yaml
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_app.errors import UsageError
from lightning_app.run.cli import InfluenceCLI
from modules.checkpoints import read_checkpoint


class FinishedRun(InfluenceCLI):
    """Builds the model of a run by its `config.yaml`, on the CPU and in eval mode; no data is read, nothing trains.

    Args:
        checkpoint: `<run>/checkpoints/best.ckpt`, or any other that a fit left there.

    Attributes:
        folder: The run's folder.
        precision: The Trainer's, under which the run was trained and measured.

    Raises:
        UsageError: If there is no such checkpoint, it is damaged, or its run has no configuration.
        BackboneError, CheckpointError: If the backbone cannot be had, or is not the one the checkpoint belongs to.
    """

    def __init__(self, checkpoint: Path) -> None:
        if not zipfile.is_zipfile(checkpoint):
            found = "is damaged or something else" if checkpoint.exists() else "is not there"
            raise UsageError(
                f"--ckpt {checkpoint} should be a checkpoint, but {found}. A run leaves "
                "outputs/<experiment>/<dataset>/<arm>/seed<k>/checkpoints/best.ckpt."
            )
        self.checkpoint, self.folder = checkpoint, checkpoint.resolve().parent.parent
        super().__init__([], run=False)
        self._load_weights()

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Takes the configuration of the fit, without what its Trainer, its start and its resumption were."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise UsageError(
                f"{self.checkpoint} has no {path} beside its folder: that file, which a fit leaves, is needed."
            )
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            self.precision = config["trainer"]["precision"]
            config["trainer"] = {"logger": False}
            config["model"]["init_args"]["start"] = None  # the head is in the checkpoint
            kept = {key: config[key] for key in config if key not in ("ckpt_path", "weights_only")}
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is no configuration of a fit ({error!r}). Fit the condition again.") from error
        self.config = parser.parse_object(kept)

    def instantiate_classes(self) -> None:
        """Builds the datamodule and the model alone."""
        built = self.parser.instantiate(self.config)
        self.datamodule, self.model = built.data, built.model

    def _load_weights(self) -> None:
        checkpoint = read_checkpoint(self.checkpoint)
        self.model.on_load_checkpoint(checkpoint)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.eval()

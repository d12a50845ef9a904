"""A trained run: its model with a checkpoint's weights, and its datamodule, rebuilt from the run's folder."""

import zipfile
from pathlib import Path

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_app.errors import UsageError
from lightning_app.run.cli import InfluenceCLI
from lightning_app.run.configs import read_config
from modules.checkpoints import read_checkpoint, wrong_kind


class TrainedRun(InfluenceCLI):
    """Builds the model of a run from its `config.yaml`, on the CPU and in eval mode, without data or training.

    Args:
        checkpoint: `<run>/checkpoints/best.ckpt`, or another checkpoint in that folder.

    Attributes:
        folder: The run's folder.
        precision: The Trainer's precision, with which the run was trained and evaluated.

    Raises:
        UsageError: If there is no such checkpoint, it is damaged, or its run has no configuration.
        BackboneError, CheckpointError: If the backbone cannot be loaded, or the checkpoint belongs to another one.
    """

    def __init__(self, checkpoint: Path) -> None:
        if not zipfile.is_zipfile(checkpoint):
            if other := wrong_kind(checkpoint):
                raise UsageError(f"--ckpt {other}")
            found = "is damaged or something else" if checkpoint.exists() else "is not there"
            raise UsageError(
                f"--ckpt {checkpoint} should be a checkpoint, but {found}. A run leaves "
                "outputs/<experiment>/<dataset>/<arm>/seed<k>/checkpoints/best.ckpt."
            )
        self.checkpoint, self.folder = checkpoint, checkpoint.resolve().parent.parent
        super().__init__([], run=False)
        self._load_weights()

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Take the configuration of the fit without the options of its Trainer, its start and a resumed checkpoint."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise UsageError(
                f"{path} is missing: it describes the model of {self.checkpoint}. Give one in its run's folder."
            )
        config = read_config(path)
        try:
            self.precision = config["trainer"]["precision"]
            config["trainer"] = {"logger": False}
            config["model"]["init_args"]["start"] = None  # the head is in the checkpoint
            kept = {key: config[key] for key in config if key not in ("ckpt_path", "weights_only")}
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"{path} is not the configuration of a fit ({error!r}). Fit the condition again."
            ) from error
        self.config = parser.parse_object(kept)

    def instantiate_classes(self) -> None:
        """Build the datamodule and the model alone."""
        built = self.parser.instantiate(self.config)
        self.datamodule, self.model = built.data, built.model

    def _load_weights(self) -> None:
        checkpoint = read_checkpoint(self.checkpoint)
        self.model.on_load_checkpoint(checkpoint)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.eval()

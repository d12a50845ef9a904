"""`influence fit|validate|test|predict`: LightningCLI over the arms and the datasets."""

from pathlib import Path
from typing import Any, cast

from jsonargparse._util import import_object
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from datamodules import TextDataModule
from lightning_app.errors import UsageError
from lightning_app.recorder import Recorder
from modules import Classifier
from modules.backbone import check_backbone, resolve_backbone


class SaveConfig(SaveConfigCallback):
    """Saves the configuration into the run's folder: `config.yaml` of a fit, `validate.yaml` of a validation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file; running it again gives the same run."""
        name = "config.yaml" if stage == "fit" else f"{TrainerFn(stage).value}.yaml"
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(folder / name), skip_none=False, overwrite=True, multifile=False)


class InfluenceCLI(LightningCLI):
    """LightningCLI with the words of the study: a run belongs to an experiment, a dataset, an arm and a seed.

    The dataset gives `num_labels` to the model, the model's backbone gives its tokenizer to the dataset, and
    `seed_everything` seeds both. A run's folder is `<outputs>/<experiment>/<dataset>/<arm>/seed<k>`.

    Args:
        args: The words of the command line after `influence`.
        run: Whether they begin with a command, which is run.
    """

    def __init__(self, args: ArgsType, run: bool = True) -> None:
        parser_kwargs = {"exit_on_error": False}
        commands = dict.fromkeys(self.subcommands(), parser_kwargs) if run else {}
        super().__init__(
            model_class=Classifier,
            datamodule_class=TextDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={"callbacks": [Recorder()]},
            parser_kwargs={"prog": "influence", **parser_kwargs, **commands},
            args=args,
            run=run,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses `args` alone, whatever the process was started with."""
        self.config = parser.parse_args(cast(list[str], args))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the names that place a run, and the links between data and model."""
        parser.add_argument("--outputs", type=str, default="outputs", help="Folder of all results.")
        parser.add_argument("--experiment", type=str, default="single", help="Name of the experiment, a folder.")
        parser.add_argument("--dataset", type=str, default=None, help="Name of the dataset, a folder.")
        parser.add_argument("--arm", type=str, default=None, help="Name of the arm, a folder.")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("model.init_args.backbone", "data.init_args.tokenizer", compute_fn=resolve_backbone)
        parser.link_arguments("data.num_labels", "model.init_args.num_labels", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Places the run: folder, logs and, for every arm but the baseline, the start it begins from.

        Raises:
            UsageError: If a checkpoint is named that does not exist.
        """
        config = self.config.get(str(self.subcommand), self.config)
        dataset = config.dataset or config.data.class_path.rpartition(".")[2].lower()
        arm = config.arm or config.model.class_path.rpartition(".")[2].lower()
        seed = f"seed{config.seed_everything}"
        experiment = Path(config.outputs) / config.experiment
        run = experiment / dataset / arm / seed
        config.trainer.default_root_dir = str(run)
        logger = config.trainer.get("logger")
        if hasattr(logger, "init_args") and "save_dir" in logger.init_args:
            logger.init_args.save_dir = str(run)
        if self.subcommand:
            if config.weights_only is None:
                config.weights_only = True  # a checkpoint is read without executing anything in it
            if self.subcommand != "fit":
                config.ckpt_path = config.ckpt_path or str(run / "checkpoints" / "best.ckpt")
            if config.ckpt_path and not Path(config.ckpt_path).exists():
                raise UsageError(
                    f"No checkpoint at {config.ckpt_path}. `influence fit` leaves <run>/checkpoints/best.ckpt."
                )
        model = config.model.init_args
        needs_start = import_object(config.model.class_path).needs_start
        if self.subcommand == "fit" and model.start is None and needs_start:
            model.start = str(experiment / dataset / "baseline" / seed / "start.safetensors")


class CheckCLI(InfluenceCLI):
    """Parses a condition and looks for what it needs, without loading a model. `args` have no command in front."""

    def __init__(self, args: ArgsType) -> None:
        super().__init__(args, run=False)

    def instantiate_classes(self) -> None:
        """Builds the datamodule alone."""
        data = self.config.data
        self.datamodule = import_object(data.class_path)(**data.init_args)

    def check(self, prepare: bool) -> None:
        """Looks for the backbone, and prepares the data if asked.

        Raises:
            BackboneError, DataError: If one of them cannot be had.
        """
        check_backbone(self.config.model.init_args.backbone)
        if prepare:
            self.datamodule.prepare_data()
            self.datamodule.setup("fit")


def main(argv: list[str]) -> int:
    """Runs one command of LightningCLI; `argv` begins with the command."""
    InfluenceCLI(argv)
    return 0

"""`influence fit|validate|test`: LightningCLI over the arms and the datasets."""

import inspect
import json
import shlex
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace
from jsonargparse._util import import_object
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import XLAAccelerator
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import TextDataModule
from lightning_app.errors import UsageError, chain_of_causes
from lightning_app.results.files import check_name
from lightning_app.run.checkpoints import WholeFile
from lightning_app.run.configs import configs_folder, find_configs
from lightning_app.run.recorder import Recorder
from modules import Classifier, StartError
from modules.backbone import resolve_backbone
from modules.checkpoints import CheckedCheckpointIO


class SaveConfig(SaveConfigCallback):
    """Saves the configuration into the run's folder: `config.yaml` of a fit, `validate.yaml` of a validation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file; running it again gives the same run."""
        name = "config.yaml" if stage == "fit" else f"{TrainerFn(stage).value}.yaml"
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.trainer.default_root_dir = None  # follows from the names, also where the run is repeated elsewhere
        if stage == "fit":
            config.ckpt_path = None  # how a fit was resumed is not how it is repeated
        self.parser.save(config, str(folder / name), skip_none=False, overwrite=True, multifile=False)


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
        try:
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
        except Exception as error:
            reason = next((link for link in chain_of_causes(error) if isinstance(link, StartError)), None)
            if reason is None:
                raise
            raise UsageError(f"{reason} {self._make_start()}") from error

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's commands, but `predict`: `influence predict` reads files of one's own."""
        return {name: hidden for name, hidden in LightningCLI.subcommands().items() if name != "predict"}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses `args` alone, whatever the process was started with.

        Raises:
            UsageError: If a section is of another kind, or the seed or the folder of results is none.
        """
        self.config = parser.parse_args(find_configs(cast(list[str], args)))
        for section, key in (("trainer", "default_root_dir"), ("data", "class_path"), ("model", "class_path")):
            if key not in (self._run_config.get(section) or Namespace()):
                raise UsageError(f"{section} is {self._run_config.get(section)}, but must be an object of its options.")
        seed = self._run_config.seed_everything
        if self._run_config.outputs is None:
            raise UsageError("outputs is null, but must be a folder. Leave it out for its default.")
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise UsageError(f"seed_everything is {seed!r}, but must be a whole number from 0 to 2**32 - 1.")

    def _parse_ckpt_path(self) -> None:
        """Takes nothing from a checkpoint: LightningCLI would let one choose the class of the model."""

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

    @property
    def _run_config(self) -> Namespace:
        """The configuration of the command that is run."""
        return self.config.get(str(self.config.get("subcommand")), self.config)

    def before_instantiate_classes(self) -> None:
        """Places the run: folder, logs and, for every arm but the baseline, the start it begins from.

        Raises:
            UsageError: If a name is that of no folder, a folder is named in another way than by these names, or a
                checkpoint does not exist.
        """
        config = self._run_config
        check_nulls("data", config.data)
        check_nulls("model", config.model)
        dataset, arm = (
            check_name(f"--{what}", named if named is not None else chosen.class_path.rpartition(".")[2].lower())
            for what, named, chosen in (("dataset", config.dataset, config.data), ("arm", config.arm, config.model))
        )
        seed = f"seed{config.seed_everything}"
        experiment = Path(config.outputs) / check_name("--experiment", config.experiment)
        run = experiment / dataset / arm / seed
        if config.trainer.default_root_dir is not None:
            raise UsageError(
                f"trainer.default_root_dir is {config.trainer.default_root_dir!r}, but a run's folder follows from "
                f"--outputs, --experiment, --dataset, --arm and the seed: {run}. Set those."
            )
        config.trainer.default_root_dir = str(run)
        if config.data.init_args.get("cache_dir") is None:
            config.data.init_args.cache_dir = str(Path(config.outputs) / "cache")
        logger = config.trainer.get("logger")
        if hasattr(logger, "init_args") and "save_dir" in logger.init_args:
            logger.init_args.save_dir = str(run)
        if self.subcommand:
            if config.weights_only is False:
                raise UsageError("weights_only is false, but nothing in a checkpoint is ever executed. Leave it out.")
            config.weights_only = True
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

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer.

        Raises:
            UsageError: If it does not take its options, the machine has not the device that is asked for, or a TPU is
                asked for what would be wrong in silence.
        """
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UsageError(f"The Trainer cannot be made from the options trainer.*: {error}") from error
        if isinstance(trainer.accelerator, XLAAccelerator):
            check_tpu(trainer)
        elif type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFile()
        trainer.strategy.checkpoint_io = CheckedCheckpointIO(trainer.strategy.checkpoint_io)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs a command; one fit at a time in a run's folder.

        Raises:
            UsageError: If another process is fitting there.
        """
        if subcommand != "fit" or not self.trainer.is_global_zero:
            return super()._run_subcommand(subcommand)
        run = Path(self.trainer.default_root_dir)
        run.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(run / ".lock", timeout=0):
                super()._run_subcommand(subcommand)
        except Timeout:
            raise UsageError(
                f"Another fit is running in {run}. Wait for it, or give this one an --experiment of its own."
            ) from None

    def _make_start(self) -> str:
        """The command that makes the baseline start of this dataset, seed, backbone and sizes."""
        config = self._run_config
        data, name = config.data, config.dataset
        file = configs_folder() / "data" / f"{name}.yaml"
        shipped = (
            yaml.safe_load(file.read_text(encoding="utf-8"))["data"]["init_args"] if name and file.is_file() else {}
        )
        defaults = {key: argument.default for key, argument in _arguments(import_object(data.class_path)).items()}
        known = defaults | shipped | {"cache_dir": str(Path(config.outputs) / "cache")}
        linked = ("seed", "tokenizer", "train_on")
        changed = {key: value for key, value in data.init_args.items() if key not in linked and value != known.get(key)}
        own = ["--data", data.class_path, *(["--dataset", name] if name else [])]
        words = ["-c", "configs/base.yaml", *(["-c", f"configs/data/{name}.yaml"] if shipped else own)]
        words += ["-c", "configs/arms/baseline.yaml"]
        words += ["--experiment", config.experiment, "--seed_everything", str(config.seed_everything)]
        words += [] if config.outputs == "outputs" else ["--outputs", config.outputs]
        words += ["--model.backbone", config.model.init_args.backbone]
        words += [
            f"--data.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()
        ]
        return f"Make it: {shlex.join(['influence', 'fit', *words])}"


def check_tpu(trainer: Trainer) -> None:
    """Refuses what torch_xla or torchmetrics would do otherwise than asked, without a word.

    Raises:
        UsageError: On another precision than 32-true, or several cores for one condition.
    """
    if trainer.precision != "32-true":
        raise UsageError(
            f"trainer.precision is {trainer.precision!r}, but on a TPU it must be '32-true': torch_xla ignores "
            "'bf16-true' once anything in the process has touched the TPU, and the Trainer refuses 'bf16-mixed'."
        )
    if trainer.world_size > 1:
        raise UsageError(
            f"trainer.devices asks for {trainer.num_devices} TPU cores, but a condition runs on one: metrics would be "
            "those of each core's share of the rows. Leave trainer.devices at 1."
        )


def _arguments(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class, its bases' included."""
    signatures = [
        inspect.signature(vars(base)["__init__"]) for base in reversed(kind.__mro__) if "__init__" in vars(base)
    ]
    return {name: item for signature in signatures for name, item in signature.parameters.items()}


def check_nulls(what: str, chosen: Namespace) -> None:
    """Refuses null where a class takes none, which the argument parser lets through.

    Raises:
        UsageError: If an argument is null that must have a value.
    """
    for name, argument in _arguments(import_object(chosen.class_path)).items():
        is_null = name in chosen.init_args and chosen.init_args[name] is None
        if is_null and argument.default is not None and type(None) not in get_args(argument.annotation):
            raise UsageError(f"{what}.{name} is null, but must have a value. Leave it out for its default.")


class PrepareData(InfluenceCLI):
    """Prepares the data of a condition, without loading a model. `args` have no command in front.

    Raises:
        DataError: If the data cannot be had or does not have the rows asked for.
    """

    def __init__(self, args: ArgsType) -> None:
        super().__init__(args, run=False)

    def instantiate_classes(self) -> None:
        """Builds the datamodule alone."""
        data = self.config.data
        self.datamodule = import_object(data.class_path)(**data.init_args)
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")


def main(argv: list[str]) -> int:
    """Runs one command of LightningCLI; `argv` begins with the command."""
    InfluenceCLI(argv)
    return 0

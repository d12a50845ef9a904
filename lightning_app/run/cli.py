"""`influence fit|validate|test`: LightningCLI over the arms and the datasets."""

import inspect
import json
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_args

from filelock import FileLock, Timeout
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import XLAAccelerator
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributed

from datamodules import TextDataModule
from lightning_app.errors import UsageError, chain_of_causes
from lightning_app.results.files import check_name, make_folder
from lightning_app.results.identity import Arm, Identity
from lightning_app.results.metrics import HEADLINE, METRICS
from lightning_app.run.checkpoints import AtomicCheckpointIO
from lightning_app.run.configs import (
    add_arm_arguments,
    arm_beside,
    backbone_options,
    configs_folder,
    find_configs,
    read_config,
)
from lightning_app.run.messages import class_of, explain, unknown_key
from lightning_app.run.overwrite import check_overwrite
from lightning_app.run.precision import StudyTrainer
from lightning_app.run.recorder import Recorder
from modules import Caches, Classifier, StartError, TensorStore
from modules.backbone import model_type, resolve_tokenizer
from modules.checkpoints import CheckedCheckpointIO

LINKED = {
    "--data.seed": "--seed_everything",
    "--model.seed": "--seed_everything",
    "--data.tokenizer": "--model.backbone, or from --tokenizer",
    "--model.num_labels": "the dataset",
}
"""Options that are set by others."""


class SaveConfig(SaveConfigCallback):
    """Saves the configuration into the run's folder: `config.yaml` of a fit, `validate.yaml` of a validation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Lightning's own refuses to fit where its file exists, which a resumed or repeated fit finds in its folder
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; running it again gives the same run."""
        name = "config.yaml" if stage == "fit" else f"{TrainerFn(stage).value}.yaml"
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.overwrite = False  # the saved file must not replace complete results when it is run again
        config.trainer.precision = trainer.precision  # as chosen: another machine may choose another
        config.trainer.default_root_dir = None  # derived from the names, also if the run is repeated elsewhere
        if stage == "fit":
            config.ckpt_path = None  # a repeated fit starts from the beginning
        self.parser.save(config, str(folder / name), skip_none=False, overwrite=True, multifile=False)


class InfluenceCLI(LightningCLI):
    """LightningCLI with the terms of the study: a run belongs to an experiment, a dataset, an arm and a seed.

    The dataset gives `num_labels` to the model, the model's backbone gives its tokenizer to the dataset (unless
    `tokenizer` names another), and `seed_everything` seeds both. A run's folder is
    `<outputs>/<experiment>/<dataset>/<arm>/seed<k>`.

    Args:
        args: The words of the command line after `influence`.
        run: Whether they begin with a command, which is run.
        caches: Shared by the runs of one process; None makes new ones.

    Attributes:
        identity: Dataset, arm and seed of the run.
    """

    identity: Identity

    def __init__(self, args: ArgsType, run: bool = True, caches: Caches | None = None) -> None:
        self._caches = caches or Caches()
        # a mistake in one condition must not end an experiment, and a key that is cut short is a typing mistake
        parser_kwargs = {"exit_on_error": False, "allow_abbrev": False}
        commands = dict.fromkeys(self.subcommands(), parser_kwargs) if run else {}
        try:
            super().__init__(
                model_class=Classifier,
                datamodule_class=TextDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                trainer_class=StudyTrainer,
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
        """Return the Trainer's commands without `predict`: `influence predict` is a separate command for files."""
        return {name: hidden for name, hidden in LightningCLI.subcommands().items() if name != "predict"}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse `args` alone; LightningCLI would add the words that the process was started with.

        Raises:
            UsageError: If an option does not exist or has a wrong value, a section is not an object, or the seed or the
                folder of results has no value.
        """
        for word in cast(list[str], args):
            option = word.partition("=")[0].replace(".init_args.", ".")
            if option in LINKED:
                raise UsageError(f"{option} cannot be set: it follows from {LINKED[option]}.")
        try:
            self.config = parser.parse_args(find_configs(cast(list[str], args)))
        except ArgumentError as error:
            raise UsageError(self._explain(parser, str(error))) from error
        for section, key in (("trainer", "default_root_dir"), ("data", "class_path"), ("model", "class_path")):
            if key not in (self._run_config.get(section) or Namespace()):
                raise UsageError(f"{section} is {self._run_config.get(section)}, but must be an object of its options.")
        seed = self._run_config.seed_everything
        if self._run_config.outputs is None:
            raise UsageError("outputs is null, but must be a folder. Leave it out for its default.")
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise UsageError(f"seed_everything is {seed!r}, but must be a whole number from 0 to 2**32 - 1.")

    def _explain(self, parser: LightningArgumentParser, message: str) -> str:
        """Return the argument parser's message in one line, with the nearest key that exists."""
        parsers = [parser, *getattr(self, "_subcommand_parsers", {}).values()]
        known = {name for each in parsers for name in vars(each.get_defaults().as_flat())}
        key, path = unknown_key(message), class_of(message)
        if key and path:
            known |= {f"{key.partition('.')[0]}.{name}" for name in option_names(import_class(path))}
        return explain(message, sorted(known))

    def _parse_ckpt_path(self) -> None:
        """Take nothing from a checkpoint: LightningCLI would let a checkpoint choose the class of the model."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the names of a run, early stopping, and the links between data and model."""
        parser.add_argument("--outputs", type=str, default="outputs", help="Folder of all results.")
        parser.add_argument("--experiment", type=str, default="single", help="Name of the experiment, a folder.")
        parser.add_argument("--dataset", type=str, default=None, help="Name of the dataset, a folder.")
        parser.add_argument(
            "--tokenizer",
            type=str | None,
            default=None,
            help="Hub id, folder or GGUF file of the tokenizer; default the backbone's own.",
        )
        add_arm_arguments(parser)
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        stopping = {"monitor": f"val/{HEADLINE}", "mode": METRICS[HEADLINE].mode, "patience": 3}
        parser.set_defaults({f"early_stopping.{key}": value for key, value in stopping.items()})
        # jsonargparse replaces a linked value without a message, and leaves it out of a saved configuration
        parser.add_argument(
            "--overwrite",
            action="store_true",
            help="Replace complete results in the run's folder. fit replaces all of them; validate and test replace "
            "metrics and predictions.",
        )
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments(
            ("tokenizer", "model.init_args.backbone"),
            "data.init_args.tokenizer",
            compute_fn=lambda tokenizer, backbone: resolve_tokenizer(tokenizer or backbone),
        )
        parser.link_arguments("data.num_labels", "model.init_args.num_labels", apply_on="instantiate")

    @property
    def _run_config(self) -> Namespace:
        """The configuration of the command that is run."""
        return self.config.get(str(self.config.get("subcommand")), self.config)

    def before_instantiate_classes(self) -> None:
        """Place the run: its identity, folder and logs, and the head that it starts from.

        Raises:
            UsageError: If a name cannot be the name of a folder, the folder is set in another way than by these names,
                or a checkpoint does not exist.
        """
        config = self._run_config
        check_nulls("data", config.data)
        check_nulls("model", config.model)
        dataset, arm = config.dataset, Arm(**config.arm.as_dict())
        dataset = config.data.class_path.rpartition(".")[2].lower() if dataset is None else dataset
        self.identity = Identity(check_name("--dataset", dataset), arm, config.seed_everything)
        check_name("--arm.name", arm.label)
        seed = f"seed{config.seed_everything}"
        experiment = Path(config.outputs) / check_name("--experiment", config.experiment)
        run = experiment / dataset / arm.label / seed
        if config.trainer.default_root_dir is not None:
            raise UsageError(
                f"trainer.default_root_dir is {config.trainer.default_root_dir!r}, but a run's folder follows from "
                f"--outputs, --experiment, --dataset, --arm.name and the seed: {run}. Set those."
            )
        config.trainer.default_root_dir = str(run)
        if config.data.init_args.get("cache_dir") is None:
            config.data.init_args.cache_dir = str(Path(config.outputs) / "cache")
        logger = config.trainer.get("logger")
        if hasattr(logger, "init_args") and "save_dir" in logger.init_args:
            logger.init_args.save_dir = str(run)
        if self.subcommand:
            check_overwrite(self.subcommand, run, config.overwrite)
            if config.weights_only is False:
                raise UsageError("weights_only is false, but nothing in a checkpoint is ever executed. Leave it out.")
            config.weights_only = True
            if self.subcommand != "fit":
                config.ckpt_path = config.ckpt_path or str(run / "checkpoints" / "best.ckpt")
            if config.ckpt_path and not Path(config.ckpt_path).exists():
                raise UsageError(
                    f"No checkpoint at {config.ckpt_path}. `influence fit` leaves <run>/checkpoints/best.ckpt."
                )
        if self.subcommand == "fit" and arm.starts_from and config.model.init_args.start is None:
            start = experiment / dataset / check_name("--arm.starts_from", arm.starts_from) / seed / "start.safetensors"
            config.model.init_args.start = str(start)

    def instantiate_classes(self) -> None:
        """Build the model, the data and the Trainer, with the options that fit the backbone's family."""
        set_backbone_options(self._run_config.model)
        super().instantiate_classes()
        for callback in cast(Any, self.trainer).callbacks:
            if isinstance(callback, Recorder):
                callback.identity = self.identity
        self.model.caches = self._caches
        self.model.store = TensorStore(self.datamodule.cache_dir / "tensors")
        if self._run_config.tokenizer:
            check_vocabulary(self.model, self.datamodule)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer.

        Raises:
            UsageError: If it refuses its options, the machine lacks the device, or results on a TPU would be silently
                wrong.
        """
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UsageError(f"The Trainer cannot be made from the options trainer.*: {error}") from error
        if isinstance(trainer.accelerator, XLAAccelerator):
            check_tpu(trainer)
        elif type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        trainer.strategy.checkpoint_io = CheckedCheckpointIO(trainer.strategy.checkpoint_io)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a command; one fit at a time in a run's folder.

        Raises:
            UsageError: If another process is fitting there.
        """
        if subcommand != "fit" or not self.trainer.is_global_zero:
            return super()._run_subcommand(subcommand)
        run = Path(self.trainer.default_root_dir)
        make_folder(run)
        try:
            with FileLock(run / ".lock", timeout=0):
                super()._run_subcommand(subcommand)
        except Timeout:
            raise UsageError(
                f"Another fit is running in {run}. Wait for it, or give this one an --experiment of its own."
            ) from None

    def _make_start(self) -> str:
        """Return the command that makes the head which this dataset, seed, backbone and sizes start from."""
        config = self._run_config
        data, dataset, start = config.data, self.identity.dataset, str(self.identity.arm.starts_from)
        shipped = {path.stem: read_config(path)["data"] for path in (configs_folder() / "data").glob("*.yaml")}
        known = shipped.get(dataset, {})
        known = known.get("init_args", {}) if known.get("class_path") == data.class_path else None
        defaults = {key: argument.default for key, argument in _arguments(import_class(data.class_path)).items()}
        defaults |= (known or {}) | {"cache_dir": str(Path(config.outputs) / "cache")}
        linked = ("seed", "tokenizer", "train_on")
        changed = {
            key: value for key, value in data.init_args.items() if key not in linked and value != defaults.get(key)
        }
        own = ["--data", data.class_path, "--dataset", dataset]
        words = ["-c", "configs/base.yaml", *(own if known is None else ["-c", f"configs/data/{dataset}.yaml"])]
        words += ["-c", self._start_file(start)]
        words += ["--experiment", config.experiment, "--seed_everything", str(config.seed_everything)]
        words += [] if config.outputs == "outputs" else ["--outputs", config.outputs]
        words += ["--model.backbone", config.model.init_args.backbone]
        words += ["--tokenizer", config.tokenizer] if config.tokenizer else []
        words += [
            f"--data.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changed.items()
        ]
        return f"Make it: {shlex.join(['influence', 'fit', *words])}"

    def _start_file(self, start: str) -> str:
        """Return the configuration of the arm that this one starts from, as a user types it."""
        files = [Path(file) for file in self._run_config.get("config") or []]
        beside = [arm_beside(file, start) for file in files if "arm" in read_config(file)]
        own = [word for word in beside if word != start]
        return own[0] if own else f"configs/arms/{start}.yaml"


def set_backbone_options(model: Namespace) -> None:
    """Set options that the user left out to what fits the backbone's family and what the arm trains.

    Raises:
        BackboneError: If the backbone's configuration cannot be read.
    """
    options = model.init_args
    family = backbone_options(model_type(options.backbone))
    trains = options.get("tune", import_class(model.class_path).trains)
    fitting = {"learning_rate": family["learning_rates"].get(trains), "pooling": family.get("pooling")}
    for key, value in fitting.items():
        if key in options and options[key] is None:
            options[key] = value


def check_vocabulary(model: Any, datamodule: Any) -> None:
    """Refuse a tokenizer of which the backbone does not know all tokens.

    Raises:
        UsageError: If it has more tokens than the backbone has embeddings.
        DataError: If it cannot be loaded.
    """
    tokens, embeddings = len(datamodule.tokenizer), len(model.backbone.get_input_embeddings().weight)
    if tokens > embeddings:
        raise UsageError(
            f"--tokenizer has {tokens:,} tokens, but the backbone {model.backbone_name!r} has {embeddings:,}. "
            "Give the tokenizer that the backbone was trained with."
        )


def check_tpu(trainer: Trainer) -> None:
    """Refuse options that torch_xla would ignore, or under which metrics would be wrong, without a message.

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
    """Return the arguments of a class, its bases' included."""
    signatures = [
        inspect.signature(vars(base)["__init__"]) for base in reversed(kind.__mro__) if "__init__" in vars(base)
    ]
    return {name: item for signature in signatures for name, item in signature.parameters.items()}


def import_class(path: str) -> Any:
    """Return the class at a dotted path, which the argument parser has already imported."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def option_names(kind: type) -> Iterator[str]:
    """Yield the options of a class as they are typed; options of a dataclass follow its name and a dot."""
    named = {
        name: item
        for name, item in _arguments(kind).items()
        if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
    }
    for name, argument in named.items():
        nested = argument.annotation if is_dataclass(argument.annotation) else None
        yield from [f"{name}.{field.name}" for field in fields(nested)] if nested else [name]


def check_nulls(what: str, chosen: Namespace) -> None:
    """Refuse null where a class does not accept it: the argument parser lets it through.

    Raises:
        UsageError: If an argument is null that must have a value.
    """
    for name, argument in _arguments(import_class(chosen.class_path)).items():
        is_null = name in chosen.init_args and chosen.init_args[name] is None
        if is_null and argument.default is not None and type(None) not in get_args(argument.annotation):
            raise UsageError(f"{what}.{name} is null, but must have a value. Leave it out for its default.")


class PrepareData(InfluenceCLI):
    """Prepares the data of a condition without loading a model. `args` do not begin with a command.

    Raises:
        DataError: If the data cannot be loaded or does not have enough rows.
    """

    def __init__(self, args: ArgsType) -> None:
        super().__init__(args, run=False)

    def instantiate_classes(self) -> None:
        """Build the datamodule alone."""
        data = self.config.data
        self.datamodule = import_class(data.class_path)(**data.init_args)
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")


def main(argv: list[str]) -> int:
    """Run one command of LightningCLI; `argv` begins with the command."""
    InfluenceCLI(argv)
    if distributed.is_initialized():
        distributed.destroy_process_group()  # threads of gloo that live on may abort the end of the interpreter
    return 0

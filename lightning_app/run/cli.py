"""`influence fit|validate|test`: LightningCLI over the arms and the datasets."""

import inspect
import json
import shlex
from dataclasses import fields, is_dataclass
from functools import cached_property
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
from matplotlib.colors import is_color_like
from torch import distributed

from datamodules import TextDataModule
from lightning_app.errors import UsageError, chain_of_causes
from lightning_app.messages import check_flag, class_of, explain, section_of, shown, unknown_key
from lightning_app.results.files import check_name, make_folder
from lightning_app.results.identity import Arm, Identity
from lightning_app.results.metrics import HEADLINE, METRICS
from lightning_app.run.allocator import keep_freed_memory
from lightning_app.run.checkpoints import AtomicCheckpointIO
from lightning_app.run.configs import (
    add_arm_arguments,
    arm_beside,
    backbone_options,
    configs_folder,
    find_configs,
    options_set,
    read_config,
)
from lightning_app.run.overwrite import check_overwrite
from lightning_app.run.precision import StudyTrainer
from lightning_app.run.ranges import check_ranges
from lightning_app.run.recorder import Recorder
from modules import Caches, Classifier, StartError, TensorStore
from modules.backbone import model_type, resolve_tokenizer
from modules.checkpoints import CheckedCheckpointIO
from modules.masking import SET_ELSEWHERE

LINKED = {
    "--data.seed": "--seed_everything",
    "--model.seed": "--seed_everything",
    "--data.tokenizer": "--model.backbone, or from --tokenizer",
    "--model.num_labels": "the dataset",
}
"""Options that are set by others."""

BASES: dict[str, type] = {"model": Classifier, "data": TextDataModule}
"""Sections that are a class, and what it inherits from."""

NOT_ASKED = {*(option.removeprefix("--") for option in LINKED), *(f"model.masking.{name}" for name in SET_ELSEWHERE)}
"""Options that exist, but that no message proposes."""


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


class WholeKeys(LightningArgumentParser):
    """A parser that accepts no key that is cut short: that is a typing mistake.

    jsonargparse makes the parsers of nested options by the class of the parser around them, without its arguments.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, allow_abbrev=False)


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
        keep_freed_memory()
        self._caches = caches or Caches()
        self._parsers: list[LightningArgumentParser] = []
        parser_kwargs = {"exit_on_error": False}  # a mistake in one condition must not end an experiment
        commands = dict.fromkeys(self.subcommands(), parser_kwargs) if run else {}
        try:
            super().__init__(
                model_class=Classifier,
                datamodule_class=TextDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                trainer_class=StudyTrainer,
                save_config_callback=SaveConfig,
                parser_class=WholeKeys,
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

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Keep the parser: LightningCLI makes one for all commands, and then one for each."""
        self._parsers.append(super().init_parser(**kwargs))
        return self._parsers[-1]

    @property
    def command_parsers(self) -> dict[str, LightningArgumentParser]:
        """The parser of each command; empty if no command is run."""
        return dict(zip(self.subcommands(), self._parsers[1:], strict=False))

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse `args` alone; LightningCLI would add the words that the process was started with.

        Raises:
            UsageError: If an option does not exist or has a wrong value, a section is not an object, or the seed or the
                folder of results has no value.
        """
        words = find_configs(cast(list[str], args))
        for option in options_set(words):
            key = ".".join(option.split(".")[:2])  # in a file its value may be an object
            if key in LINKED:
                raise UsageError(f"{key} cannot be set: it follows from {LINKED[key]}.")
        try:
            self.config = parser.parse_args(words)
        except ArgumentError as error:
            raise UsageError(self._explain(str(error))) from error
        check_flag("overwrite", self._run_config.overwrite, False)
        for section, key in (("trainer", "default_root_dir"), ("data", "class_path"), ("model", "class_path")):
            if key not in (self._run_config.get(section) or Namespace()):
                raise UsageError(f"{section} is {self._run_config.get(section)}, but must be an object of its options.")
            if unknown := self._run_config[section].get("dict_kwargs"):
                raise UsageError(f"There is no option {section}.{next(iter(unknown))}. Leave dict_kwargs out.")
        seed = self._run_config.seed_everything
        if not self._run_config.outputs:
            found = shown(self._run_config.outputs)
            raise UsageError(f"outputs is {found}, but must be a folder. Leave it out for its default.")
        if seed is None or not 0 <= seed < 2**32:
            raise UsageError(f"seed_everything is {seed!r}, but must be a whole number from 0 to 2**32 - 1.")

    @cached_property
    def _parser_keys(self) -> set[str]:
        """The keys of all commands, without those of a model and of data."""
        parsers = self.command_parsers.values() or [self.parser]
        return {name for each in parsers for name in vars(each.get_defaults().as_flat())}

    def _explain(self, message: str) -> str:
        """Return the argument parser's message in one line, with the nearest key that exists."""
        key, section, path = unknown_key(message), section_of(message), class_of(message)
        if key is None:
            return explain(message, ())
        ours = [(section, kind) for section, base in BASES.items() for kind in classes_of(base)]
        owners = [kind.__name__ for section, kind in ours if key in options_of(section, kind)]
        if owners and path:
            return f"{path} has no option {key}, but {', '.join(owners)} {'have' if owners[1:] else 'has'} it."
        chosen = [(section, import_class(path))] if section and path else ours
        return explain(
            message, self._parser_keys.union(*(options_of(section, kind) for section, kind in chosen)) - NOT_ASKED
        )

    def _parse_ckpt_path(self) -> None:
        """Take nothing from a checkpoint: LightningCLI would let a checkpoint choose the class of the model."""

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed: a whole number, where LightningCLI's may also be true or false."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of splits, head and batch order.")

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

    def _check_values(self) -> None:
        """Check what needs neither a model nor data.

        Raises:
            UsageError: If an option is null that must have a value, or out of its range.
        """
        config = self._run_config
        for section in BASES:
            check_nulls(section, config[section].init_args, import_class(config[section].class_path))
        check_nulls("early_stopping", config.early_stopping, EarlyStopping)
        check_nulls("trainer", config.trainer, Trainer)
        check_ranges(config)
        for key in ("experiment", "dataset", "arm.name", "arm.overlay", "arm.control", "arm.starts_from"):
            if config[key] is not None or key in ("experiment", "arm.name"):
                check_name(f"--{key}", config[key])
        if config.arm.color is not None and not is_color_like(config.arm.color):
            raise UsageError(f"arm.color is {config.arm.color!r}, but must be a color of matplotlib, such as #D55E00.")
        mask = config.model.init_args.get("masking.mask_path")
        if mask is not None and not Path(mask).is_file():
            raise UsageError(f"model.masking.mask_path is {str(mask)!r}, but must be a file with a mask.")

    def before_instantiate_classes(self) -> None:
        """Place the run: its identity, folder and logs, and the head that it starts from.

        Raises:
            UsageError: If a value is out of its range, the folder is set in another way than by the names of the run,
                or a checkpoint does not exist.
        """
        self._check_values()
        config = self._run_config
        dataset, arm = config.dataset, Arm(**config.arm.as_dict())
        dataset = config.data.class_path.rpartition(".")[2].lower() if dataset is None else dataset
        self.identity = Identity(dataset, arm, config.seed_everything)
        seed = f"seed{config.seed_everything}"
        experiment = Path(config.outputs) / config.experiment
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
            self._place_results(self.subcommand, run)
        if self.subcommand == "fit" and arm.starts_from and config.model.init_args.start is None:
            start = experiment / dataset / arm.starts_from / seed / "start.safetensors"
            config.model.init_args.start = str(start)

    def _place_results(self, command: str, run: Path) -> None:
        """Refuses to replace complete results, and finds the checkpoint that a command reads.

        Raises:
            UsageError: If results are complete, or there is no checkpoint.
        """
        config = self._run_config
        check_overwrite(command, run, config.overwrite)
        if config.weights_only is False:
            raise UsageError("weights_only is false, but nothing in a checkpoint is ever executed. Leave it out.")
        config.weights_only = True
        if command != "fit":
            config.ckpt_path = config.ckpt_path or str(run / "checkpoints" / "best.ckpt")
        if config.ckpt_path and not Path(config.ckpt_path).exists():
            raise UsageError(
                f"ckpt_path is {config.ckpt_path!r}, but there is no such file. `influence fit` leaves "
                "<run>/checkpoints/best.ckpt."
            )

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

    def fit(self, **kwargs: Any) -> None:
        """Fits, one at a time in a run's folder; LightningCLI runs this in place of `Trainer.fit`.

        Raises:
            UsageError: If another process is fitting there.
        """
        if not self.trainer.is_global_zero:
            return self.trainer.fit(**kwargs)
        run = Path(self.trainer.default_root_dir)
        make_folder(run)
        try:
            with FileLock(run / ".lock", timeout=0):
                self.trainer.fit(**kwargs)
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
    arguments = {name: item for signature in signatures for name, item in signature.parameters.items()}
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: item for name, item in arguments.items() if name != "self" and item.kind not in variadic}


def import_class(path: str) -> Any:
    """Return the class at a dotted path, which the argument parser has already imported."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def classes_of(base: type) -> list[type]:
    """Return a class and all that inherit from it."""
    children: list[type] = base.__subclasses__()
    return [base, *(kind for child in children for kind in classes_of(child))]


def options_of(section: str, kind: type) -> dict[str, Any]:
    """Return the types of a class's options, as they are typed; those of a dataclass follow its name and a dot."""
    options = {f"{section}.{name}": argument.annotation for name, argument in _arguments(kind).items()}
    for name, nested in list(options.items()):
        if is_dataclass(nested):
            del options[name]
            options |= {f"{name}.{field.name}": field.type for field in fields(nested)}
    return options


def check_nulls(section: str, options: Namespace, kind: type) -> None:
    """Refuses null where a class does not accept it: the argument parser lets it through.

    Raises:
        UsageError: If an argument is null that must have a value.
    """
    for name, argument in _arguments(kind).items():
        is_null = name in options and options[name] is None
        if is_null and argument.default is not None and type(None) not in get_args(argument.annotation):
            raise UsageError(f"{section}.{name} is null, but must have a value. Leave it out for its default.")


class CheckOptions(InfluenceCLI):
    """Reads the options of a condition, and builds nothing. `args` do not begin with a command.

    Raises:
        UsageError: If an option does not exist, has a wrong value or is out of its range.
    """

    def __init__(self, args: ArgsType) -> None:
        super().__init__(args, run=False)

    def before_instantiate_classes(self) -> None:
        """Check the values alone."""
        self._check_values()

    def instantiate_classes(self) -> None:
        """Build nothing."""


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

"""The classifier of all arms: tokens -> backbone -> pooled vector -> linear head -> logits."""

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from math import inf
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import get_linear_schedule_with_warmup

from modules.arithmetic import CpuAutocast, is_cpu_autocast
from modules.backbone import Pooling, backbone_fingerprint, compile_layers, load_backbone, pool, visible
from modules.caches import Caches
from modules.checkpoints import check_fit
from modules.errors import CheckpointError, require
from modules.families import as_targets, candidate_names, family_of, state_width
from modules.features import Batch, Features, extract
from modules.first_look import FirstLook
from modules.head import ConditionedHead
from modules.start import Start
from modules.store import Content, TensorStore, weights_digest


class Classifier(LightningModule):
    """A pretrained backbone with a linear head, trained with AdamW under a linear schedule.

    For a Qwen2 backbone the logits equal those of `transformers.Qwen2ForSequenceClassification` with the same
    weights: the head has no bias and reads the last real token. Encoders are mean-pooled and their head has a bias.
    A new head is trained on features of equal size (see `ConditionedHead`), and `head.as_linear()` is the layer that
    it amounts to.

    An arm is a subclass: it says what it trains (`trains`) and freezes or wraps the rest (`adapt`). All arms but the
    baselines start from a trained head (`start`).

    Args:
        backbone: Hub id, local folder, GGUF file, or `all-MiniLM-L6-v2` (see `resolve_backbone`).
        num_labels: Number of classes; the command line takes it from the dataset.
        learning_rate: Peak learning rate of AdamW. None: AdamW's default, 1e-3.
        weight_decay: AdamW's decay of matrices; biases and norms are not decayed.
        warmup_ratio: Share of the steps in which the learning rate rises linearly; then it falls linearly to 0.
        pooling: How token states become the vector of a text: `last` or `mean`. None: as the backbone's family does.
        targets: Which weights are masked or adapted: a list of name endings (`q_proj`), or a regular expression that
            matches whole parameter names. None: the attention and MLP matrices of the backbone's family.
        compile: Compile the backbone's layers by `torch.compile`, once for all batches: for long fits on a GPU.
        start: File with the head to start from (`start.safetensors`). None: a new head, whose weights are zero.
        seed: Seed of the condition, for dropout and random masks.

    Attributes:
        caches: Features and gradients that are computed once. Assign the same object to the modules that share them.
        arithmetic: How the backbone is computed under bf16 autocast on a CPU.
        store: Where they are kept for later processes. Assign one to keep them; None keeps them in memory only.

    Raises:
        OptionError: If an option is out of range.
        BackboneError: If the backbone cannot be loaded, or cannot classify texts.
        StartError: If the start is missing, or was made with another backbone or number of classes.
    """

    trains: str = "all"
    """What the arm trains: `none`, `head`, `adapter` or `all`. An arm with an option `tune` sets it from that."""

    def __init__(
        self,
        backbone: str = "Qwen/Qwen2-0.5B",
        num_labels: int = 2,
        learning_rate: float | None = None,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        pooling: Pooling | None = None,
        targets: list[str] | str | None = None,
        compile: bool = False,
        start: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.caches = Caches()
        self.store: TensorStore | None = None
        learning_rate = 1e-3 if learning_rate is None else learning_rate
        require(0 < learning_rate < inf, "learning_rate", learning_rate, "a number above 0")  # NaN is in no range
        require(0 <= weight_decay < inf, "weight_decay", weight_decay, "0 or more")
        require(0 <= warmup_ratio < 1, "warmup_ratio", warmup_ratio, "0 or more, and below 1")
        require(targets is None or _are_targets(targets), "targets", targets, "a list of names or a regular expression")
        self.backbone_name, self.num_labels, self.seed, self.targets = backbone, num_labels, seed, targets
        self.learning_rate, self.weight_decay, self.warmup_ratio = learning_rate, weight_decay, warmup_ratio
        # before the backbone, which takes seconds to load: a missing start is reported at once
        self.start = Start.load(start) if start else None
        pretrained = load_backbone(backbone)
        self.family = family_of(pretrained, backbone)
        self.pooling = pooling or self.family.pooling
        self.head = ConditionedHead(state_width(pretrained), num_labels, bias=self.pooling == "mean")
        self.backbone: nn.Module = pretrained
        self.backbone_fingerprint = backbone_fingerprint(self.backbone)
        if self.start:
            self.start.check_backbone(self.backbone_fingerprint, backbone, num_labels)
            self.start.check_head(self.head.state_dict())
            self.head.load_state_dict(self.start.head)
        self._train_features: Features | None = None
        self._eval_features: Features | None = None
        self.arithmetic = CpuAutocast()
        self.adapt()
        self.compiled = compile
        if compile:
            compile_layers(self.backbone)

    def adapt(self) -> None:
        """Freeze or wrap weights before training. By default every weight trains."""

    def candidate_targets(self) -> list[str] | str:
        """Return the weights that may be masked or adapted: the user's `targets`, or those of the backbone's family.

        Raises:
            BackboneError: If there are no `targets`, and the family's weights cannot be distinguished from others.
        """
        if self.targets is not None:
            return self.targets
        return as_targets(candidate_names(self.backbone, self.family, self.backbone_name), self.backbone)

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode, but leave a frozen backbone in eval mode.

        Its features are computed once, without dropout. Training without the cache of features must give the same head.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.backbone.parameters()):
            self.backbone.eval()
        return self

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector per text, `[batch, hidden]`, from right-padded `[batch, tokens]` ids and mask."""
        seen = visible(attention_mask, self.family.causal)
        with self.arithmetic if is_cpu_autocast() and not self.compiled else nullcontext():
            hidden = self.backbone(input_ids=input_ids, attention_mask=seen).last_hidden_state
        return pool(hidden, attention_mask, self.pooling)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits `[batch, num_labels]` in float32 from right-padded `[batch, tokens]` ids and mask."""
        return self._classify(self.encode(input_ids, attention_mask))

    def _classify(self, vectors: Tensor) -> Tensor:
        """Return the head's logits in float32; its products are not rounded to bf16 by autocast: they cost nothing."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self.head(vectors.to(self.head.weight.dtype)).float()

    def _logits(self, batch: Batch, features: Features | None) -> Tensor:
        """Return the logits of `forward`, from cached features if there are any."""
        if features is None:
            return self(batch["input_ids"], batch["attention_mask"])
        return self._classify(features.of(batch["row"]))

    def setup(self, stage: str) -> None:
        """Forget the features of an earlier run: weights may have changed."""
        self._train_features = self._eval_features = None
        if stage == "fit" and not any(parameter.requires_grad for parameter in self.parameters()):
            # DistributedDataParallel refuses a module in which nothing requires a gradient, and has nothing to average
            cast(Any, self.trainer.strategy).configure_ddp = lambda: None

    def on_train_start(self) -> None:
        """Encode the training rows once for all epochs, if the backbone is frozen; condition a new head on them."""
        self.arithmetic.release()
        self._train_features = self._frozen_features(lambda data: data.train_on)
        is_new = self.start is None and self.head.weight.requires_grad and self.trainer.global_step == 0
        if is_new and self._datamodule is not None:
            # every process encodes all rows, so that the constants do not depend on how many there are
            features = self._train_features or self._extract(self._datamodule.train_on, shared=False)
            self.head.condition(features.vectors)

    def on_validation_start(self) -> None:
        """Encode the rows to evaluate, if the backbone is frozen: those for early stopping in a fit, otherwise eval."""
        self.arithmetic.keep()
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        self._eval_features = self._frozen_features(lambda data: data.early_stop_on if fitting else "eval")

    def on_validation_end(self) -> None:
        """Free the memory that only an evaluation needs."""
        self.arithmetic.release()

    def on_test_start(self) -> None:
        """Do the same as for validation."""
        self.on_validation_start()

    def backbone_state(self) -> str:
        """Return the cache key of the backbone's weights."""
        return self.backbone_fingerprint

    @property
    def _datamodule(self) -> Any:
        """The Trainer's datamodule if it is a `TextDataModule`, otherwise None."""
        datamodule = getattr(self._trainer, "datamodule", None)
        return datamodule if hasattr(datamodule, "split_key") else None

    def _frozen_features(self, split_of: Callable[[Any], str]) -> Features | None:
        """Return the features of a split; None if the backbone trains, or if computing all rows would not pay.

        With `limit_*_batches` (`fast_dev_run` sets them) only some rows are read. With several processes each reads
        only its own.
        """
        trainer, datamodule = cast(Any, self.trainer), self._datamodule
        limits = (trainer.limit_train_batches, trainer.limit_val_batches, trainer.limit_test_batches)
        # the int 1 is one batch, the float 1.0 is all of them (Trainer's documentation of limit_train_batches)
        is_limited = any(isinstance(limit, int) or limit != 1.0 for limit in limits)
        trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
        if datamodule is None or trains or is_limited or trainer.world_size > 1:
            return None
        split = split_of(datamodule)
        key, rows = f"{self.pooling}/{trainer.precision}/{self.device}/{self.compiled}", datamodule.split_key(split)
        make = partial(self._stored_features, f"features/{key}/{rows}", split)
        return self.caches.features.get(f"{self.backbone_state()}/{key}", rows, make)

    def _stored_features(self, key: str, split: str) -> Features:
        """Return the features of a split, read from the store if they are there."""
        if self.store is None:
            return self._extract(split)

        def make() -> Content:
            features = self._extract(split)
            return {"rows": features.rows, "vectors": features.vectors}, {}

        tensors, _ = self.store.get(f"{key}/{weights_digest(self.backbone)}", make)
        return Features(tensors["rows"], tensors["vectors"].to(self.device))

    def _extract(self, split: str, shared: bool = True) -> Features:
        """Encode a split without dropout: this process's share of the rows, or all of them."""
        trainer: Any = self.trainer

        def encode(batch: Batch) -> Tensor:
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            with trainer.precision_plugin.val_step_context():
                return self.encode(batch["input_ids"], batch["attention_mask"])

        batches, training = trainer.datamodule.ordered_dataloader(split, shared), self.training
        self.eval()
        features = extract(encode, batches, self.device, bar=trainer.progress_bar_callback is not None)
        self.train(training)
        return features

    def on_train_epoch_start(self) -> None:
        """Seed dropout by seed, epoch and process, so that a resumed fit drops the same units as an uninterrupted one.

        A checkpoint at the end of an epoch holds no random state, and processes must not all drop the same units.
        """
        entropy = np.random.SeedSequence([self.seed, self.current_epoch, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        if self.device.type == "xla":
            _settle(self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross-entropy of the batch, in nats."""
        loss = cross_entropy(self._logits(batch, self._train_features), batch["labels"])
        # Logged per step, unreduced. The default, `mean`, would also keep a sample count on the device (Lightning's
        # `_ResultMetric`), one more tensor in XLA's programs.
        self.log("train/loss", loss, batch_size=len(batch["labels"]), prog_bar=True, reduce_fx="max")
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Return rows, labels and logits, from which a callback computes the metrics.

        The `row` of padding rows is -1.
        """
        logits = self._logits(batch, self._eval_features)
        return {"row": batch["row"], "labels": batch["labels"], "logits": logits}

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Do the same as for validation: both evaluate the eval split."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Return the rows and logits of a batch of any texts."""
        return {"row": batch["row"], "logits": self(batch["input_ids"], batch["attention_mask"])}

    def configure_optimizers(self) -> Any:
        """Return AdamW over the trainable weights, with linear warm-up and linear decay to 0, updated every step."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trainable:
            return None
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=self.learning_rate,
            fused=self.device.type in ("cpu", "cuda"),
        )
        # A fused AdamW announces that it unscales gradients within its step, that is after clipping. Lightning then
        # refuses to clip (MixedPrecision.clip_gradients), even in bf16-mixed, where nothing is scaled.
        optimizer._step_supports_amp_scaling = False
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_linear_schedule_with_warmup(optimizer, int(self.warmup_ratio * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take a step, and free the gradients at once.

        Lightning frees them after the next forward pass. Until then they take memory, and on a CPU leave it in pieces
        that the next gradients do not fit into: full fine-tuning of Qwen2-0.5B grew from 10 to 15 GB.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()

    def configure_callbacks(self) -> list[Callback]:
        """Return the check of the start against the data, and the first look; arms add their own after them."""
        return [*([CheckStart()] if self.start else []), FirstLook()]

    def checkpoint_identity(self) -> dict[str, Any]:
        """Return what a checkpoint and the model that loads it must have in common; arms add their options."""
        datamodule = self._datamodule
        data = {"dataset": datamodule.name, "splits": datamodule.fingerprint} if datamodule else {}
        data |= {"tokenizer": datamodule.tokenizer_digest} if datamodule else {}
        return {"arm": type(self).__name__, "num_labels": self.num_labels, "seed": self.seed, **data}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen backbone weights out: the checkpoint refers to the backbone instead of copying it."""
        checkpoint["condition"] = self.checkpoint_identity()
        checkpoint["backbone"] = {"name": self.backbone_name, "fingerprint": self.backbone_fingerprint}
        for name in self._frozen_names():
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen weights of the loaded backbone back, so that loading stays strict.

        Raises:
            CheckpointError: If the checkpoint belongs to another condition or backbone, its weights do not fit, or a
                fit is to resume from a checkpoint of weights alone.
        """
        stored, asked = checkpoint.get("condition") or {}, self.checkpoint_identity()
        differences = [name for name in asked if name in ("arm", *stored) and stored.get(name) != asked[name]]
        if differences:
            name = differences[0]
            raise CheckpointError(
                f"The checkpoint was made with {name} {stored.get(name)!r}, but this run has {asked[name]!r}. Its own "
                "settings are in the config.yaml of its run."
            )
        backbone = checkpoint.get("backbone", {})
        if backbone.get("fingerprint") != self.backbone_fingerprint:
            raise CheckpointError(
                f"The checkpoint belongs to the backbone {backbone.get('name')!r} "
                f"(fingerprint {str(backbone.get('fingerprint'))[:12]}), but {self.backbone_name!r} "
                f"({self.backbone_fingerprint[:12]}) is loaded. Give the checkpoint's backbone: --model.backbone"
            )
        if self._trainer and self._trainer.state.fn == TrainerFn.FITTING and "optimizer_states" not in checkpoint:
            raise CheckpointError(
                "Cannot resume from this checkpoint: it holds only weights. A stopped fit leaves "
                "checkpoints/last.ckpt, which holds everything."
            )
        current = self.state_dict()
        checkpoint["state_dict"].update({name: current[name] for name in self._frozen_names()})
        check_fit(checkpoint["state_dict"], current)

    def _frozen_names(self) -> list[str]:
        return [f"backbone.{name}" for name, p in self.backbone.named_parameters() if not p.requires_grad]


def _are_targets(targets: list[str] | str) -> bool:
    """Whether there are targets, and a regular expression is one."""
    try:
        return bool(re.compile(targets) if isinstance(targets, str) else targets)
    except re.error:
        return False


def _settle(device: torch.device) -> None:
    """Run what is pending on XLA before an epoch, so that the first training step is the same program in every epoch.

    XLA compiles all pending operations with the step that follows them, and Lightning's logging leaves some between
    epochs. From the second epoch on, it also leaves a copy of one number; the same copy is made before the first.
    """
    import torch_xla

    torch_xla.sync()
    number = torch.tensor(0.5).to(device).clone()
    torch_xla.sync()
    del number


class CheckStart(Callback):
    """Refuse a start that was made from other data or with another seed, before an arm takes its gradient."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the start with the data of a fit.

        Raises:
            StartError: If they do not match.
        """
        datamodule: Any = getattr(trainer, "datamodule", None)
        if stage == "fit" and datamodule is not None and isinstance(pl_module, Classifier) and pl_module.start:
            pl_module.start.check_data(datamodule.fingerprint, datamodule.tokenizer_digest, pl_module.seed)

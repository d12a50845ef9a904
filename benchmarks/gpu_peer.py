"""Full fine-tuning, LoRA and evaluation as one would write them without this project: Hugging Face Trainer and peft."""

import tempfile
from time import perf_counter
from typing import Any

import torch
from generated import WORD_TOKENIZER
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Rows(Dataset):
    """Tokenised rows as the collator takes them.

    Args:
        rows: With `tokens`, a tensor of ids a row, and `labels`.
    """

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows.tokens)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.rows.tokens[row].tolist(), "labels": int(self.rows.labels[row])}


class Clock(TrainerCallback):
    """Takes the seconds of each epoch and of each training step."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.steps: list[float] = []

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.epoch_started = now()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.epochs.append(now() - self.epoch_started)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.step_started = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.steps.append(now() - self.step_started)


def now() -> float:
    """Return seconds, when the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter()


def tokens_a_second(
    folder: str, train: Any, evaluation: Any, num_labels: int, epochs: int, bf16: bool
) -> dict[str, float]:
    """Real tokens a second of both arms and of evaluation; the first of several epochs does not count."""
    found = {}
    for arm in ("full_ft", "lora"):
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=num_labels, dtype=torch.float32)
        if arm == "lora":
            adapters = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=ADAPTED)
            model = get_peft_model(model, adapters)
        clock = Clock()
        with tempfile.TemporaryDirectory() as scratch:
            trainer = Trainer(
                model,
                TrainingArguments(
                    scratch,
                    num_train_epochs=epochs,
                    per_device_train_batch_size=16,
                    per_device_eval_batch_size=64,
                    learning_rate=1e-5,
                    weight_decay=0.01,
                    max_grad_norm=1.0,
                    bf16=bf16,
                    use_cpu=not torch.cuda.is_available(),
                    save_strategy="no",
                    logging_strategy="no",
                    report_to=[],
                    disable_tqdm=True,
                ),
                train_dataset=Rows(train),
                data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(f"{folder}/{WORD_TOKENIZER}")),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            found[arm] = sum(train.lengths) / min(clock.epochs[1:] or clock.epochs)
            if arm == "full_ft":
                found["evaluation"] = sum(evaluation.lengths) / min(_seconds(trainer, evaluation) for _ in range(2))
        del trainer, model
    return found


def epoch_seconds(folder: str, tokenizer: str, train: Any, num_labels: int, order: str, warm_up: int = 3) -> float:
    """Return the seconds of an epoch of full fine-tuning in bf16, without what its first steps take longer.

    Args:
        folder: The model.
        tokenizer: Folder of its tokenizer, which pads.
        train: As `Rows` takes them.
        num_labels: Number of classes.
        order: `train_sampling_strategy` of `TrainingArguments`.
        warm_up: Number of steps that are counted as long as the others are.
    """
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=num_labels, dtype=torch.float32)
    padding = AutoTokenizer.from_pretrained(f"{tokenizer}/{WORD_TOKENIZER}")
    model.config.pad_token_id = padding.pad_token_id
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model,
            TrainingArguments(
                scratch,
                num_train_epochs=1,
                per_device_train_batch_size=16,
                train_sampling_strategy=order,
                learning_rate=1e-5,
                weight_decay=0.01,
                max_grad_norm=1.0,
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Rows(train),
            data_collator=DataCollatorWithPadding(padding),
            callbacks=[clock],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    counted = clock.steps[warm_up:]
    return sum(counted) / len(counted) * len(clock.steps)


def _seconds(trainer: Trainer, rows: Any) -> float:
    start = now()
    trainer.predict(Rows(rows))
    return now() - start

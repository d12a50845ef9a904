"""Arms A, C and D as one would write them without this project: Hugging Face Trainer and peft, on given splits.

Shares no code with the project. `python benchmarks/arms.py` runs it and this project's arms one after the other.
"""

import argparse
import json
import tempfile
from time import perf_counter

import datasets
import numpy as np
import pyarrow.parquet as pq
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torchmetrics.functional.classification import multiclass_f1_score
from transformers import (
    AutoModel,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

LEARNING_RATES = {"baseline": 1e-2, "lora": 5e-4, "full_ft": 5e-5}
ADAPTED = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]


class MeanPooled(nn.Module):
    """An encoder, the mean over its tokens, and a linear head."""

    def __init__(self, folder: str, num_labels: int) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.head = nn.Linear(self.backbone.config.hidden_size, num_labels)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids, attention_mask, labels=None):
        """Return loss and logits, as the Trainer wants them."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).float()
        logits = self.head((hidden * weights).sum(1) / weights.sum(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def main() -> None:
    """Train the three arms in turn and print one JSON object an arm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("splits", help="Parquet file with the columns text, label and split.")
    parser.add_argument("backbone", help="Folder of the encoder.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()

    table = pq.read_table(options.splits).to_pandas()
    tokenizer = AutoTokenizer.from_pretrained(options.backbone)
    collate = DataCollatorWithPadding(tokenizer)
    started = perf_counter()
    parts = {}
    for name in ("head_init", "train", "dev", "eval"):
        rows = table[table["split"] == name]
        tokens = tokenizer(list(rows["text"]), truncation=True, max_length=options.max_length)
        columns = {key: tokens[key] for key in ("input_ids", "attention_mask")}
        parts[name] = datasets.Dataset.from_dict({**columns, "labels": list(rows["label"])})
    tokenized = perf_counter() - started

    head = None
    for arm, rate in LEARNING_RATES.items():
        set_seed(options.seed)
        model = MeanPooled(options.backbone, table["label"].nunique())
        if head is None:
            model.backbone.requires_grad_(False)
        else:
            model.head.load_state_dict(head)
        if arm == "lora":
            model.backbone = get_peft_model(model.backbone, LoraConfig(r=8, lora_alpha=16, target_modules=ADAPTED))
        started = perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model,
                TrainingArguments(
                    folder,
                    num_train_epochs=1 if arm == "baseline" else options.epochs,
                    per_device_train_batch_size=16,
                    per_device_eval_batch_size=64,
                    learning_rate=rate,
                    weight_decay=0.01,
                    warmup_steps=0.1,
                    max_grad_norm=1.0,
                    eval_strategy="epoch",
                    save_strategy="epoch",
                    save_total_limit=1,
                    load_best_model_at_end=True,
                    metric_for_best_model="accuracy",
                    bf16=options.precision == "bf16",
                    use_cpu=not torch.cuda.is_available(),
                    seed=options.seed,
                    report_to=[],
                    disable_tqdm=True,
                    logging_strategy="no",
                ),
                train_dataset=parts["head_init" if arm == "baseline" else "train"],
                eval_dataset=parts["dev"],
                data_collator=collate,
                compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
                callbacks=[EarlyStoppingCallback(3)],
            )
            trainer.train()
            found = trainer.predict(parts["eval"])
        seconds = perf_counter() - started + tokenized
        tokenized = 0.0  # once, as in the project
        guesses, labels = torch.tensor(found.predictions.argmax(-1)), torch.tensor(found.label_ids)
        f1 = multiclass_f1_score(guesses, labels, num_classes=found.predictions.shape[1], average="macro")
        accuracy = (guesses == labels).float().mean()
        epochs = float(trainer.state.epoch or 0)
        record = {"arm": arm, "accuracy": float(accuracy), "macro_f1": float(f1), "seconds": seconds, "epochs": epochs}
        print("RESULT " + json.dumps(record), flush=True)
        if head is None:
            head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}


if __name__ == "__main__":
    main()

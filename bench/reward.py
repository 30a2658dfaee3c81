"""reward_train.py beside transformers' Trainer: real tokens a second (padding not counted), same model, texts, batch.

    python bench/reward.py                     # GPT-2 of 4 layers x 256, lengths log-normal around 120, batch 16
    python bench/reward.py --quick

The Trainer runs at its defaults, and at its best: bf16, batches grouped by length, no dropout. The sides take turns,
each in a process of its own; its first steps do not count.
"""

import json
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import table

SIDES = ("trainer, defaults", "trainer, best", "reward_train.py")
BATCH, WARM, VOCAB = 16, 5, 50257  # WARM: steps that are not counted


def write_data(folder: Path, steps: int) -> None:
    """A model folder whose tokenizer knows a word a token, and texts of exactly the wanted lengths."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from core import hf, rng
    from model import GPT, GPTConfig

    g = rng.generator("bench reward")
    words = ["<|endoftext|>", "Question:", "Answer:", *(f"w{i}" for i in range(VOCAB - 3))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:1])
    config = GPTConfig(n_layer=4, n_head=4, n_embd=256, mlp_size=1024, vocab_size=VOCAB, block_size=512, bias=True,
                       dropout=0.1, activation_variant="gelu_tanh")  # fmt: skip
    rng.seed_torch("bench reward")
    hf.save(folder / "model", "gpt2", vars(config), GPT(config).state_dict(), eos_token_id=0, pad_token_id=0)
    tokenizer.save(str(folder / "model" / "tokenizer.json"))

    def row() -> dict:
        length = int(np.clip(np.exp(g.normal(math.log(120), 0.7)), 16, 512)) - 3
        text = [f"w{i}" for i in g.integers(0, VOCAB - 3, length)]
        return {"Question": " ".join(text[: length // 3]), "Answer": " ".join(text[length // 3 :]),
                "Score": float(g.normal())}  # fmt: skip

    rows = {"train": [row() for _ in range(BATCH * steps)], "test": [row() for _ in range(BATCH)]}
    (folder / "qa.json").write_text(json.dumps(rows))


def ours(folder: Path) -> float:
    from core import tracker

    out = folder / "run"
    flags = {"model_name": folder / "model", "data.data_dir": folder / "qa.json", "data.batch_size": BATCH,
             "trainer.checkpoint.dirpath": out, "trainer.params.max_epochs": 1, "trainer.params.log_every_n_steps": 1,
             "trainer.params.num_sanity_val_steps": 0}  # fmt: skip
    table.run("reward_train.py", *(f"--{k}={v}" for k, v in flags.items()))
    rows = tracker.read(out / "train.csv")[WARM:]
    return sum(r["tok_per_s"] * r["ms"] for r in rows) / sum(r["ms"] for r in rows)


def theirs(folder: Path, steps: int, best: bool) -> float:
    import torch
    from transformers import GPT2ForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    from data import qa, vocab

    tokenizer = vocab.load(qa.tokenizer(folder / "model"))
    template = qa.Template(lambda text: tokenizer.ids(text).tolist(), [], [0])
    columns = qa.prepare_train(json.loads((folder / "qa.json").read_text())["train"], template)
    rows = [{"input_ids": ids, "labels": y} for ids, y in zip(columns["input_ids"], columns["labels"], strict=True)]
    sizes, times = [], []

    def collate(batch: list[dict]) -> dict:
        lengths = torch.tensor([len(b["input_ids"]) for b in batch])
        sizes.append(int(lengths.sum()))
        width = int(lengths.max())
        ids = torch.tensor([b["input_ids"] + [0] * (width - len(b["input_ids"])) for b in batch])
        mask = (torch.arange(width) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([b["labels"] for b in batch])}

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            times.append(time.perf_counter())

    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if best else {}
    model = GPT2ForSequenceClassification.from_pretrained(folder / "model", num_labels=1, pad_token_id=0, **none)
    grouped = {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" not in TrainingArguments.__dataclass_fields__:  # before transformers 5
        grouped = {"group_by_length": True}
    more = {"bf16": True, **grouped} if best else {}
    args = TrainingArguments(output_dir=str(folder / "trainer"), per_device_train_batch_size=BATCH, max_steps=steps,
                             report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, **more)  # fmt: skip
    Trainer(model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()
    return sum(sizes[WARM:steps]) / (times[-1] - times[WARM - 1])


def main() -> None:
    if sys.argv[1:2] == ["--trainer"]:
        print(theirs(Path(sys.argv[2]), int(sys.argv[3]), bool(int(sys.argv[4]))))
        return
    args = table.arguments(__doc__, steps=40)
    steps = WARM + 8 if args.quick else args.steps
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder, steps)

        def peer(best: int) -> float:
            out = table.run("bench/reward.py", "--trainer", folder, steps, best)["output"]
            return float(out.splitlines()[-1])

        found = table.turns({SIDES[0]: lambda: peer(0), SIDES[1]: lambda: peer(1), SIDES[2]: lambda: ours(folder)},
                            args.repeats)  # fmt: skip
    for base, goal in ((SIDES[0], 6), (SIDES[1], 2.5)):
        both = {name: runs for name, runs in found.items() if name in (base, SIDES[2])}
        table.report(args, f"reward_train.py, GPT-2 4 layers x 256, lengths log-normal, batch 16, against the {base}",
                     both, base, unit="real tok/s", goal=goal)  # fmt: skip


if __name__ == "__main__":
    main()

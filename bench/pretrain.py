"""pretrain.py beside transformers' Trainer: real tokens a second (padding not counted), same model, data and batch.

    python bench/pretrain.py                  # RoBERTa of 4 layers x 128, lengths log-normal around 120, batch 16
    python bench/pretrain.py --shape base --repeats 3       # RoBERTa-base, lengths up to 512, batch 32: for a GPU
    python bench/pretrain.py --quick

The Trainer runs at its defaults, and at its best: bf16, batches grouped by length (on GPUs fused AdamW and workers,
too). All sides read the same Arrow files, mask 15%, and drop out 10%. Each turn is a process of its own; its first
steps do not count.
"""

import json
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import table

ROOT = Path(__file__).resolve().parent.parent
WARM = 10  # steps that do not count
# layers, heads, width, MLP; batch, vocabulary, middle length; steps of the Trainer and ours; goals over its two ways
SHAPES = {"small": ((4, 4, 128, 512), (16, 1000, 120), (40, 150), (10, 4)),
          "base": ((12, 12, 768, 3072), (32, 50000, 180), (60, 120), (None, 2))}  # fmt: skip
SIDES = ("Trainer, defaults", "Trainer, best", "pretrain.py")


def write_data(folder: Path, shape: str, steps: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    from core import rng
    from data.build_pretrain_data import Writer
    from data.encoding import narrowest
    from data.train_tokenizer import SPECIAL

    (_, (batch, size, middle), *_) = SHAPES[shape]
    words = [*SPECIAL, *(f"w{i}" for i in range(size - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    g = rng.generator("bench pretrain")
    for name, n in (("train", batch * steps), ("eval", batch)):
        lengths = np.clip(np.exp(g.normal(math.log(middle), 0.7, n)), 16, 512).astype(np.int64)
        ids = g.integers(len(SPECIAL), size, lengths.sum())
        ids[np.cumsum(lengths) - lengths], ids[np.cumsum(lengths) - 1] = 0, 2
        writer = Writer(folder / name, narrowest(size), "")
        for begin in range(0, n, 1000):
            some = lengths[begin : begin + 1000]
            at = lengths[:begin].sum()
            writer.write(ids[at : at + some.sum()].astype(narrowest(size)), some)
        writer.close()
        writer.name.rename(folder / name)


def ours(folder: Path, shape: str, steps: int) -> dict:
    from core import tracker

    (layers, heads, width, mlp), (batch, size, _), *_ = SHAPES[shape]
    with tempfile.TemporaryDirectory() as out:
        done = table.run("pretrain.py", f"--train={folder / 'train'}", f"--eval={folder / 'eval'}",
                         f"--save_path={out}", f"--tokenizer={folder / 'tokenizer.json'}",
                         f"--hidden_depth={layers}", f"--vocab_size={size}",
                         f"--attention_heads={heads}", f"--hidden_size={width}", f"--intermed_size={mlp}",
                         "--max_size=512", f"--per_device={batch}", f"--max_steps={steps}", f"--eval_interval={steps}",
                         "--log_steps=5", "--no_wandb")  # fmt: skip
        rows = [r for r in tracker.read(Path(out) / "train.csv") if r["step"] >= WARM]
    return {"tok/s": sum(r["tok_per_s"] * r["ms"] for r in rows) / sum(r["ms"] for r in rows), "MiB": done["MiB"]}


def theirs(folder: Path, shape: str, steps: int, best: bool) -> dict:
    done = table.run("bench/pretrain.py", "--trainer", folder, shape, steps, int(best))
    return {"tok/s": json.loads(done["output"].splitlines()[-1])["tok/s"], "MiB": done["MiB"]}


def trainer(folder: Path, shape: str, steps: int, best: bool) -> None:
    """One turn of the Trainer, with its own collator and clock."""
    sys.path.remove(str(Path(__file__).parent))  # a file here may have the name of a library's module
    import datasets
    import torch
    from transformers import (
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaForMaskedLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    (layers, heads, width, mlp), (batch, size, _), *_ = SHAPES[shape]
    words = {"pad_token": "<pad>", "mask_token": "<mask>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **words)
    model = RobertaForMaskedLM(RobertaConfig(
        vocab_size=size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2))  # fmt: skip
    sizes, times = [], []
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    class Counting(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            sizes.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *args, **kwargs)

    fields = TrainingArguments.__dataclass_fields__
    grouped = {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" not in fields:  # before transformers 5
        grouped = {"group_by_length": True}
    more = {"bf16": True, **grouped} if best else {}
    if torch.cuda.is_available():
        more |= {"optim": "adamw_torch_fused", "dataloader_num_workers": 4} if best else {}
    else:
        more |= {"use_cpu": True}
    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(output_dir=out, per_device_train_batch_size=batch, max_steps=steps, report_to="none",
                                 save_strategy="no", disable_tqdm=True, **more)  # fmt: skip
        rows = datasets.load_from_disk(str(folder / "train"))
        Counting(model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()
    print(json.dumps({"tok/s": sum(sizes[WARM:]) / (times[-1] - times[WARM - 1])}))


def main() -> None:
    if sys.argv[1:2] == ["--trainer"]:
        return trainer(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), bool(int(sys.argv[5])))
    args = table.arguments(__doc__, shape=("small", " or ".join(SHAPES)))
    (layers, _, width, _), (batch, *_), (their_steps, our_steps), goals = SHAPES[args.shape]
    if args.quick:
        their_steps, our_steps = WARM + 5, WARM + 15
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(folder, args.shape, max(their_steps, our_steps))
        found = table.turns({SIDES[0]: lambda: theirs(folder, args.shape, their_steps, False),
                             SIDES[1]: lambda: theirs(folder, args.shape, their_steps, True),
                             SIDES[2]: lambda: ours(folder, args.shape, our_steps)}, args.repeats)  # fmt: skip
    title = f"pretrain.py, {layers} layers x {width}, lengths log-normal, batch {batch}"
    for base, goal in zip(SIDES[:2], goals, strict=True):
        both = {name: runs for name, runs in table.pick(found, "tok/s").items() if name in (base, SIDES[2])}
        table.report(args, f"{title}, against the {base}", both, base, unit="real tok/s", goal=goal)
    table.report(args, f"{title}: memory", table.pick(found, "MiB"), SIDES[1], unit="peak MiB", more=False)
    return None


if __name__ == "__main__":
    main()

"""Text from a checkpoint.

    python sample.py --init_from=out --start="Once upon" --num_samples=3
    python sample.py --init_from=out --start=FILE:prompt.txt --temperature=0.7 --top_p=0.9
    python sample.py --init_from=out --perplexity=novel.txt           how surprising a text is to the model
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from core import checkpoint, config, dist, run
from core.config import Count, Fraction, NonNegative, Whole
from core.generate import stream
from core.progress import progress
from data import vocab
from model import GPT, IGNORE, GPTConfig


@dataclass
class Options:
    # model
    init_from: str = "out"  # run folder or checkpoint

    # text
    start: str = "\\n"  # text to go on from, or FILE:path
    num_samples: Count = 1  # texts, drawn side by side
    max_new_tokens: Whole = 300
    temperature: NonNegative = 0.8  # 0: always the most likely token
    top_k: Count | None = 200  # among this many
    top_p: Fraction | None = None  # among the most likely that together have this probability
    seed: int = 1337
    stream: bool = True  # print as it comes (one sample)
    use_cache: bool = True  # keep keys and values of the tokens so far

    # measuring
    perplexity: str | None = None  # a text file: prints its perplexity and stops

    # machine
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


def prompt(text: str) -> str:
    if text.startswith("FILE:"):
        path = Path(text[5:])
        if not path.is_file():
            raise ValueError(f"--start {text}: no such file")
        return path.read_text(encoding="utf-8")
    return text.replace("\\n", "\n").replace("\\t", "\t")


@torch.no_grad()
def perplexity(model, ids: list[int], device) -> tuple[float, int]:
    """(mean loss a token, tokens); windows overlap by half, so that a token sees half a block at least."""
    T, n = model.config.block_size, len(ids) - 1
    if n < 1:
        raise ValueError(f"--perplexity: {len(ids)} token(s) are too few, two are the least")
    hop, total = max(1, T // 2), 0.0
    ends = torch.tensor([*range(min(T, n), n, hop), n])
    width, ids = min(T, n), torch.tensor(ids)
    fresh = torch.diff(ends, prepend=torch.tensor([0]))  # targets that no window before has counted
    for i in progress(range(0, len(ends), 16), "perplexity"):
        at = ends[i : i + 16, None] - width + torch.arange(width)  # (B, T)
        y = ids[at + 1].masked_fill(torch.arange(width) < width - fresh[i : i + 16, None], IGNORE)
        total += model(ids[at].to(device), y.to(device)).item()
    return total / n, n


def main(args: Options) -> None:
    d = dist.init(args.device)
    path = checkpoint.find(args.init_from)
    state = checkpoint.load(path)
    if state["kind"] != "gpt":
        raise ValueError(f"{path} holds a {state['kind']} model: sample.py goes on with texts of GPT models")
    if not state["meta"].get("tokenizer"):
        raise ValueError(f"{path} has no tokenizer: its data set had none, so there is no text to speak of")
    tokens = vocab.load(state["meta"]["tokenizer"])
    dtype, _ = dist.precision(args.dtype, d.device)
    model = GPT(GPTConfig(**state["model_config"]))
    model.load_state_dict(state["model"])
    model.to(d.device).to(dtype).eval()

    if args.perplexity:
        file = Path(args.perplexity)
        if not file.is_file():
            raise ValueError(f"--perplexity {file}: no such file")
        text = file.read_text(encoding="utf-8")
        model.float()
        with dist.autocast(d.device, dtype):
            loss, n = perplexity(model, tokens.encode(text), d.device)
        bits = loss * n / math.log(2) / max(1, len(text.encode()))
        print(f"{file}: loss {loss:.4f}, perplexity {math.exp(loss):.3f}, {bits:.4f} bits a byte, {n:,} tokens")
        return

    start = tokens.encode(prompt(args.start)) or [tokens.eot or 0]
    x = torch.tensor([start] * args.num_samples, device=d.device)
    options = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed,
               "use_cache": args.use_cache}  # fmt: skip
    began, out = time.time(), []
    live = args.stream and args.num_samples == 1
    if live:
        print(tokens.decode(start), end="", flush=True)
    shown = ""
    for token in stream(model, x, args.max_new_tokens, **options):
        out.append(token)
        if live:
            text = tokens.decode([t.item() for t in out])
            if not text.endswith("\ufffd"):  # a character of several tokens is not there yet
                print(text[len(shown) :], end="", flush=True)
                shown = text
    seconds = time.time() - began
    if live:
        print()
    else:
        for row in torch.cat([x, *out], dim=1).tolist():
            print(tokens.decode(row))
            print("-" * 40)
    n = len(out) * args.num_samples
    print(f"{n:,} tokens, {n / max(seconds, 1e-9):,.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__))

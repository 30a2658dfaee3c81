"""Text from a checkpoint.

    python sample.py --init_from=out --start="Once upon" --num_samples=3
    python sample.py --init_from=out --start=FILE:prompt.txt --temperature=0.7 --top_p=0.9
    python sample.py --init_from=out --perplexity=novel.txt           how surprising a text is to the model
    python sample.py --init_from=gpt2-xl --start="Once upon"          published weights; a folder of such will do
    python sample.py --init_from=out_pretrain --start="12<mask>45"    what an encoder puts in a mask's place
    python sample.py --init_from=out --start="To be||Ul-ll"           aligned streams: a start for each
"""

import gc
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    gc.disable()  # until run.guard(): looking through all that torch imports takes a tenth of the start

import torch

from core import checkpoint, config, dist, hf, hub, run
from core.generate import lay_out, stream
from core.progress import progress
from core.values import Count, Fraction, NonNegative, Whole, at_home
from data import encoding, examples, pretrained, vocab
from model import GPTConfig, RobertaConfig, RobertaMLM, build_gpt
from variants.losses import IGNORE


@dataclass
class Options:
    # model
    init_from: str = "out"  # run folder, checkpoint, folder in HF format, or gpt2, gpt2-medium, gpt2-large, gpt2-xl

    # text
    start: str = "\\n"  # text to go on from, or FILE:path; of aligned streams one each, with || between them
    dataset: str | None = None  # of a model of several data sets, the one to write like; None: the first
    num_samples: Count = 1  # texts, drawn side by side
    max_new_tokens: Whole = 300
    temperature: NonNegative = 0.8  # 0: always the most likely token
    top_k: Count | None = 200  # draw among so many of the most likely tokens
    top_p: Fraction | None = None  # draw among the most likely that together have this probability
    seed: int = 1337
    stream: bool = True  # print as it comes (one sample)
    use_cache: bool = True  # keep keys and values of the tokens so far

    # measuring
    perplexity: str | None = None  # a text file: prints its perplexity and stops

    # machine
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


NEEDS = {"top_k top_p seed": "--temperature"}  # at 0 nothing is drawn
MEASURING = "init_from perplexity dataset device dtype"
PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # no other name is looked for on the hub


def opened(source: str) -> tuple[dict, str | Path]:
    """A checkpoint, or as much of one as published weights are, and where it is."""
    if not hub.is_folder(source) and (source not in PUBLISHED or Path(source).exists()):
        path = checkpoint.find(source)
        return checkpoint.load(path), path
    found = hf.source(source)
    meta = found["meta"] or {"tokenizer": pretrained.tokenizer_of(source, found)}
    return {"kind": found["kind"], "model_config": found["config"], "model": found["model"], "meta": meta}, source


def read(file: Path, option: str) -> str:
    if not file.exists() or file.is_dir():  # a pipe will do
        raise ValueError(f"{option}: no such file")
    return examples.decode(file.read_bytes(), file, 0).removeprefix("\ufeff").replace("\r\n", "\n")


def prompt(text: str) -> str:
    if text.startswith("FILE:"):
        return read(Path(at_home(text[5:])), f"--start {text}")
    return text.replace("\\n", "\n").replace("\\t", "\t")


@torch.no_grad()
def perplexity(model, ids: list[int], device, **which) -> tuple[float, int]:
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
        total += model(ids[at].to(device), y.to(device), **which).item()
    return total / n, n


def pick(args: Options, meta: dict, sizes: list[int] | None) -> tuple[list[dict], dict]:
    """The data sets that texts are written in, and what tells the model which of its vocabularies that is."""
    streams = meta.get("streams") or [meta | {"name": meta.get("dataset")}]
    names = [s["name"] for s in streams]
    if args.dataset and (meta.get("mode") == "multicontext" or args.dataset not in names):
        raise ValueError(f"--dataset {args.dataset}: this model knows {', '.join(map(str, names))}"
                         + " together, as aligned streams" * (meta.get("mode") == "multicontext"))  # fmt: skip
    if meta.get("mode") == "multicontext":
        return streams, {}
    k = names.index(args.dataset) if args.dataset else 0
    return [streams[k]], {"stream": k} if sizes else {}


def encoded(tokens, text: str, option: str) -> list[int]:
    try:
        return tokens.encode(text)
    except ValueError as e:
        raise ValueError(f"{option}: {e}") from None


def beginnings(text: str, tokens: list) -> list[list[int]]:
    """The ids that each stream goes on from; a start that nobody gave need not be in every alphabet."""
    if len(tokens) == 1:
        return [encoded(tokens[0], prompt(text), "--start") or [tokens[0].eot or 0]]
    if text == Options.start:
        return [[0]] * len(tokens)
    wanted = f"--start needs {len(tokens)} texts of equally many tokens with || between, one a stream; got {text!r}"
    if len(texts := text.split("||")) != len(tokens):
        raise ValueError(wanted)
    parts = [encoded(t, prompt(part), "--start") for t, part in zip(tokens, texts, strict=True)]
    if len({len(p) for p in parts}) > 1 or not parts[0]:
        raise ValueError(f"{wanted}, {' and '.join(str(len(p)) for p in parts)} tokens")
    return parts


@torch.no_grad()
def fill(args: Options, state: dict, device: torch.device) -> None:
    """An encoder's guesses for each mask in the start, and the text with the first of them."""
    coder = encoding.Encoder(state["meta"]["tokenizer"], None)
    tokenizer = coder.tokenizer
    mask = encoding.token_id(tokenizer, "mask")
    model = RobertaMLM(config.build(RobertaConfig, state["model_config"], args.init_from))
    if args.perplexity or args.dataset:
        raise ValueError("--perplexity and --dataset are for language models, this is an encoder: --start with a"
                         f" {tokenizer.id_to_token(mask)}")  # fmt: skip
    if idle := sorted(args.given - {"init_from", "start", "top_k", "device", "perplexity", "dataset"}):
        print(f"note: an encoder guesses without --{', --'.join(idle)}")
    ids = torch.from_numpy(coder([prompt(args.start)]).ids.astype("int64"))
    if len(ids) > model.config.block_size:
        raise ValueError(f"--start has {len(ids)} tokens, this encoder reads {model.config.block_size}")
    where = (ids == mask).nonzero().flatten()
    if not len(where):
        raise ValueError(f"--start needs a {tokenizer.id_to_token(mask)} for an encoder to fill in, got {args.start!r}")
    checkpoint.put(model, state["model"], args.init_from)
    model.to(device).eval()
    shares = model(ids.to(device), [len(ids)], where).float().softmax(1).cpu()
    if shares.isnan().any():
        raise run.NotFinite("the model's logits are not finite: there is nothing to guess from")
    best = shares.topk(min(args.top_k or 5, 5, tokenizer.get_vocab_size()), dim=1)
    for n, (p, guesses) in enumerate(zip(*best, strict=True)):
        words = [tokenizer.decode([i], skip_special_tokens=False) for i in guesses.tolist()]
        print(f"mask {n + 1}:", *(f"{word!r} {x:.1%}" for word, x in zip(words, p, strict=True)))
    ids[where] = best.indices[:, 0]
    print(tokenizer.decode(ids.tolist()))


def main(args: Options) -> None:
    args = config.made(args)
    d = dist.init(args.device)
    state, path = opened(args.init_from)
    if state["kind"] == "roberta":
        fill(args, state, d.device)
        return
    if state["kind"] != "gpt":
        raise ValueError(f"{path} holds a {state['kind']} model: sample.py goes on with texts of GPT models")
    streams, which = pick(args, state["meta"], state["model_config"].get("vocab_sizes"))
    if not all(s.get("tokenizer") for s in streams):
        raise ValueError(f"{path} has no tokenizer: its data set had none, so there is no text to speak of")
    tokens = [vocab.load(s["tokenizer"]) for s in streams]
    dtype, _ = dist.precision(args.dtype, d.device)
    model = build_gpt(config.build(GPTConfig, state["model_config"], path))
    checkpoint.put(model, state["model"], path)
    model.to(d.device).eval()

    idle = config.unread(args, "perplexity", MEASURING) if args.perplexity else config.idle(args, NEEDS)
    for line in idle:
        print(f"note: {line}", file=sys.stderr)
    if args.perplexity:
        file = Path(args.perplexity)
        text = read(file, f"--perplexity {file}")
        if len(tokens) > 1:
            raise ValueError(f"--perplexity {file}: this model reads {len(tokens)} aligned streams, not one text")
        with dist.autocast(d.device, dtype):  # as train.py's evaluation: norms and embeddings are not rounded
            loss, n = perplexity(model, encoded(tokens[0], text, f"--perplexity {file}"), d.device, **which)
        bits = loss * n / math.log(2) / max(1, len(text.encode()))
        surprise = math.exp(min(loss, 700))  # more overflows
        print(f"{file}: loss {loss:.4f}, perplexity {surprise:.3f}, {bits:.4f} bits a byte, {n:,} tokens")
        return

    lay_out(model.to(dtype))
    start = torch.tensor(beginnings(args.start, tokens), device=d.device)  # (S, T)
    x = start[:, None].repeat(1, args.num_samples, 1)  # (S, B, T)
    options = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed,
               "use_cache": args.use_cache, **which}  # fmt: skip
    began, out = time.monotonic(), []
    live = args.stream and args.num_samples == len(tokens) == 1
    shown = tokens[0].decode(start[0].tolist()) if live else ""
    print(shown, end="", flush=True)
    for token in stream(model, x if len(tokens) > 1 else x[0], args.max_new_tokens, **options):
        out.append(token.view(len(tokens), args.num_samples, 1))
        if live:
            text = tokens[0].decode([*start[0].tolist(), *(t.item() for t in out)])
            if not text.endswith("\ufffd"):  # a character of several tokens is not there yet
                print(text[len(shown) :], end="", flush=True)
                shown = text
    seconds = time.monotonic() - began
    if live:
        print(text[len(shown) :] if out else "")  # what a last character that is cut short held back
    else:
        for rows in torch.cat([x, *out], dim=-1).transpose(0, 1).tolist():  # (B, S, T)
            for about, words, ids in zip(streams, tokens, rows, strict=True):
                print(*[f"[{about['name']}]"] * (len(tokens) > 1), words.decode(ids))
            print("-" * 40)
    n = len(out) * args.num_samples
    print(f"{n:,} tokens, {n / max(seconds, 1e-9):,.0f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    with run.guard():
        main(config.parse(Options, sys.argv[1:], doc=__doc__))

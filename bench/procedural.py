"""Procedural data and its training loop, beside the plain way to write them.

    OMP_NUM_THREADS=1 python bench/procedural.py data       # samples a second on one core, beside a Python loop
    python bench/procedural.py loop                         # steps a second at 4_4_256, length 32, batch 64

The other side is written here in the usual style: a sample at a time, a token at a time, tensors at the end; for the
loop, transformers' GPT2LMHeadModel in float32 with such samples. Both sides take turns; medians.
"""

import random
import statistics
import time

import table
import torch

import procedural_data as P


def plain_sample(spec: P.Spec, rng: random.Random) -> dict:
    """One sample as input, target and mask tensors, by a Python loop over its tokens."""
    n, V, k = spec.length, spec.vocab_size, spec.k
    values = [rng.randint(1, V - 1) for _ in range(n)] if spec.asks else []
    question, answer = values, values
    if spec.task == "reverse":
        answer = values[::-1]
    elif spec.task == "sort":
        answer = sorted(values)
    elif spec.task in ("set", "union"):
        answer = []
        for v in values:
            if v not in answer:
                answer.append(v)
        if spec.task == "union":
            question = values[: n // 2] + [spec.sep] + values[n // 2 :]
    elif spec.task == "delete":
        gone = rng.randint(1, V - 1)
        answer = list(values)
        if gone in answer:
            answer.remove(gone)
        question = [*values, spec.sep, gone]
    elif spec.task == "stack":
        question, answer = [], []
        for t in range(n):
            p_push = 1 if len(answer) <= 1 else 0 if t == n - 1 else 0.75 if t < 2 * n // 3 else 0.25
            free = [v for v in range(1, V) if v not in answer]
            if rng.random() < p_push and free:
                answer.append(rng.choice(free))
                question.append(answer[-1])
            else:
                answer.pop()
                question.append(0)
        answer = answer[::-1]
    if spec.asks:
        row = [*question, spec.sep, *answer]
        row += [spec.pad] * (len(question) + 1 + n - len(row) + 1)
        mask = [float(len(question) <= i <= len(question) + len(answer)) for i in range(len(row) - 1)]
    else:
        row, stack, count = [], [], [0] * k
        for t in range(n):
            depth = len(stack) if spec.task == "dyck" else sum(count)
            full = depth >= n - t if spec.task == "dyck" else depth >= spec.max_depth
            if depth == 0 or (not full and rng.random() < spec.p_open):
                kind = rng.randint(0, k - 1)
                stack.append(kind)
                count[kind] += 1
                row.append(kind)
            else:
                kind = stack.pop() if spec.task == "dyck" else rng.choice([i for i in range(k) if count[i] > 0])
                count[kind] -= 1
                row.append(kind + k)
        mask = [1.0] * (n - 1)
    tokens = torch.tensor(row)
    return {"x": tokens[:-1], "y": tokens[1:], "mask": torch.tensor(mask)}


def data(args, seconds: float) -> None:
    rows = [["task", "length", "ours, rows /s", "ours, x and y /s", "plain, x and y /s", "ratio", "goal"]]
    for task in P.TASKS:
        spec = P.Spec(task, 64 if P.Spec(task, 2).asks else 2048, vocab_size=100, k=64)
        rng, ours, plain, tensors, turn = random.Random(0), [], [], [], 0
        P.block(spec, 0, "train", 0)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or turn < 5:
            turn += 1
            start = time.perf_counter()
            P.block(spec, 0, "train", turn)
            drawn = time.perf_counter()
            for i in range(0, P.BLOCK, 64):
                P.batch(spec, 0, "train", turn * P.BLOCK + i, 64)
            done = time.perf_counter()
            ours.append(P.BLOCK / (drawn - start))
            tensors.append(P.BLOCK / (done - start))
            count = max(2, int(0.05 * (plain[-1] if plain else 1000)))
            start = time.perf_counter()
            for _ in range(count):
                plain_sample(spec, rng)
            plain.append(count / (time.perf_counter() - start))
        a, b, c = (statistics.median(x) for x in (ours, tensors, plain))
        goal = 100 if spec.asks else 20
        rows.append([task, spec.length, f"{a:,.0f}", f"{b:,.0f}", f"{c:,.0f}", f"{b / c:.0f}x",
                     f"{goal}x: {'reached' if b / c >= goal else 'missed'}"])  # fmt: skip
    note = f"Samples a second (x and y in batches of 64), medians over {seconds:g} s a task, sides in turn, {torch.get_num_threads()} thread(s)."
    table.write(args, "Procedural samples", f"{table.table(rows)}\n\n{note}")


def loop(args, seconds: float) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from core import dist
    from model import GPT, GPTConfig

    spec, B, device = P.Spec("sort", 32, vocab_size=100), 64, dist.init("cpu").device
    T = P.batch(spec, 0, "train", 0, 1)[0].shape[1]
    model = GPT(GPTConfig(block_size=T, vocab_size=spec.pad + 1, n_layer=4, n_head=4, n_embd=256, dropout=0.1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    dtype, precision = dist.precision("auto", device)
    spent = {"data": 0.0, "all": 0.0}

    def our_step(step: int) -> None:
        start = time.perf_counter()
        x, y = P.batch(spec, 0, "train", step * B, B)
        n_valid = int((y >= 0).sum())
        x, y = torch.from_numpy(x), torch.from_numpy(y)
        spent["data"] += time.perf_counter() - start
        with dist.autocast(device, dtype):
            loss = model(x, y) / n_valid
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent["all"] += time.perf_counter() - start

    other = GPT2LMHeadModel(GPT2Config(vocab_size=spec.pad + 1, n_positions=T + 1, n_embd=256, n_layer=4, n_head=4))
    theirs = torch.optim.AdamW(other.parameters(), lr=5e-4)
    rng = random.Random(0)

    def plain_step(step: int) -> None:
        samples = [plain_sample(spec, rng) for _ in range(B)]
        x, y, mask = (torch.stack([s[name] for s in samples]) for name in ("x", "y", "mask"))
        logits = other(x).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.masked_fill(mask == 0, -100).flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        theirs.step()
        theirs.zero_grad(set_to_none=True)
        loss.item()

    times = {our_step: [], plain_step: []}
    for step in range(3):
        our_step(step), plain_step(step)
    spent.update(data=0.0, all=0.0)
    end, step = time.perf_counter() + seconds, 3
    while time.perf_counter() < end or step < 8:
        for side in times:
            start = time.perf_counter()
            for i in range(4):
                side(4 * step + i)
            times[side].append((time.perf_counter() - start) / 4)
        step += 1
    found = {"plain": [1 / t for t in times[plain_step]], "ours": [1 / t for t in times[our_step]]}
    share = f"Drawing the data takes {spent['data'] / spent['all']:.2%} of our steps ({precision})."
    table.report(args, "Procedural loop, 4_4_256, length 32, batch 64", found, "plain", unit="steps/s", goal=4, note=share)


if __name__ == "__main__":
    args = table.arguments(__doc__, what=["data", "loop"], seconds=(0.0, "a task (data: 3) or in all (loop: 40)"))
    if "data" in args.what:
        data(args, args.seconds or (0.3 if args.quick else 3))
    if "loop" in args.what:
        loop(args, args.seconds or (8 if args.quick else 40))

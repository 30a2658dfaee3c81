"""Weights from one model to another: by the parts of a transformer, not by file."""

GROUPS = ("embed", "attn", "mlp", "norm", "head")
OUTSIDE = ("embed", "head")  # of the blocks: what stands for tokens, or labels
OTHER_NAMES = {"ffn": "mlp", "ln": "norm", "embedding": "embed", "embeddings": "embed", "attention": "attn"}
BLOCK = ("norm_variant_attn", "use_pre_ln", "use_post_ln", "use_peri_ln", "use_parallel_mlp")
# config fields that change what the weights of a part compute, though not their shapes
UNTOLD = {"attn": ("position", "rope_base", "rope_scale", "attention", "attention_variant", "softmax_variant_attn",
                   "attn_logit_softcapping", "window_size", *BLOCK),
          "mlp": ("activation", "mlp_variant", *BLOCK),
          "norm": ("norm_variant_attn", "norm_variant_output")}  # fmt: skip
WORDS = {"absolute": "learned", "rope": "rotary", "plain": "exact"}  # an encoder's, for what a GPT computes, too
# kinds of positions to which rope_base and rope_scale mean nothing
UNTURNED = ("learned", "alibi", "none", "relative_key", "relative_key_query")


def group_of(name: str) -> str:
    """Which part of a transformer a weight belongs to, by its name."""
    parts = name.split(".")
    if any(p.startswith(("ln_", "norm", "q_norm", "k_norm")) for p in parts):
        return "norm"
    for group in ("attn", "mlp"):
        if group in parts:
            return group
    if any(p.startswith(("wte", "wpe", "pos_", "wtt", "embed")) for p in parts):
        return "embed"
    return "head"


def meaning(c: dict, gated: bool) -> dict:
    """A config in the terms that GPT and encoder share, without what does nothing in it."""
    c = {"attention": "exact", **c, "activation": c.get("activation_variant", c.get("activation"))}
    for name in {"position", "attention"} & set(c):  # kinds of positions, in any order
        c[name] = "+".join(sorted(WORDS.get(kind, kind) for kind in c[name].split("+")))
    off = ["activation"] * (gated or c["activation"] is None)
    if "position" in c and set(c["position"].split("+")) <= set(UNTURNED):
        off += ["rope_base", "rope_scale"]
    if c.get("window_size") and c["window_size"] >= c.get("block_size", float("inf")):
        c["window_size"] = None
    return {name: value for name, value in c.items() if name not in off}


def wanted(parts: list[str]) -> dict[str, list[range | None]]:
    """The groups that are asked for, and of each which layers; None: all there is. attn:0 attn:4-5 are three layers."""
    found = {}
    for part in parts:
        name, _, layers = part.partition(":")
        name = OTHER_NAMES.get(name, name)
        if name not in (*GROUPS, "all"):
            raise ValueError(f"--transfer takes {', '.join(GROUPS)} or all, got {part!r}")
        low, _, high = layers.partition("-")
        if layers and not (low.isdecimal() and (high or low).isdecimal() and int(low) <= int(high or low)):
            raise ValueError(f"--transfer {part}: layers are written 0-3 or 2")
        if layers and name in OUTSIDE:
            raise ValueError(f"--transfer {part}: {name} has no layers, only attn, mlp, norm and all have")
        for group in GROUPS if name == "all" else [name]:
            if not (layers and group in OUTSIDE):
                found.setdefault(group, []).append(range(int(low), int(high or low) + 1) if layers else None)
    return found


def into(model, weights: dict, parts: list[str], source: str, theirs: dict, whole: bool = False,
         fresh: bool = True) -> list[str]:  # fmt: skip
    """Copies the named parts (attn, mlp:0-3, ... or all); returns lines of what was taken, and notes.

    A longer table of positions is cropped. Where the model is fresh, its embeddings under blocks that were taken get
    the scale of the source's; where it is not, what is not taken is kept, and the lines say so.
    `theirs` is the source's config. It tells what no weight does: the number of heads, which matrices of one shape can
    be cut into, and what the source's blocks compute otherwise than ours.
    `whole`: nothing may be missing in it, or left over.
    """
    asked_for = wanted(parts)

    def asked(name: str) -> bool:
        _, block, rest = name.partition(".h.")  # what stands outside of the blocks is in no layer
        layer = int(rest.split(".")[0]) if block else None
        return any(which is None or layer in which for which in asked_for.get(group_of(name), []))

    ours = next((vars(m.config) for m in model.modules() if hasattr(m, "config")), {})
    gated = any(hasattr(m, "gate") for m in model.modules())  # which brings an activation
    a, b = meaning(theirs, gated), meaning(ours, gated)
    differ = {n for n in b if a.get(n, b[n]) != b[n]}
    if "attn" in asked_for and "n_head" in differ:
        raise ValueError(f"{source} has {theirs['n_head']} heads, the model here {ours['n_head']}: make them equal, or"
                         " leave attn out of --transfer")  # fmt: skip
    table, seen, tied = {}, set(), False
    for name, target in model.state_dict().items():
        if target.data_ptr() in seen:  # a head tied to the embedding goes with it
            tied = True
            continue
        seen.add(target.data_ptr())
        group, take = group_of(name), name in weights and asked(name)
        if take and name.endswith("wpe.weight"):
            weights[name] = weights[name][: len(target)]
        if take and weights[name].shape != target.shape:
            raise ValueError(f"{source}: {name} is {tuple(weights[name].shape)} there and {tuple(target.shape)} here;"
                             f" leave {group!r} out of --transfer, or make the shapes equal")  # fmt: skip
        if take:
            target.copy_(weights[name])
        key = (group, "taken" if take else "initialised" if fresh else "kept")
        table[key] = table.get(key, 0) + target.numel()
    wte, came = weights.get("transformer.wte.weight"), {group for group, done in table if done == "taken"}
    if fresh and wte is not None and "embed" not in came and {"attn", "mlp"} & came:
        # blocks were trained with embeddings of some scale; what they add would drown much smaller ones
        for name, target in model.state_dict().items():
            if "wte" in name:
                target.mul_(wte.std() / target.std())
    lacks = [n for n in model.state_dict() if n not in weights] if whole else []
    extra = [n for n in weights if n not in model.state_dict() and (whole or asked(n))]
    both = " ".join(g for g in GROUPS if any(group_of(n) == g for n in model.state_dict() if n in weights))
    if whole and (lacks or extra):
        what = f"lacks {lacks[0]}" if lacks else f"holds {extra[0]}, for which this model has no place"
        raise ValueError(f"{source} {what} ({len(lacks + extra)} such names): give its own model options, or --transfer"
                         f" {both or 'with the parts to take'}")  # fmt: skip
    if not any(done == "taken" for _, done in table):
        if tied and "head" in asked_for:
            raise ValueError(f"{source}: --transfer head takes nothing, as the head here is the embedding (weight"
                             " tying): --transfer embed")  # fmt: skip
        raise ValueError(f"{source}: none of --transfer {' '.join(parts)} is in it under our names"
                         f"{'; both have ' * bool(both)}{both}")  # fmt: skip
    lines = [f"  {group:<6}{done:<12}{count:>13,} parameters" for (group, done), count in sorted(table.items())]
    if left := [n for n in extra if group_of(n) in {"attn", "mlp", "norm"} & came]:
        lines.append(f"note: {left[0]} of {source} has no place here ({len(left)} such names)")
    untold = dict.fromkeys(n for part in UNTOLD if part in came for n in UNTOLD[part] if n in differ)
    return lines + [f"note: {n} is {theirs.get(n, a[n])!r} in {source} and {ours.get(n, b[n])!r} here: the parts"
                    " compute something else" for n in untold]  # fmt: skip

"""What a model is put together from: one file an axis."""

import functools

import torch


def once(backward):
    """Decorates a hand-written backward. It computes with saved numbers, so a second derivative through it would lack a
    part, silently: that is refused."""

    @functools.wraps(backward)
    def checked(ctx, *grads):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("create_graph=True: this backward has no derivative of its own; the same in torch's own"
                               " functions has one, as F.cross_entropy of model(x) without dropout")  # fmt: skip
        return backward(ctx, *grads)

    return checked

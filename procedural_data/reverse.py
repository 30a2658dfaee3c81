"""Back to front: 3 1 2 | 2 1 3"""

import numpy as np

from procedural_data import Spec, values

draw = values


def answer(question: np.ndarray, spec: Spec) -> np.ndarray:
    """[3 1 2] -> 2 1 3"""
    return question[:, ::-1]


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    return answer == list(reversed(question))

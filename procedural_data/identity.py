"""Copy: 3 1 2 | 3 1 2"""

import numpy as np

from procedural_data import Spec, values

draw = values


def answer(question: np.ndarray, spec: Spec) -> np.ndarray:
    """[3 1 2] -> 3 1 2"""
    return question


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    return answer == question

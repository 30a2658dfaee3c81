"""In ascending order: 3 1 2 2 | 1 2 2 3"""

import numpy as np

from procedural_data import Spec, values

draw = values


def answer(question: np.ndarray, spec: Spec) -> np.ndarray:
    """[3 1 2 2] -> 1 2 2 3"""
    return np.sort(question, axis=1)


def check(question: list[int], answer: list[int], spec: Spec) -> bool:
    return answer == sorted(question)

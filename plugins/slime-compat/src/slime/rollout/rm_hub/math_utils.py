"""Mathematical answers, by the reward `math`."""

from slime_compat.elsewhere import attributes_of
from slime_compat.grading import (
    extract_answer,
    grade_answer_verl,
)
from slime_compat.grading import (
    extract_answer as extract_boxed_answer,
)
from slime_compat.grading import (
    grade_answer as grade_answer_mathd,
)
from slime_compat.grading import (
    grade_answer as grade_answer_sympy,
)

__all__ = ["extract_answer", "extract_boxed_answer", "grade_answer_mathd", "grade_answer_sympy", "grade_answer_verl"]

__getattr__ = attributes_of(__name__)

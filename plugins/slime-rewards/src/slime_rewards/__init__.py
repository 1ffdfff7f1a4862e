"""Rewards for slime, and data of procedural tasks.

plugin.py         what this distribution gives to slime
arguments.py      the options of the rewards
checks.py         what is seen of a run before it starts
exact_match.py    is the response the label?
final_answer.py   does the response end in the right number?
math.py           is the answer the label? `math`, `deepscaler`, `math_verify`
answers.py        finds the answer of a response
equality.py       does an answer say what the label says?
notation.py       one way to write mathematics
structure.py      takes lists, sets, intervals, matrices and equations apart
units.py          takes units, currencies and percent signs off
numerals.py       reads a number that is written out
dapo.py           DAPO's rule for mathematics
gpqa.py           is the chosen letter the right one?
choice.py         finds the letter that a response chooses
f1.py             how many words do response and label share?
gym.py            answers to procedural tasks, graded by the task's scorer
remote.py         a service scores the response
random_reward.py  chance, as a control
numbers.py        finds the numbers in a text
labels.py         the label of a sample, as text
pool.py           worker processes that grade answers
worker.py         what such a process does
math_worker.py    what the mathematics rewards have done in such a process
algebra.py        are two expressions the same, whatever their letters stand for?
values.py         what number an expression is
gym_worker.py     scorers of procedural tasks, in such a process
tasks_command.py  the command `slime tasks`
tasks.py          questions of procedural tasks as rows
"""

__version__ = "0.1.0"

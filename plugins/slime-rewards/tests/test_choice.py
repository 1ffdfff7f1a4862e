"""Which letter a response chooses: ways to state one, in several languages, and ways to name two or none."""

from __future__ import annotations

import time

import pytest

from slime_rewards.choice import _plain, chosen_letter
from slime_rewards.gpqa import LETTERS

STATED = {
    "after a noun": """The answer is {L}.|the answer is ({L}).|Answer: {L}|Answer:{L}|**Answer: {L}**|**Answer:** {L}|Final answer: {L}.
        Final Answer: **({L})**|Therefore, the correct answer is {L}.|The correct option is {L}: 12 m.|Correct answer: {L}|ANSWER: {L}
        The best choice is {L}.|My answer is {L}.|So the answer must be {L}.|The answer should be {L}, since x=3.|Answer = {L}
        The answer is {L} because energy is conserved.|The answer is option {L}.|The answer is choice ({L}).|Answer - {L}
        The answer is clearly {L}.|The answer is most likely {L}.|The correct answer is therefore {L}.|the answer: {L}
        The answer to this question is {L}.|The right answer would be {L}|my final answer is: {L}|Answer: "{L}"|Answer: [{L}]""",
    "before a verdict": """Option {L} is correct.|Option {L} is the correct answer.|{L} is correct.|{L} is the correct answer.
        {L} is the right choice.|Out of all choices, {L} is the best answer.|选项{L}正确。|{L}选项是正确的。|{L}项正确""",
    "picked": "I choose {L}.|I would pick option {L}.|I'd go with {L}.|Choose {L}.|I select {L} as my answer.|故选{L}。|所以答案选{L}。|选 {L}",
    "in other languages": """答案是{L}。|答案：{L}|答案为 {L}|正确答案是 {L}。|最终答案：**{L}**|因此，正确选项是（{L}）。|答えは{L}です。
        正解は{L}。|정답은 {L}입니다.|정답: {L}|Die Antwort ist {L}.|Antwort: {L}|La réponse est {L}.|La bonne réponse est {L}.
        Réponse : {L}|La respuesta correcta es {L}.|Respuesta: {L}|A resposta é {L}.|A resposta correta é a {L}.|La risposta è {L}.
        Ответ: {L}""",
    "in a box": r"""$\boxed{{L}}$|\boxed{\text{{L}}}|\boxed{\mathrm{({L})}}|\boxed{{L}: 12}|\boxed{\text{Option {L}}}|\boxed{{L})\ 12}
        The final answer is $\boxed{{L}}$. I hope it is correct.|\boxed{{L}}. In short, {W} fails.""",
    "alone": "{L}|({L})|{L}.|{L})|{L}) 12 m|{L}. 12 m|({L}) 12 m|{L}: 12 m|**{L}**|Hence {L}.|I think it is {L}.|Thus, option {L}.|So, {L} it is.",
    "against others": """The answer is not {W}. It is {L}.|The answer isn't {W}; it's {L}.|{W} is wrong, so the answer is {L}.
        Not {W} but {L}.|At first I thought the answer is {W}, but the answer is {L}.|The answer is {L}, not {W}.
        The answer is {L}. {W} is a distractor.|Option {W} is incorrect. Option {L} is correct.|The answer is {L} rather than {W}.
        {W} is incorrect because of friction. {L} is correct.|<think>The answer is {W}.</think>{L}|Eliminating {W}, the answer is {L}.
        Answer: {L} ({W} ignores spin)|<think>maybe {W} or {L}</think>The answer is {L}.""",
}
SMALL = "answer: {l}|The answer is {l}.|Answer: ({l})|({l})|{l}|{l}.|{l})|\\boxed{{l}}|final answer: {l}|答案是{l}。"
NO_CHOICE = r"""{L} or {W}|Answer: {L}, {W}|Answer: {L}/{W}|The answer is {L} or {W}.|The answer is either {L} or {W}.|{L}, {W}, E
    Both {L} and {W} are correct.|The answer is {L} and {W}.|\boxed{{L}, {W}}|\boxed{{L}\text{ or }{W}}|Answer: {L}; {W}|答案是{L}或{W}。
    答案：{L}、{W}|I choose {L} or {W}|({L}) or ({W})|The answer is {L}. The answer is {W}.|Option {L} or option {W}|Answer: {L} (or {W})
    Answer: {L} & {W}|{L}{W}|Answer: {L}{W}|Neither {L} nor {W}.|It is not {L}.|{L} is wrong.|The options are {L}, {W}, E and F.|Answer:
    \boxed{}|Maybe {L}, maybe {W}.|{L} and {W} both fit."""
PAIRS = [(letter, other) for letter in "ABCD" for other in "ABCD" if letter != other]


def forms(text: str) -> list[str]:
    return [form.strip() for line in text.splitlines() for form in line.split("|")]


@pytest.mark.parametrize("kind", STATED)
def test_the_stated_letter_is_found(kind: str) -> None:
    for form in forms(STATED[kind]):
        for letter, other in PAIRS:
            response = form.replace("{L}", letter).replace("{W}", other)
            assert chosen_letter(response, LETTERS) == letter, response


def test_a_small_letter_is_found_where_it_is_no_word() -> None:
    for form in forms(SMALL):
        for letter in "ABCD":
            assert chosen_letter(form.replace("{l}", letter.lower()), LETTERS) == letter, form


def test_two_letters_side_by_side_and_letters_that_are_ruled_out_are_no_choice() -> None:
    for form in forms(NO_CHOICE):
        for letter, other in PAIRS:
            response = form.replace("{L}", letter).replace("{W}", other)
            assert chosen_letter(response, LETTERS) not in (letter, other), response


def test_nested_fonts_take_time_by_their_length() -> None:
    depth = 100_000
    began = time.process_time()
    assert chosen_letter("Answer: " + r"\text{" * depth + "B" + "}" * depth, LETTERS) == "B"
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (r"\text{a \mathbf {b}} c", "a b c"),
        (r"\text{a {b} \bm{c}} \bm{d}", r"\text{a {b} c} d"),  # other brackets within
        (r"\text{a \bm{b}", r"\text{a b"),
        (r"a} \bm{b}}", "a} b}"),
    ],
)
def test_fonts_are_taken_off_where_they_are_closed(text: str, plain: str) -> None:
    assert _plain(text) == plain

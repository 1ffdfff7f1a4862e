r"""Which answers are the label for `math`: a table of ways to write the same, and of answers that come near. Each row is a label
and then answers, with " | " between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction

import pytest

from slime_rewards.math_worker import compare

RIGHT = {
    "whole numbers": r"""
        42 | 42.0 | +42 | 42. | $42$ | \(42\) | \[42\] | \text{42} | 042 | \mathbf{42} | {42} | (42) | ４２ | \textbf{42} | \boldsymbol{42}
        -8 | −8 | - 8 | –8 | -8.0 | x=-8
        720 | 720.00 | 7.2e2 | 72\times 10^1 | x = 720. | n=720 | 6\times 120 = 720 | 6! = 720 | m+n=720 | f(3)=720 | S_5 = 720
        1,234,567 | 1234567 | 1 234 567 | 1\,234\,567 | 1{,}234{,}567 | 1.234567\times10^6 | 1,\!234,\!567 | 1'234'567
        5 million | 5000000 | 5,000,000 | 5\text{ million}
        0 | 0.0 | 0.
    """,
    "fractions": r"""
        \frac{3}{4} | 3/4 | 0.75 | .75 | \frac34 | \dfrac{3}{4} | \tfrac34 | 0.750 | 75\% | ¾ | \frac{-3}{-4} | 3 / 4 | (3/4) | \frac 34
        \frac{3}{4} | \frac{3}{4}\text{ cups} | \frac{ 3 }{ 4 } | x=\frac{3}{4} | \frac{6}{8}
        -\frac{1}{5} | -0.2 | \frac{-1}{5} | -1/5 | −1/5 | -.2 | \frac{1}{-5} | -\frac15 | -20\%
        2.25 | 2 1/4 | 9/4 | 2\frac{1}{4} | \frac{9}{4} | 2 \frac14 | 2¼ | 2.250 | 2\ 1/4
        4\frac{2}{3} | \frac{14}{3} | 14/3 | 4 2/3 | 4.\overline{6} | 4.666666666667
        0.\overline{27} | 3/11 | \frac{3}{11} | 0.(27) | 0.\bar{27}
        0.1\overline{6} | 1/6
    """,
    "roots, powers and constants": r"""
        2\sqrt{2} | \sqrt{8} | 2√2 | 2\sqrt2 | \sqrt8 | 2*sqrt(2) | 2 \cdot \sqrt{2} | 4/\sqrt{2} | 2^{3/2} | 2^{1.5} | 2\times\sqrt{2}
        \frac{\sqrt{5}}{5} | \frac{1}{\sqrt{5}} | √5/5 | \sqrt{5}/5 | 5^{-1/2} | \sqrt{\frac15}
        \sqrt[3]{2} | 2^{1/3} | 2^{\frac{1}{3}}
        10\pi | 10π | 10 \pi | 10pi | 10\cdot\pi | \pi \cdot 10 | 10\pi. | 31.4159265358979
        \frac{\pi}{4} | π/4 | \pi/4 | \frac14\pi
        1.7\times 10^{-19} | 1.7e-19 | 1.7 \cdot 10^{-19} | 1.7 × 10^{-19} | 1.7×10⁻¹⁹ | 17\times10^{-20} | 1.7 \times 10^{-19}\text{ C}
        \ln 2 | ln(2) | \ln(2) | \ln{2}
        \log_3 5 | \frac{\ln 5}{\ln 3} | \log_{3}{5}
        2^{10} | 1024 | 2^10
        \binom{6}{2} | 15 | \dbinom{6}{2}
        \tan 45^\circ | 1 | \tan(45^\circ) | \tan\frac{\pi}{4}
        \infty | ∞ | +\infty | \text{infinity} | infinity
    """,
    "expressions": r"""
        x^2-6x+9 | (x-3)^2 | 9-6x+x^2 | (3-x)^2 | x^{2}-6x+9 | x²-6x+9 | (x-3)(x-3)
        \frac{x+1}{x-1} | (x+1)/(x-1) | 1+\frac{2}{x-1}
        e^{2x} | \mathrm{e}^{2x} | (e^x)^2 | \exp(2x)
        \sin^2 x | 1-\cos^2 x | (\sin x)^2 | \sin^2(x) | \frac{1-\cos 2x}{2}
        \frac{n(n+1)}{2} | n(n+1)/2 | \frac{n^2+n}{2} | \frac{1}{2}n(n+1)
        p+q | q+p | p + q
        x_1+x_2 | x_2+x_1 | x_{1}+x_{2} | x₁+x₂
        3-4i | -4i+3 | 3 - 4 i
        |x-1| | \left|x-1\right| | \lvert x-1 \rvert
        \frac{1}{x} + C | C+\frac{1}{x} | x^{-1}+C
        n! | n!
        \theta | θ | \theta.
    """,
    "lists and sets": r"""
        2,2,3 | 2, 3, 2 | x=2, x=2, x=3
        2,3 | 2,3,2
        \{2,2,3\} | 2,3 | \{3,2\}
        \{1\}\cup\{1\} | 1
        \{2,5,9\} | 2,5,9 | \{9,5,2\} | 2, 5, 9 | 2, 5 and 9 | 2, 5, \text{ and } 9 | 9,2,5 | \left\{2,5,9\right\} | \lbrace 2,5,9\rbrace
        \{2,5,9\} | x=2,5,9 | x \in \{2,5,9\} | x=2, x=5, x=9 | \{2\}\cup\{5,9\} | 2\text{ or }5\text{ or }9 | 2; 5; 9 | 2, 5, 5, 9
        3, -3 | \pm 3 | x=\pm 3 | -3, 3 | x=3 \text{ or } x=-3 | 3 and -3 | ±3
        1 \pm \sqrt{2} | 1+\sqrt{2}, 1-\sqrt{2} | 1-\sqrt2, 1+\sqrt2 | 1 ± √2 | x = 1\pm\sqrt{2}
        \emptyset | \varnothing | \{\} | ∅ | \{ \}
    """,
    "tuples, intervals and matrices": r"""
        (4,7) | (4, 7) | \left(4,7\right) | (4.0,7) | (x,y)=(4,7) | \langle 4,7\rangle | (4,\; 7) | \left( 4, 7 \right).
        (-\infty, 6) | (-∞,6) | x<6 | \{x \mid x<6\} | \{x : x < 6\} | 6 > x | \left(-\infty,6\right) | x \in (-\infty,6)
        [-3,8] | x\in[-3,8] | -3\le x\le 8 | \left[-3,8\right] | -3 ≤ x ≤ 8 | 8 \geq x \geq -3
        (-\infty,-1)\cup(1,\infty) | (1,\infty)\cup(-\infty,-1) | x<-1 \text{ or } x>1 | (-∞,-1)∪(1,∞) | x>1 or x<-1
        \begin{pmatrix}5&2\\0&4\end{pmatrix} | \begin{bmatrix}5&2\\0&4\end{bmatrix} | \begin{pmatrix} 5 & 2 \\ 0 & 4 \end{pmatrix}
        \begin{pmatrix}5&2\\0&4\end{pmatrix} | \left[\begin{array}{cc}5&2\\0&4\end{array}\right] | \begin{pmatrix}5&2\\0&\frac{12}{3}\end{pmatrix}
    """,
    "equations": r"""
        x=6 | 6 | x = 6 | 6.0 | x=6.0 | 6 = x | \text{The answer is } 6 | \text{The final answer is: }6
        6 | x=6 | x \approx 6 | 2 \cdot 3 = 6
        2\pi | 2\pi \approx 6.28 | 2\pi ≈ 6.28 | A = 2\pi \simeq 6.28 \approx 6 | \(2\pi\doteq6.28\)
        \frac{2}{3} | \frac{2}{3} \approx 0.667 | x = \frac23 ≃ 0.67
        \sqrt{2} \approx 1.414 | \sqrt{2} | \sqrt{2} \approx 1.41
        \sqrt{2},\sqrt{3} | \sqrt2 \approx 1.41, \sqrt3 \approx 1.73
        (\sqrt{2},1) | (\sqrt2 \approx 1.41, 1)
        2.5 | x \approx 2.5 | f(2) \approx 2.5 | x_1 ≈ 2.5 | \text{Area} \cong 2.5 | \theta \approx 2.5 | \approx 2.5
        y=4x-3 | y=-3+4x | 4x-3 | 4x-y-3=0 | y = 4x - 3. | y-4x=-3
        3x+5y-7=0 | y=-\frac{3}{5}x+\frac{7}{5} | 6x+10y=14 | 3x+5y=7 | 3x + 5y - 7 = 0
        x^2+y^2=16 | y^2+x^2=16 | x^2+y^2-16=0
        \frac{dy}{dx}=3x | 3x
    """,
    "units": r"""
        18 | 18\text{ apples} | 18 apples | \$18 | 18\,\mathrm{m} | 18^\circ | 18 \text{ cm}^2 | 18\ \text{units} | 18 dollars | 18\% | 18 km/h
        30\text{ km} | 30 | 30\text{ km} | 30 km | 30 kilometers | 30\,\mathrm{km} | 30\ \mathrm{km}
        9\text{ m/s}^2 | 9 | 9\,\mathrm{m/s^2} | 9\text{ m/s}^{2}
        60^\circ | 60 | 60^{\circ} | 60° | 60\text{ degrees} | 60 degrees
        \$12.50 | 12.5 | \$12.50 | 12.50\text{ dollars} | 12.50 dollars | $12.50
        40\% | 40\% | 40% | 0.4 | 2/5 | 40 percent | 40\text{ percent} | 40 | 40\text{\%}
        90 | 90^\circ | \angle ABC = 90^\circ
        7:4 | 7:4 | 7 : 4
        1011_2 | 1011_2 | 1011_{2} | 1011
    """,
    "words and letters": r"""
        \text{north} | north | North | \text{North} | \mathrm{north} | \textbf{north} | \text{north}.
        \text{No} | no | No | \text{no} | NO
        \text{(D)} | D | (D) | \text{D} | \textbf{D} | \textbf{(D)} | (D)\ 12 | D. 12 | \mathrm{(D)} | D) | \text{Option D} | Answer: D
        \text{no solution} | no solution | No solution | \text{No solution}.
        AB | AB | \text{AB}
        ab | ba | a \cdot b | a*b
        三角形 | \text{三角形} | 三角形。
        \mathbb{R} | ℝ | \mathbb R
    """,
}

WRONG = {
    "whole numbers": r"""
        42 | 24 | 43 | 42.1 | -42 | 42\sqrt{2} | 42x | \{42, 43\} | not 42 | 0.42 | 4200 | 42=43 | 4 2 | 42/43 | 42:1 | (42,43) | 42 \cup 43
        1000000000000 | 1000000000001 | 10000000000000
        0 | \{\} | 1 | \emptyset | 0,1 | x
        -8 | 8 | -8, 8 | -9
        1,234 | 1,235 | 1 | 234 | 1.234
    """,
    "not worked out": r"""
        7 | 3+4 | \sqrt{49} | 14/2 | 2^3-1 | \frac{14}{2} | 10-3 | 7\cdot 1
        720 | 6! | 720! | 6\times120 | 700+20
        1024 | 2^{10}
    """,
    "several values": r"""
        3 | 3 or 4 | 3,4 | 3 \text{ or } 4 | \{3,4\} | 1,2,3,4 | 3 and 4 | \pm 3 | 3 (or 4) | 3?4 | 3|4 | 3/4 | 3; 4 | 3 \lor 4 | 3 & 4
        3 | 3\quad 4 | 3\ 4 | either 3 or 4 | 3、4 | 3或4 | between 3 and 4 | 3-4 | 3..4 | [3,4] | 3 \sim 4
        \pm 3 | 3 | -3 | 9
        5, -5 | 5 | -5 | \pm 4 | 5, 4 | 0
        \{2,5,9\} | \{2,5\} | 2,5,9,4 | 2,5,4 | 16 | (2,5,9,4)
        4,5 | 45 | 4 5 | 4.5 | 5
        \frac12 | \frac12, \frac13 | \frac12 or \frac13
        \text{(D)} | B, D | B or D | A, B, C, D | DB
    """,
    "close values": r"""
        0.00023456 | 0.00023457 | 0.000234 | 2.3456
        \frac{1}{3^{80}} | \frac{1}{3^{79}} | 3^{80} | 0 | \frac{1}{3^{81}}
        1.7\times 10^{-19} | 9.3\times10^{-31} | 0 | 1.7\times10^{-18} | 1.7
        \frac{1}{1999!} | \frac{1}{2001!} | 0
        10^{-30} | 0 | 10^{-31} | 2\times 10^{-30}
        \frac{3}{4} | \frac{4}{3} | 0.76 | 3/5 | 0.7500001 | \frac{3}{4}\pi | -3/4 | 3 4 | 34 | 3:4
        2\sqrt{2} | 2.828 | \sqrt{2} | 2\sqrt{3} | 8 | 2.82842712 | -2\sqrt{2}
        2.718 | e | 2.7 | 2.7183
        \pi | 3.14 | 3.14159 | 22/7 | 3
        \frac{2}{3} | 0.667 | 0.67 | 0.7
        0.667 | 2/3 | 0.67 | 0.6667
        \sqrt{2} | 1.414 | -\sqrt{2} | 2 | \sqrt{3}
        3-\frac{1}{e} | 3+\frac{1}{e} | 3-e
        123456789.5 | 123456789.6
        \infty | -\infty | 0 | \text{undefined}
        2^{10} | 2^{11} | 1023 | 20
    """,
    "letters": r"""
        p+q | P+Q | p-q | p+Q | p+r
        x | y | X | x_1
        AB | BA' | CD
        e^{2x} | e^{x} | e^{2y} | 2e^x
        \sin x | \cos x | \sin y | \sin 2x
        x^2-6x+9 | (x+3)^2 | x^2+9 | (x-3)^3
        \frac{n(n+1)}{2} | n(n+1) | \frac{n(n-1)}{2} | \frac{m(m+1)}{2}
        n! | n | m! | (n+1)!
        D | B | d | \text{B} | C | DD
    """,
    "tuples, intervals and matrices": r"""
        (4,7) | (7,4) | [4,7] | (4,7,8) | (4,8) | 4
        (2,3) | [2,3] | (2,3] | [2,3) | (3,2)
        [-3,8] | (-3,8) | [-3,8) | [-3,9]
        x>6 | x<6 | x\ge 6 | x>7 | y>6 | (-\infty,6)
        \begin{pmatrix}5&2\\0&4\end{pmatrix} | \begin{pmatrix}5&2\\4&0\end{pmatrix} | \begin{pmatrix}5&2&0&4\end{pmatrix} | 20
        \begin{pmatrix}5&2\\0&4\end{pmatrix} | \begin{vmatrix}5&2\\0&4\end{vmatrix} | \begin{pmatrix}5&0\\2&4\end{pmatrix}
        \emptyset | 0 | \{0\} | \{1\} | x
    """,
    "equations": r"""
        x=6 | x=7 | y=6 | 7 | x>6 | x=-6
        y=4x-3 | y=4x+3 | y=3x-4 | 4x | y=4x-3z
        3x+5y-7=0 | 4x+5y+14=0 | y=\frac{3}{5}x+\frac75 | 0
        6 | x+1=6x | 2x=6
    """,
    "units": r"""
        30\text{ km} | 30\text{ m} | 31\text{ km} | 30 m | 30\text{ miles} | 30\text{ km}^2
        \$21 | 21\text{ cents} | \$22 | €21
        40\% | 4\% | 0.04 | 44\% | 400 | 41
        7:4 | 4:7 | 3.5:2 | 7:5
        11:00 | 1:00 | 11 | 1100
        1011_2 | 1011_3 | 1101_2 | 11
    """,
    "approximations and repeated values": r"""
        3.14 | \pi \approx 3.14 | \pi ≈ 3.14 | \pi \doteq 3.14
        7 | 6.98 \approx 7
        78.5 | A = \pi r^2 \approx 78.5
        \triangle ABC | \triangle ABC \cong \triangle DEF
        2,2,3 | 2,3 | 2,3,3 | \{2,3\} | 3
        5,5 | 5
    """,
    "words": r"""
        \text{north} | south | \text{South} | thorn | \text{thorn} | n
        \text{No} | yes | Yes
        \text{no solution} | 0 | \text{solution} | one solution
    """,
}


def pairs(table: str) -> Iterator[tuple[str, str]]:
    """The pairs (label, answer) of a table."""
    for row in filter(None, map(str.strip, table.splitlines())):
        label, *answers = row.split(" | ")
        yield from ((label, answer) for answer in answers)


@pytest.mark.parametrize("kind", RIGHT)
def test_what_says_the_same_counts(kind: str) -> None:
    assert [pair for pair in pairs(RIGHT[kind]) if not compare(*pair)] == []


@pytest.mark.parametrize("kind", WRONG)
def test_what_comes_near_does_not(kind: str) -> None:
    assert [pair for pair in pairs(WRONG[kind]) if compare(*pair)] == []


def spellings(value: Fraction) -> list[str]:
    """Ways to write a number that is no whole one and has few decimal places."""
    sign, size = ("-" if value < 0 else ""), abs(value)
    whole, rest = divmod(size, 1)
    decimal = f"{float(size):.6f}".rstrip("0")
    found = [
        *(f"{sign}{size.numerator}/{size.denominator}", rf"{sign}\frac{{{size.numerator}}}{{{size.denominator}}}"),
        *(
            f"{sign}{decimal}",
            f"{sign}{decimal}00",
            f"${sign}{decimal}$",
            f"{sign}{decimal}.",
            rf"\text{{{sign}{decimal}}}",
        ),
        *(
            f"x = {sign}{decimal}",
            rf"{sign}{decimal}\text{{ m}}",
            rf"{sign}{float(size * 100):.4f}\%",
            f"{sign}{float(size):.8e}",
        ),
    ]
    if whole:
        found += [
            rf"{sign}{whole}\frac{{{rest.numerator}}}{{{rest.denominator}}}",
            f"{sign}{whole} {rest.numerator}/{rest.denominator}",
        ]
    if not whole:
        found.append(f"{sign}{decimal.removeprefix('0')}")
    return found


def test_every_spelling_of_a_number_equals_every_other_and_none_of_another_number() -> None:
    chance = random.Random(5)
    for _ in range(8):
        value = Fraction(chance.randint(-90000, 90000), chance.choice((8, 16, 125)))
        if value.denominator == 1:
            continue
        others = (value + Fraction(1, 1000), -value, value / 10)
        for label in spellings(value):
            assert [answer for answer in spellings(value) if not compare(label, answer)] == [], label
            assert [answer for other in others for answer in spellings(other) if compare(label, answer)] == [], label

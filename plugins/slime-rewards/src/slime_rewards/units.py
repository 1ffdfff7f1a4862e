r"""Takes units, currencies and percent signs off an answer: `5\,\mathrm{km/h}`, `\$18`, `45^{\circ}`, `18 apples`. Called by
`equality` with texts in normal form.

Whether an answer names its unit is not what is graded, but one that names another unit than the label is wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from slime_rewards.notation import FONTS, without_fonts
from slime_rewards.numerals import read_numeral

_MEASURES = {
    "km": "kilometer kilometers kilometre kilometres kms",
    "m": "meter meters metre metres",
    "cm": "centimeter centimeters centimetre centimetres cms",
    "mm": "millimeter millimeters millimetre millimetres",
    "nm": "nanometer nanometers",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards",
    "mi": "mile miles",
    "kg": "kilogram kilograms kgs",
    "g": "gram grams gm gms",
    "mg": "milligram milligrams",
    "lb": "pound pounds lbs",
    "oz": "ounce ounces",
    "t": "ton tons tonne tonnes",
    "l": "liter liters litre litres L",
    "ml": "milliliter milliliters millilitre millilitres mL",
    "gal": "gallon gallons",
    "s": "second seconds sec secs",
    "ms": "millisecond milliseconds",
    "min": "minute minutes mins",
    "h": "hour hours hr hrs",
    "day": "days",
    "week": "weeks wk",
    "month": "months",
    "year": "years yr yrs",
    "km/h": "kmh kmph kph",
    "mph": "mi/h",
    "m/s": "",
    "degree": "degrees deg",
    "rad": "radian radians",
    "dollar": "dollars USD usd",
    "euro": "euros EUR",
    "cent": "cents",
    "yen": "",
    "N": "newton newtons",
    "J": "joule joules",
    "kJ": "kilojoule kilojoules",
    "W": "watt watts",
    "kW": "kilowatt kilowatts",
    "V": "volt volts",
    "A": "ampere amperes amp amps",
    "Hz": "hertz",
    "Pa": "pascal pascals",
    "K": "kelvin kelvins",
    "mol": "mole moles",
    "eV": "",
}
_NAMES = {name: unit for unit, names in _MEASURES.items() for name in (unit, *names.split())}
_CURRENCIES = {r"\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}
_NOT_UNITS = frozenset({"e", "i", "j", "d", "or", "and", "to", "mod", "if", "for", "pi", "not"})

_POWER = r"(?: ?\^ ?(?:\{ ?-?\d ?\}|-?\d))?"
_FONT_UNIT = re.compile(rf"(?<![_^{{\\])((?: |/|\\cdot |\\(?:{FONTS}) ?\{{[^{{}}]*[A-Za-zµμ][^{{}}]*\}}{_POWER})+)$")
_PLAIN_UNIT = re.compile(rf"(?<=[\d)}}]) ?({'|'.join(sorted(map(re.escape, _NAMES), key=len, reverse=True))}){_POWER}$")
_WORDS = re.compile(r"(?<=[\d)}]) ((?:[A-Za-z]{2,}|[A-Za-z]{2,}/[A-Za-z]+)(?: [A-Za-z]+)*)$")
_DEGREES = re.compile(r" ?\^\\circ ?([CF]?)$")
_PERCENT = re.compile(r" ?(?:\\?%|percent|per cent|pct)$")


@dataclass(frozen=True)
class Quantity:
    """An answer without its unit.

    Attributes:
        text: the rest, in normal form.
        unit: a measure in its short form, with its power, or None; things that are counted, such as apples, are no measure.
        is_percent: it ended in a percent sign.
    """

    text: str
    unit: str | None = None
    is_percent: bool = False

    def contradicts(self, other: Quantity) -> bool:
        """Whether the two name different measures."""
        return self.unit is not None and other.unit is not None and self.unit != other.unit


def read_quantity(text: str) -> Quantity:
    """Take unit, currency or percent sign off a text in normal form."""
    if read_numeral(text):
        return Quantity(text)
    for sign, unit in _CURRENCIES.items():
        if text.count(sign) == 1:
            return Quantity(read_quantity(text.replace(sign, "").strip()).text, unit)
    if found := _PERCENT.search(without_fonts(text)):
        return Quantity(without_fonts(text)[: found.start()].strip(), is_percent=True)
    if (found := _DEGREES.search(text)) and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        return Quantity(text[: found.start()].strip(), f"degree{found[1]}")
    if (found := _FONT_UNIT.search(text)) and found.start() and _is_unit(name := without_fonts(found[1]).strip()):
        return Quantity(text[: found.start()].strip(), _measure(name))
    plain = without_fonts(text)
    for pattern in (_PLAIN_UNIT, _WORDS):
        if (
            (found := pattern.search(plain))
            and _is_unit(found[0].strip())
            and not re.search(r"[a-zA-Z]", plain[: found.start()])
        ):
            return Quantity(plain[: found.start()].strip(), _measure(found[0].strip()))
    return Quantity(text)


def _is_unit(name: str) -> bool:
    return bool(name) and not name.startswith(("/", "\\")) and not _NOT_UNITS & set(name.lower().split())


def _measure(name: str) -> str | None:
    """Return a measure in its short form with its power: "square meters" and "m^{2}" are "m^2"; None for what is counted."""
    name = re.sub(r"[{} ]*(\^)[{} ]*(-?\d)[{} ]*", r"\1\2", name).replace("\\cdot", "").strip()
    base, _, power = name.partition("^")
    for word, exponent in (("square ", "2"), ("sq ", "2"), ("cubic ", "3"), ("cu ", "3")):
        if base.startswith(word):
            base, power = base.removeprefix(word), exponent
    for pattern, unit in ((r"(.+) per (.+)", r"\1/\2"), (r"(.+)s squared", r"\1^2")):
        base = re.sub(pattern, unit, base)
    parts = [_NAMES.get(part.strip(), _NAMES.get(part.strip().lower())) for part in base.split("/")]
    if any(part is None for part in parts):
        return _NAMES.get(base)
    joined = "/".join(part for part in parts if part)
    return _NAMES.get(joined, joined) + (f"^{power}" if power else "")

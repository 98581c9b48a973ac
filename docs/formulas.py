"""Formulas in Unicode letters, such as `x_t = √ᾱ_t·x_0 + √(1 - ᾱ_t)·ε`, found in a text and written for TeX."""

import re
import unicodedata
from collections.abc import Callable, Iterator

GREEK = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon", "η": r"\eta", "θ": r"\theta",
    "λ": r"\lambda", "μ": r"\mu", "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "τ": r"\tau", "φ": r"\varphi",
    "ω": r"\omega", "Δ": r"\Delta", "Σ": r"\Sigma", "Π": r"\prod", "∇": r"\nabla", "∞": r"\infty", "∅": r"\varnothing",
    "½": r"\tfrac12",
}  # fmt: skip
ACCENTS = {"\u0304": r"\bar", "\u0303": r"\tilde", "\u0302": r"\hat"}
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹ᵀ", "0123456789T", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
OPERATORS = {
    "=": "=", "+": "+", "-": "-", "±": r"\pm", "·": r"\cdot", "×": r"\times", "/": "/", "<": "<", ">": ">",
    "≤": r"\le", "≥": r"\ge", "≠": r"\ne", "→": r"\to", "←": r"\leftarrow", "~": r"\sim", "∝": r"\propto",
    "∈": r"\in", "…": r"\dots",
}  # fmt: skip
WITHIN = {"|": r"\mid", "‖": r"\,\|\,", ",": ",", ";": ";"}  # between parentheses alone
FUNCTIONS = ("log", "exp", "min", "max", "cos", "sin", "tan", "ln", "tr", "KL")
PAIRS = {"(": ")", "[": "]", "⌊": "⌋", "{": "}", "‖": "‖"}
SHOWN = {"⌊": (r"\lfloor ", r" \rfloor"), "‖": (r"\left\|", r"\right\|")}
MARK = re.compile(r"[√ᾱβ-ωΔΣΠ∇·∞²³ᵀ½₀-₉‖∅]|[\u0302-\u0304]|\b[A-Za-z]_|\^| ~ ")  # what makes a text a formula
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


# After which a factor may follow at a distance, and what it then begins with: log β, Σ_i x_i, E_t [ … ], 2 ln u.
TAKES = re.compile(r"(\\operatorname\{\w+\}|\\sum|\\prod|E_\{\w+\})(_\{[^}]*\})?\s*$")
ARGUMENT = re.compile(r" ([\dα-ωΑ-Ω(√]|\w(\W|_))")
NUMBER = re.compile(r"\d+(,\d{3})*(\.\d+)?(e-?\d+)?")


class NotOne(ValueError):  # noqa: N818 it is no error of the text
    """Here begins no formula, or none that is understood."""


def pieces(text: str) -> Iterator[tuple[str, str]]:
    """The text in pieces (formula in TeX, "") and ("", text)."""
    text = unicodedata.normalize("NFD", text).replace("=\u0338", "≠")
    at = done = 0
    while at < len(text):
        reader = Reader(text, at)
        formula = reader.formula() if at == 0 or not (text[at - 1].isalnum() or text[at - 1] in "_.'") else None
        if formula is None:
            at += 1
            continue
        if done < at:
            yield "", unicodedata.normalize("NFC", text[done:at])
        yield formula, ""
        at = done = reader.at
    if done < len(text):
        yield "", unicodedata.normalize("NFC", text[done:])


class Reader:
    """Reads one formula from a place in a text on; `at` is where it ends."""

    def __init__(self, text: str, at: int) -> None:
        self.text, self.at = text, at
        self.depth, self.norm = 0, False  # parentheses that are open, and whether ‖ closes

    def formula(self) -> str | None:
        """The longest one, None if what stands here is none, or is a word or a number alone."""
        start = self.at
        try:
            found = self.sum()
        except NotOne:
            return None
        ends = not (self.peek().isalnum() or self.peek() in ("_", "("))
        read = unicodedata.normalize("NFC", self.text[start : self.at])
        return found if ends and MARK.search(read) else None

    def sum(self) -> str:
        """Operands with operators between them; it ends before an operator that no operand follows."""
        out = self.operand()
        allowed = {**OPERATORS, **(WITHIN if self.depth else {})}
        while True:
            start = self.at
            self.space()
            sign = self.peek()
            if sign not in allowed or (sign == "‖" and self.norm):
                self.at = start
                return out
            self.at += 1
            self.space()
            if sign in ",…" and self.peek() in PAIRS.values():  # (d,)
                out += f" {allowed[sign]} "
                continue
            if (following := self.tried(self.operand)) is None or (sign == "…" and following.startswith("(")):
                self.at = start
                return out
            out += f" {allowed[sign]} {following}"

    def operand(self) -> str:
        """Factors that follow one another, such as 2π, log β and Σ_i x_i."""
        if self.peek() == "…":
            self.at += 1
            return r"\dots"
        sign = "-" if self.peek() == "-" else ""
        self.at += len(sign)
        out = sign + self.factor()
        while True:
            start = self.at
            self.space()
            if self.at > start:
                number = re.fullmatch(r"-?[\d.]+", out) and WORD.match(self.text, self.at)
                follows = TAKES.search(out) or number
            else:
                follows = self.peek() in (*GREEK, "√") or re.match(r"[A-Za-z](?![A-Za-z])", self.rest)
            if not self.peek() or not follows or (factor := self.tried(self.factor)) is None:
                self.at = start
                return out
            out += f" {factor}"

    def factor(self) -> str:
        """A letter, a number, a root, a norm or a group, with its marks."""
        letter = self.peek()
        if letter == "√":
            self.at += 1
            return rf"\sqrt{{{self.group(bare=True) if self.peek() == '(' else self.factor()}}}" + self.marks()
        if letter == "‖":
            return self.group() + self.marks()
        if found := re.match(r"\|([A-Za-z])_(\w)\|", self.rest):
            self.at += found.end()
            return rf"\left|{found[1]}_{{{found[2]}}}\right|"
        if letter in PAIRS and letter != "{":
            return self.group() + self.marks()
        if found := NUMBER.match(self.rest):
            self.at += found.end()
            digits, _, power = found[0].replace(",", "{,}").partition("e")
            scaled = "" if digits == "1" else rf"{digits} \cdot "
            return (rf"{scaled}10^{{{power}}}" if power else digits) + self.marks()
        if letter in GREEK:
            self.at += 1
            sums = letter == "Σ" and re.match(r"(_\{[^}]*\}|_[a-z])? [\w(]", self.rest)
            return self.accented(r"\sum" if sums else GREEK[letter]) + self.marks(apply=True)
        if found := WORD.match(self.rest):
            return self.word(found[0])
        raise NotOne

    def word(self, name: str) -> str:
        """A letter, a function, or a word where words may stand: in a group, before a group, in a product."""
        base, _, below = name.partition("_")
        after = self.rest[len(name) :]
        if base in FUNCTIONS:
            self.at += len(base)
            if self.peek() == " " and not ARGUMENT.match(self.rest):
                raise NotOne
            return rf"\operatorname{{{base}}}" + self.marks(apply=True)
        if len(base) == 1 and base.islower() and len(below) > 2 and not below.isdigit():  # a name of the code
            self.at += len(name)
            shown = name.replace("_", r"\_")
            return rf"\mathtt{{{shown}}}" + self.marks(apply=True)
        if len(base) == 1:
            self.at += 1
            shown = r"\mathcal{N}" if base == "N" and after.startswith("(") else base
            return self.accented(shown) + self.marks(apply=True)
        if re.fullmatch(r"[A-Za-z]\d", name):
            self.at += 2
            return f"{name[0]}_{name[1]}" + self.marks(apply=True)
        if re.fullmatch(r"[a-z]{2}_\w", name):
            self.at += len(name)
            return rf"\text{{{base}}}_{{{below}}}"
        called = after.startswith("(")
        within = self.depth or called
        if (within or re.match(r"·| = ", after) or self.text[self.at - 1] in "·/") and (within or "_" not in name):
            self.at += len(name)
            if len(name) == 2 and name.islower():
                return name
            shown = name.replace("_", r"\_")
            return rf"\text{{{shown}}}" + self.marks(apply=called)
        raise NotOne

    def accented(self, shown: str) -> str:
        while (accent := ACCENTS.get(self.peek())) is not None:
            self.at += 1
            shown = rf"{accent}{{{shown}}}"
        return shown

    def marks(self, apply: bool = False) -> str:
        """Subscripts, exponents, primes, and the arguments of a function."""
        out = ""
        while letter := self.peek():
            following = self.rest[1:2]
            if letter == "_" and following in GREEK:
                self.at += 2
                out += f"_{{{GREEK[following]}}}"
            elif letter == "_" and (found := re.match(r"_([A-Za-z0-9]+)", self.rest)):
                self.at += found.end()
                long = len(found[1]) > 2 and not found[1].isdigit()
                out += rf"_{{\text{{{found[1]}}}}}" if long else f"_{{{found[1]}}}"
            elif letter in "_^" and following in ("{", "("):
                self.at += 1
                out += f"{letter}{{{self.group(bare=True)}}}"
            elif letter == "^" and following not in ("", " "):
                self.at += 1
                out += f"^{{{self.factor()}}}"
            elif letter in RAISED:
                out += f"^{{{self.run(RAISED)}}}"
            elif letter in LOWERED:
                out += f"_{{{self.run(LOWERED)}}}"
            elif letter == "'" and not self.rest[1:2].isalnum():
                self.at += 1
                out += "'"
            elif letter in "([" and apply:
                out += self.group()
            else:
                break
        return out

    def run(self, table: dict[str, str]) -> str:
        """Letters of a table one after the other."""
        out = ""
        while self.peek() in table:
            out += table[self.peek()]
            self.at += 1
        return out

    def group(self, bare: bool = False) -> str:
        """What stands between parentheses or strokes, without them where they only hold together."""
        opened = self.peek()
        self.at += 1
        depth, norm = self.depth, self.norm
        self.depth, self.norm = depth + 1, opened == "‖"
        self.space()
        inner = self.sum()
        self.space()
        self.depth, self.norm = depth, norm
        if self.peek() != PAIRS[opened]:
            raise NotOne
        self.at += 1
        left, right = SHOWN.get(opened, (opened, PAIRS[opened]))
        return inner if bare else f"{left}{inner}{right}"

    def tried(self, part: Callable[[], str]) -> str | None:
        """A part, or None if it is none."""
        depth, norm = self.depth, self.norm
        try:
            return part()
        except NotOne:
            self.depth, self.norm = depth, norm
            return None

    @property
    def rest(self) -> str:
        """The text from here on."""
        return self.text[self.at :]

    def peek(self) -> str:
        """The next letter, empty at the end."""
        return self.text[self.at : self.at + 1]

    def space(self) -> None:
        """Goes on to what is no space."""
        while self.peek() == " ":
            self.at += 1

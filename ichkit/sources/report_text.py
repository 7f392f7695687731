"""Labels from radiology reports in English by rules: terms, negations, doubts and sections. A draft to be checked."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_BLEED = r"(?:ha?emorrhag\w*|ha?ematomas?|bleed\w*|blood)"
_WORDS = r"(?:[\s,/-]+(?!with\b|without\b|no\b|but\b{not_these})\w+){{0,4}}?[\s,/-]+"
_BETWEEN = _WORDS.format(not_these="")
"""Up to four words between the place and the blood: "subdural and subarachnoid hemorrhage"."""
_IN_LOBE = _WORDS.format(not_these=r"|sub-?dural\b|(?:epi|extra)dural\b|sub-?arachnoid\b|scalp\b|convexity\b|extra\b")
"""The same behind the name of a region, where "frontal subdural hematoma" is not in the brain."""


@dataclass(frozen=True)
class Term:
    """A row of `TERMS`: what a report calls a class.

    Attributes:
        name: the class.
        patterns: regular expressions, matched in lower case.
    """

    name: str
    patterns: tuple[str, ...]
    description: str
    source: str


def _term(name: str, description: str, *patterns: str) -> Term:
    return Term(name, patterns, description, "chosen here: usual wording of head CT reports")


TERMS = {
    row.name: row
    for row in (
        _term(
            "epidural",
            "Epidural or extradural blood.",
            rf"\b(?:epi|extra)dural{_BETWEEN}(?:{_BLEED}|collections?)",
            r"\bedh\b",
        ),
        _term(
            "intraparenchymal",
            "Blood in the brain: intracerebral, parenchymal, of a named region, a hemorrhagic contusion or infarct.",
            rf"\b(?:intra[- ]?)(?:parenchymal|cerebral|axial){_BETWEEN}{_BLEED}",
            rf"\b(?:parenchymal|cerebellar|lobar|thalamic|pontine|putaminal|brainstem|frontal|parietal|temporal|"
            rf"occipital|basal ganglia|gangliocapsular){_IN_LOBE}{_BLEED}",
            r"\bha?emorrhagic (?:contusions?|transformation|conversion|infarct\w*)",
            r"\biph\b",
        ),
        _term(
            "intraventricular",
            "Blood in the ventricles.",
            rf"\bintra[- ]?ventricular{_BETWEEN}(?:{_BLEED}|extension)",
            rf"\b{_BLEED}(?:\s+\w+){{0,3}}\s+(?:in|into|within)(?:\s+\w+){{0,3}}\s+ventric\w+",
            r"\bventricular extension",
            r"\bivh\b",
        ),
        _term(
            "subarachnoid",
            "Subarachnoid blood, in sulci or cisterns.",
            rf"\bsub-?arachnoid{_BETWEEN}{_BLEED}",
            rf"\b{_BLEED}(?:\s+\w+){{0,3}}\s+(?:in|within|along)(?:\s+\w+){{0,3}}\s+"
            r"(?:sulc\w+|cistern\w*|subarachnoid space|sylvian fissures?)",
            r"\bsah\b",
        ),
        _term(
            "subdural",
            "Subdural blood, not a hygroma; what is called old is doubted.",
            rf"\bsub-?dural{_BETWEEN}(?:{_BLEED}|collections?)",
            r"\bsdhs?\b",
        ),
    )
}
"""What a report calls each class; any class that covers others is read from `_ANY` too."""

_ANY = rf"\b(?:{_BLEED}|ich)\b"
_OUTSIDE = (
    r"(?:scalp|subgaleal|galeal|cephal\w*|extracranial|soft tissue|periorbital|orbital|preseptal|retinal|"
    r"subconjunctival|facial|nasal|sinus|neck|blood (?:pressure|vessels?|flow|cultures?|thinners?|clots?))"
)
"""Blood that is not in the head: a match with one of these beside it does not count."""
_SECTIONS = re.compile(
    r"(?im)(?:^|(?<=[.;!?])[ \t])[ \t]*(indications?|clinical(?! correl)[^:.\n]{0,30}|history|reason[^:.\n]{0,30}|"
    r"techniques?|comparisons?|reports?)[ \t]*:|\b(findings?|impressions?|conclusions?|opinion)[ \t]*:"
)
"""Headings, also of reports in one line: those of findings anywhere, the others where a line or a sentence begins."""
_NOT_FOUND_IN = ("indication", "clinical", "history", "reason", "technique", "comparison")
_CLAUSES = re.compile(r"[.;\n]+(?=\s|$)|\b(?:but|however|although|though|except|other than|apart from|otherwise)\b")
_BREAKS = re.compile(r"\b(?:with|there (?:is|are)|showing|shows|demonstrat\w+|due to|secondary to|unchanged)\b")
"""What ends a negation in front: "no midline shift with a small subdural hematoma"."""
_NEGATED_BEFORE = re.compile(
    r"\b(?:no|not|without|negative for|absence of|free of|denies|never|neither|nor|rather than|resolution of|"
    r"resolved|excludes?|excluding|rules? out|ruled out)\b"
)
_NEGATED_AFTER = re.compile(
    r"\b(?:(?:is|are|was|were|has been|have been) (?:not|no longer|excluded|absent|ruled out)|"
    r"no longer|not (?:seen|identified|present|evident|visuali[sz]ed|detected|found|demonstrated)|absent|"
    r"(?:has|have) (?:completely |fully )?(?:resolved|cleared)|(?:completely |now )resolved)\b"
)
_CHANGE = r"(?:chang|increas|decreas|enlarg|expan|progress|grow)\w*"
_UNCHANGED_BEFORE = re.compile(
    rf"\bno(?: \w+){{0,2}} {_CHANGE} (?:in|of)(?= (?:(?!or\b|and\b|nor\b|new\b)[\w-]+ ){{0,6}}$)"
)
"""In front of a term and of it alone: "no significant change in the large subdural hematoma" does not deny it."""
_EFFECT_BEFORE = re.compile(
    r"\bno(?: \w+){0,2} (?:shift|effect|herniation|hydrocephalus|effacement|compression|o?edema)(?: \w+)? "
    r"(?:from|by|around|surrounding|adjacent to|related to|associated with)(?= (?:(?!or\b|and\b|nor\b)[\w-]+ ){0,4}$)"
)
"""The same: "no midline shift from the subdural hematoma"."""
_UNCHANGED_AFTER = re.compile(rf"\b(?:is|are|was|were) not(?: \w+)? {_CHANGE}")
_DOUBT = re.compile(
    r"\b(?:possib\w+|may|might|could|cannot be excluded|can ?not exclude|not (?:be )?excluded|questionable|"
    r"equivocal|suspect\w*|suspicio\w+|concern\w* for|versus|vs|indeterminate|difficult to exclude|"
    r"rule out|evaluate for|artifact\w*|query)\b|\?"
)
_PAST = re.compile(r"\b(?:history of|h/o|status post|s/p|previous|prior)(?:\s+\w+){0,2}\s*$")
"""Directly in front of a term; "compared with the prior CT, the subdural hematoma" is not meant."""
_OLD = re.compile(r"\bold(?:\s+\w+){0,2}\s*$")
"""Directly in front of a term: it may be blood still, or the scar of it."""
_NEVER_DOUBT = re.compile(r"\bwithout (?:evidence|signs?) of\b|\bno (?:evidence|signs?|suspic\w+|concern)\b")
POSITIVE, NEGATED, DOUBTED = "positive", "negated", "doubted"


@dataclass(frozen=True)
class Mention:
    """One term in one clause of a report, and how it is said.

    Attributes:
        name: the class; empty for blood without a place.
        said: `POSITIVE`, `NEGATED` or `DOUBTED`.
    """

    name: str
    said: str


def find_mentions(text: str) -> list[Mention]:
    """Every term of `TERMS` in the findings and the impression of a report, in order.

    Indication, history, technique and comparison are left out where they have headings.

    Example:
        >>> [f"{one.name}: {one.said}" for one in find_mentions("Right subdural hematoma. No epidural hemorrhage.")]
        ['subdural: positive', 'epidural: negated']
    """
    return [mention for clause in _clauses(text) for mention in _read_clause(clause)]


def label_report(text: str, classes: Sequence[str], any_class: str | None) -> dict[str, int | None]:
    """The label of each class: 1, 0, or None where the report leaves it open.

    A class is 1 if one clause says so, None if it is only doubted, else 0. Blood without a place makes the subtypes
    None that no clause denies or confirms. A report without words, or without any outside of indication, history,
    technique and comparison, is None throughout.

    Args:
        classes: those of the task; each but `any_class` is a row of `TERMS`.
        any_class: the class that covers the others, or None.

    Example:
        >>> label_report("Acute intracranial hemorrhage. No subdural hematoma.", ("subdural", "epidural", "any"), "any")
        {'subdural': 0, 'epidural': None, 'any': 1}
    """
    if not any(re.search(r"[^\W\d_]{3}", clause) for clause in _clauses(text)):
        return dict.fromkeys(classes)
    mentions = find_mentions(text)
    said = {name: {one.said for one in mentions if one.name == name} for name in (*TERMS, "")}
    labels: dict[str, int | None] = {}
    everywhere = said[""]
    subtypes = [name for name in classes if name != any_class]
    for name in subtypes:
        labels[name] = 1 if POSITIVE in said[name] else None if DOUBTED in said[name] else 0
    known = {name: 1 if POSITIVE in said[name] else None if DOUBTED in said[name] else 0 for name in TERMS}
    is_without_place = {POSITIVE, DOUBTED} & everywhere and not any(value == 1 for value in known.values())
    if is_without_place:
        labels |= {name: None for name in subtypes if not said[name]}
    if any_class is not None:
        is_sure = POSITIVE in everywhere or 1 in known.values()
        is_open = DOUBTED in everywhere or None in known.values()
        labels[any_class] = 1 if is_sure else None if is_open else 0
    return {name: labels[name] for name in classes}


def _clauses(text: str) -> Iterator[str]:
    """The clauses of the sections that state findings, in lower case with single blanks."""
    heads = list(_SECTIONS.finditer(text))
    parts = [text[: heads[0].start()] if heads else text]
    for here, following in itertools.zip_longest(heads, heads[1:]):
        if not (here[1] or "").lower().startswith(_NOT_FOUND_IN):
            parts.append(text[here.end() : following.start() if following else len(text)])
    for part in parts:
        # A line break inside a sentence is a blank; an empty line or a bullet ends it.
        whole = re.sub(r"\n(?=\s*[a-z(])", " ", part)
        for clause in _CLAUSES.split(whole.lower()):
            if tidy := " ".join(clause.split()):
                yield tidy


def _read_clause(clause: str) -> Iterator[Mention]:
    named: list[tuple[int, int]] = []
    patterns = [(row.name, pattern) for row in TERMS.values() for pattern in row.patterns] + [("", _ANY)]
    for name, pattern in patterns:
        for found in re.finditer(pattern, clause):
            start, end = found.span()
            is_of_a_class = not name and any(first < end and start < last for first, last in named)
            if is_of_a_class or _is_outside(clause, found):
                continue
            named += [(start, end)] if name else []
            yield Mention(name, _judge(clause, start, end))


def _is_outside(clause: str, found: re.Match[str]) -> bool:
    near = clause[: found.end()].split()[-4:]
    after = clause[found.start() : found.end() + 30]
    is_before = re.search(rf"\b{_OUTSIDE}\b", " ".join(near)) is not None
    is_after = re.search(rf"{_BLEED} (?:of|in|over|within) (?:the )?(?:\w+ )?{_OUTSIDE}\b", after) is not None
    return is_before or is_after or re.match(rf"{_OUTSIDE}\b", after) is not None


def _judge(clause: str, start: int, end: int) -> str:
    before, (nearest, *further) = clause[:start], clause[end:].split(",")
    # What follows a comma is said of something else, unless it goes on with a list of kinds of blood.
    after = ",".join([nearest, *itertools.takewhile(lambda part: re.search(_BLEED, part), further)])
    scope = before[max((found.end() for found in _BREAKS.finditer(before)), default=0) :]
    scope, after = _EFFECT_BEFORE.sub("", _UNCHANGED_BEFORE.sub("", scope)), _UNCHANGED_AFTER.sub("", after)
    # A denial in front reaches over a list; "not excluded" is a doubt.
    is_doubted = _DOUBT.search(_NEVER_DOUBT.sub("", scope)) or _DOUBT.search(nearest) or _OLD.search(before)
    if _NEGATED_BEFORE.search(re.sub(r"can ?not exclude|not excluded|rule out", "", scope)):
        return NEGATED
    if _NEGATED_AFTER.search(re.sub(r"(?:can ?)?not be excluded|not excluded", "", after)):
        return NEGATED
    if _PAST.search(before):
        return NEGATED
    return DOUBTED if is_doubted else POSITIVE

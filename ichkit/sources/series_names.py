"""Reasons in name and header why a CT series is not a plain head CT: words, kernels, contrast, body part."""

import re
import unicodedata
from functools import lru_cache

from ichkit.imaging.dicom import KIND_SEPARATOR, KIND_TAGS

LOCALIZER = "localizer"
NO_SLICE = "not an image of one slice"
DERIVED = "derived"
REFORMATTED = "three-dimensional or reformatted"
CONTRAST = "contrast"
BONE = "bone or high-resolution kernel"
DYNAMIC = "perfusion or dynamic"
PART_OF_HEAD = "not a plain head"
OTHER_BODY_PART = "another body part"
NO_HU = "values that are not HU of a head, or cannot be read"

SEVERITIES = {
    DERIVED: 0,
    REFORMATTED: 1,
    CONTRAST: 2,
    BONE: 3,
    DYNAMIC: 4,
    NO_HU: 5,
    PART_OF_HEAD: 6,
    OTHER_BODY_PART: 7,
    LOCALIZER: 9,
    NO_SLICE: 9,
}
"""How far from a plain head CT a series is, by reason; if no series passes, the one with the lowest value is used."""
NEVER = 9

_NO = (
    r"(?:without|with out|w/o|w/out|wo|wout|no|non|not|sans|sin|sem|ohne|kein\w*|senza|zonder|utan|uden|uten|ilman|bez|"
    r"без|χωρισ|s/)"
)
_AGENT = (
    r"(?:contrast\w*|contr|con|cont|cte|kontras[tcz]\w*|контраст\w*|km|k\.?m\.?|mdc|pdc|civ|inj\w*|inyec\w*|"
    r"enhance\w*|enh|"
    r"dye|agent|iv|ivc|ivcon\w*|i\.v\.?|intravenous|intraven\w*|oral|varjoain\w*|σκιαγραφ\w*|c)"
)
_HEAD_WORDS = (
    r"\b(?:head|brain|skull|cerebr\w*|cranial|cranium|crane|neuro|kopf|schae?del|craneo|tete|hersenen|encefalo|"
    r"encephale|"
    r"hoofd|caput|cabeza|testa|голов\w*|мозг\w*)\b|[头頭颅顱脑脳腦]|두부|뇌"
)

# Both scans in one name: "W AND WO", "W/WO", "WITH AND WITHOUT".
_WITH_AND_WITHOUT = re.compile(
    r"\b(?:with|w)\s*/?\s*(?:and|und|et|y|e|or|&|\+|/|,|-)?\s*(?:without|w/o|wo)\b"
    r"|\b(?:without|w/o|wo)\s*(?:and|&|\+|/|,|-)?\s*(?:with|w)\b(?!/o)"
    r"|\b(?:avec|con|com|mit|med|met) (?:et|y|e|und|och|og|en) (?:sans|sin|sem|senza|ohne|utan|uden|uten|zonder)\b"
    r"|\b(?:sans|sin|sem|senza|ohne|utan|uden|uten|zonder) (?:et|y|e|und|och|og|en) (?:avec|con|com|mit|med|met)\b"
)
_NEGATIONS = tuple(
    re.compile(pattern)
    for pattern in (
        # A form that was filled in: "CONTRAST: NONE", "IV CONTRAST NOT GIVEN".
        rf"\b(?:{_AGENT}\s+)*{_AGENT}\s*(?:none|nil|not (?:given|used|administered)|no$)(?=$|\W)",
        rf"\b{_NO}[\s\-./]*(?:{_AGENT}\b[\s\-./]*)*(?=$|\W|\d)",
        r"\b(?:non|un|pre|no)[ -]?(?:contrast\w*|con|contr|enhanced?|infused|iv|c|km|inj\w*|kontrast\w*)\b",
        r"\b(?:ncct|nect|nccth?|uninfused|nativ\w*|plain|blanco|pre|nc|kontrastsiz|spc|нативн\w*|бесконтраст\w*)\b|"
        r"平扫|平掃"
        r"|単純|비\s?조영(?:\s?증강)?|[非未无無](?:增强|增強|造影)|(?:增强|增強|造影|조영)\s?(?:前|전|なし|無し)",
        rf"\b(?:avant|before|vor|voor|antes(?: del?)?|prima(?: del?)?)\s{_AGENT}\b",
        # Abbreviated by one or two letters: "o. KM", "u/k", "ss IV".
        r"\b(?:o|s|ss|u)[./]?\s?(?:cte|iv|inj\w*|km|kontr\w*|pdc)\b|\bu/k\b|\bc minus\b",
        r"(?<!\w)-\s?c\b|\bc-(?=\s|$)|\biv\s?-(?=\s|$)|(?<!\w)-\s?iv\b",
        # Siemens' name for the blend of two energies: contrast between tissues, not contrast medium.
        r"\boptimum contrast\b",
    )
)
_CONTRAST_WORDS = re.compile(
    r"\b(?:c|ce|cect|mmc|oral|iv|i\.v|contrast\w*|contr|cte|kontras[tcz]\w*|km|enhanced|enh|enhancement|varjoain\w*|"
    r"angio\w*|cta\w*|ctv|veno(?:us|gr\w*|s\w*)|ve(?:i)?neu[xs]\w*|arter\w*|delay(?:ed)?|bolus|omnipaque|iohexol|"
    r"iopamidol|isovue|visipaque|ultravist|iomeron|optiray|gado?\w*|willis|cow|carotids?|carotis|runoff|"
    r"ivc|ivcon\w*|civ|apc|mdc|pdc|inj|inject\w*|inyec\w*|portal\w*|tardi[fvo]\w*|tsa|tetnicz\w*|zyln\w*|veins?|"
    r"контраст\w*|"
    r"артериал\w*|венозн\w*|отсроч\w*|σκιαγραφ\w*|postcont?r?|postkm|po k[lm])\b"
    r"|增强|增強|造影|조영|[动動][脉脈][期相]|[静靜][脉脈][期相]|延[迟遲][期相]|(?<!\w)(?:w|with|avec|pos)$|\bm k\b"
    r"|(?<!\w)\+\s?c\b|\bc\s?\+|\biv\s?\+|(?<!\w)\+\s?iv\b|\bcc sec\b|\d+cc\b"
    r"|\b(?:with|w|w/|mit|avec|con|com)\s?(?:c|con|iv|km|contr\w*|kontrast\w*|kontrastmittel)\b"
    r"|\bpost(?:[ -]?(?:c|con|contr\w*|kontr\w*|km|iv|inj\w*|gd|gad\w*))?\b"
    r"(?![ -]?(?:op\w*|fossa|surg\w*|trauma\w*|evd|eva\w*|drain\w*|clip\w*|coil\w*|cran\w*|proc\w*|thromb\w*|t[np][ak]|"
    r"fall|mva|int\w*|strok\w*|ict\w*|seiz\w*|arrest|ecmo|shunt|vps?|biops\w*|resect\w*|stent\w*|emboli\w*|hem\w*|"
    r"bleed))"
)

_WORD_RULES: tuple[tuple[str, str], ...] = (
    (
        LOCALIZER,
        r"\b(localiz\w*|localis\w*|scout\w*|topogram\w*|topo|surview|e?scano\w*|radiogram\w*|pilot\w*|топограмм\w*|"
        r"centering|centrage|"
        r"reperage|lokali\w*|ue?bersicht\w*)\b|^survey$|^loc$|定位",
    ),
    (
        NO_SLICE,
        r"\bdose ?(report|info|sheet|summary|page|record|structured)\w*|^(?:(?:ct|patient|sr|radiation) )?dose$|"
        r"^dlp$|\breports?\b"
        r"|\bdosis(?:bericht|protokoll|info)\w*\b|\b(?:rapport|informe|reporte|relatorio) (?:de )?dos[ei]s?\b"
        r"|\b(?:patient|exam) protocol\b|\bprotocol (page|sheet)\b|^protokoll$|\bpatientenprotokoll\b|\bbildschirm\w*"
        r"|\bscreen ?(save|shot|capture)s?\b|\bsecondary\b|\b(exam|study|rapid) summary\b"
        r"|\bkey images?\b|\bsummary\b|\boverlays?\b|\brgb\b|\bcolou?r maps?\b|\bpasted\b",
    ),
    (
        DYNAMIC,
        r"\b(ctp\w*|perfusi\w*|perf|\w{0,5}pct|dynamic\w*|dynamik|dyn\w{0,3}|4d\w*|cine|shuttle|toggling|time resolved|"
        r"(?:pre)?monitor\w*|test ?bolus|bolus ?track\w*|tracker|locator|timing|smart ?prep|real ?prep|sure ?start|"
        r"xenon|cbf|cbv|mtt|tmax|ttp|blood (?:flow|volume)|transit time|time to (?:peak|max\w*)|tmip|aif|vof|iodine\w*|"
        r"jod\w*|vpc)\b|灌注|관류",
    ),
    (
        OTHER_BODY_PART,
        r"\b(neck|hals|nek|cou|cuello|chest|thora\w*|torax|lungs?|lunge|pulmon\w*|abd\w*|pelv\w*|becken|liver|hepat\w*|"
        r"kidneys?|renal|kub|urogram|aort\w*|cardiac|heart|herz|coronar(?:y|ies|e)|calcium|tap|cap|trunk|rumpf|"
        r"whole ?body|(?<!foreign )body|ganzkoe?rper\w*|corps entier|pan ?scan|wb|spine|spinal|[ctl] ?spine|"
        r"[clt]sp|cervical\w*|thoracolumbar|lumbar\w*|lumbo\w*|sacr\w*|"
        r"wirbel\w*|hws|bws|lws|columna|rachis|extremit\w*|shoulders?|schulter|humerus|elbow|wrist|hand|hips?|femur|"
        r"knees?|knie|tibia|ankles?|foot|feet|legs?|colon\w*|enterograph\w*|bein|fuss|genou|epaule|bassin|hanche|"
        r"coluna|pescoco|joelho|ombro|mano|cadera|hombro|rodilla|collo|torace|addome|bacino|spalla|ginocchio|"
        r"bekken|buik|larynx|pharynx|thyroid\w*|trachea|грудь|грудн\w*|легк\w*|живот\w*|ше[яи])\b|[肺胸腹颈頸椎腰盆膝肩腿]|흉부|"
        r"복부|경추|요추|골반",
    ),
    (
        PART_OF_HEAD,
        r"\b(pns|nnh|head ?orbit\w*|orbit\w*|sinus\w*|paranasa\w*|seios|face|facial\w*|maxfac|zygoma\w*|gesicht\w*|"
        r"midface|maxillo\w*|maxilla\w*|massif facial|mandib\w*|denta\w*|jaw|kiefer\w*|tmj|iacs?|cae|cai|"
        r"conduits? auditifs?|ouie|cochlea\w*|hypo(?:ph|f)ys\w*|turca|"
        r"temporal ?bones?|temporals?|t ?bones?|petrous|rochers?|mastoid\w*|felsenbein\w*|inner ?ears?|innerear\w*|"
        r"ears?|sella\w*|pituitary|nasal|nose|left|right)\b|[眼鼻耳颌顎]|颜面|顔面|面骨|颞骨|안와|부비동|측두골|안면"
        # RT and LT mean a side, but next to a number they belong to the name of a kernel or protocol.
        r"|(?<![\d.] )(?<![\d.]mm )\b(?:lt|rt)\b(?! ?\d)",
    ),
    (
        BONE,
        r"\b(bones?|boneplus\d?|bony|hrct|hi ?res\w*|high ?res\w*|uhr|edge|sharp\w*|details?|knochen\w*|"
        r"oss(?:eu(?:x|ses?)|ea|os?)|os|ose[ao]|huesos?|botten\w*|bot|skelet\w*|kosci|kostn?i|kemik|osteo\w*|luu\w*|"
        r"кост\w*)\b|(?<!颅)骨|뼈",
    ),
    (
        REFORMATTED,
        r"\b(?<!aidr )(d?3d|mips?|minip|mpr|dmpr|mpvr|vrt?|ssd|cpr|volume render\w*|rendering|surface|"
        r"sagitt?al\w*|coronals?|sag|cor|oblique|reformats?|reformatted|refor)\b",
    ),
    (DERIVED, r"\b(derived|vnc|virtual\w*|mono\w*|\d+ ?kev|subtract\w*|calibrat\w*)\b"),
)
_WORDS = tuple((reason, re.compile(pattern)) for reason, pattern in _WORD_RULES)

# Siemens: a letter for the region, two digits that rise with sharpness, a letter for the speed (B30f, H31s, J70h);
# since 2013 two letters (Hr38, Br59, Qr40). From 50 on they are made for bone, lung and the inner ear; U is ultra-high
# resolution.
_SIEMENS = re.compile(r"(?P<region>[abhijcdsqfu])(?P<style>[a-z]?)(?P<number>\d\d)(?P<speed>[a-z]?)(?:[_ ]?\d)?")
_SIEMENS_SHARP = 50
_SIEMENS_LOCALIZER = re.compile(r"tr?\d\d[a-z]?|fl0\d")
# Canon and Toshiba: FC20-29 and FC60-69 are for the brain, FC30-39 for bone and inner ear, FC50-59 and FC80-89 for lung
# and bone.
_CANON = re.compile(r"fc[ _]?(\d\d)")
_CANON_SHARP = (range(30, 40), range(50, 60), range(80, 90))
# Philips: Y with or without a letter, D, E with or without a letter, F and L; UA, UB, UC, A, B and C are soft.
_PHILIPS = re.compile(r"y[a-z]?|d|e[a-d]?|f|l")
# GE (BONE, BONEPLUS, EDGE, LUNG, DETAIL, ULTRA), United Imaging (H_SHARP_C, H_VSHARP_B) and whoever writes words.
_WORD_KERNEL = re.compile(r"bone|edge|lung|detail|ultra|sharp|inner|(?<![a-z])ear|knochen|hires|high.?res")

_NO_AGENT = re.compile(
    r"(?:no|non|none|not|nil|nein|nee|n|na|n/a|nan|null|false|f|0+(?:\.0+)? ?(?:ml|cc)?|-+|\*+|x{3,}|unknown|"
    r"unspecified|"
    r"not? (?:given|used|applicable)|none given|without|wo|w/o|"
    r"ohne|sans|sin|sem|s/?c|geen|kein\w*|aucun|plain|native?|unenhanced|negative|blanco|ncct|无|無|なし|нет|平扫)?"
)
_AGENT_REFUSED = re.compile(
    rf"(?!non[- ]?ionic){_NO}\b|(?:un|non)[- ]?enhanced|non ?contrast|(?:nil|plain)\b"
    r"|.*\b(?:none|nil|not (?:given|used))$"
)
_HEAD_PARTS = re.compile(r"head|brain|skull|cran|neuro|cerebr|kopf|tete|crane")
_PARTS_OF_HEAD = re.compile(
    r"orbit|sinus|face|facial|maxill|mandib|jaw|dental|teeth|tooth|tmj|\bear|iac|\biam|temporal|nose|nasal|"
    r"pituitary|sella"
)
_OTHER_PARTS = re.compile(
    r"neck|chest|thora|torax|lung|abd|pelv|spine|cervical|lumbar|sacr|heart|card|coron|aort|liver|kidney|renal|breast|"
    r"extrem|shoulder|arm|elbow|wrist|hand|finger|hip|leg|femur|knee|ankle|foot|toe|whole ?body|trunk|body|bowel|colon|"
    r"larynx|pharynx|thyroid|trachea|vertebra|bladder|prostat|uterus|carotid|hals|clavicle|rib|stern|humer|knie|"
    r"becken|colun|torac|\bcoll?o\b|genou|pesco"
)


@lru_cache(maxsize=4096)
def why_dropped_by_name(name: str) -> str:
    """The reason in a series' name (folder or description) to exclude it; empty if there is none.

    Of several reasons, the one furthest from a plain head (`SEVERITIES`).

    Example:
        >>> why_dropped_by_name("CT PRE CONTRAST BONE"), why_dropped_by_name("AX HEAD WITHOUT CONTRAST 5MM")
        ('bone or high-resolution kernel', '')
    """
    # Treats "1.25 MMC" and "1.25MMC" alike.
    text = _spaced(name)
    text = re.sub(r"(?<=\d)(?=mmc\b)", " ", text)
    words = re.sub(r"[-/ ]+", " ", text).strip()
    reasons = [reason for reason, pattern in _WORDS if pattern.search(words)]
    if _is_contrast(text):
        reasons.append(CONTRAST)
    # A kernel name differs from words: two letters, or a speed letter after its number.
    reasons += [why_dropped_by_kernel(word) for word in words.split() if _is_named_kernel(word)]
    return _furthest(reasons)


@lru_cache(maxsize=4096)
def says_no_contrast(name: str) -> bool:
    """True if a name states that no contrast medium was given."""
    text = _spaced(name)
    return not _is_contrast(text) and any(pattern.search(text) for pattern in _NEGATIONS)


@lru_cache(maxsize=4096)
def why_dropped_by_kernel(kernel: str, maker: str = "") -> str:
    r"""The reason in a convolution kernel (0018,1210) to exclude a series: bone, lung or inner ear, or a localizer.

    Args:
        kernel: as in the header; of several values, separated by a backslash, the first is used: Siemens' second value
            is the strength of its iterative reconstruction.
        maker: Manufacturer (0008,0070); the single letters of Philips are recognised unless another maker is given.

    Source: names of kernels as read in headers of public collections; the sharpness of Siemens' rises with its number.

    Example:
        >>> why_dropped_by_kernel("H60s"), why_dropped_by_kernel("Hr38f\\3"), why_dropped_by_kernel("FC81")
        ('bone or high-resolution kernel', '', 'bone or high-resolution kernel')
    """
    name, maker = kernel.lower().split("\\")[0].strip(), maker.lower()
    if _SIEMENS_LOCALIZER.fullmatch(name):
        return LOCALIZER
    canon = _CANON.fullmatch(name)
    siemens = _SIEMENS.fullmatch(name)
    if canon:
        is_sharp = any(int(canon[1]) in numbers for numbers in _CANON_SHARP)
    elif siemens:
        is_sharp = int(siemens["number"]) >= _SIEMENS_SHARP or siemens["region"] == "u"
    elif _PHILIPS.fullmatch(name):
        is_sharp = not maker or "philips" in maker or "marconi" in maker or "picker" in maker
    else:
        # Philips writes "Brain Sharp (UC)" for a brain kernel.
        is_sharp = bool(_WORD_KERNEL.search(name)) and "brain" not in name
    return BONE if is_sharp else ""


@lru_cache(maxsize=4096)
def why_dropped_by_header(kind: str) -> str:
    """The reason in a header to exclude its series; empty if there is none.

    The description, or without one the protocol, is checked as a name; then ImageType, kernel, contrast agent and body
    part. Agent and body part count only if the name does not contradict: protocols fill them for a whole study.

    Args:
        kind: `Header.kind`.
    """
    values = dict(zip(KIND_TAGS, kind.split(KIND_SEPARATOR), strict=False))
    name = values.get("SeriesDescription") or values.get("ProtocolName", "")
    reasons = [
        why_dropped_by_name(name),
        _why_dropped_by_image_type(values.get("ImageType", "")),
        why_dropped_by_kernel(values.get("ConvolutionKernel", ""), values.get("Manufacturer", "")),
    ]
    if names_an_agent(values.get("ContrastBolusAgent", "")) and not says_no_contrast(name):
        reasons.append(CONTRAST)
    if not re.search(_HEAD_WORDS, re.sub(r"[\W_]+", " ", _plain_letters(name))):
        reasons.append(_why_dropped_by_body_part(values.get("BodyPartExamined", "")))
    return _furthest(reasons)


def names_an_agent(text: str) -> bool:
    """True if ContrastBolusAgent (0018,0010) names an agent; many scanners write that there was none."""
    text = _plain_letters(text).strip(" '\".")
    if _NO_AGENT.fullmatch(text):
        return False
    return not _AGENT_REFUSED.match(text)


def _plain_letters(text: str) -> str:
    """A text in lower case without accents."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFC", "".join(letter for letter in letters if not unicodedata.combining(letter)))


def _spaced(name: str) -> str:
    """A name in plain letters, with underscores, slashes, brackets and punctuation replaced by spaces."""
    return re.sub(r"[_|\\;:,()\[\]\s]+", " ", _plain_letters(name)).strip()


def _is_contrast(text: str) -> bool:
    if _WITH_AND_WITHOUT.search(text):
        return True
    for pattern in _NEGATIONS:
        text = pattern.sub(" ", text)
    if re.search(r"(?<!\w)\+\s?c\b|\bc\s?\+|\biv\s?\+", text):
        return True
    # In "C spine" and "C arm" the C does not mean contrast.
    spaced = re.sub(r"\bc[- ](?=sp)|\bc[- ]arm", "", text)
    return bool(_CONTRAST_WORDS.search(re.sub(r"[-/ ]+", " ", spaced)))


def _is_named_kernel(word: str) -> bool:
    found = _SIEMENS.fullmatch(word)
    if found:
        return bool(found["style"] or found["speed"])
    return bool(_CANON.fullmatch(word) or _SIEMENS_LOCALIZER.fullmatch(word))


def _why_dropped_by_image_type(text: str) -> str:
    """The reason in ImageType; DERIVED alone is not one, because scanners write it for every reformat."""
    words = set(re.split(r"[\\_ ]+", text))
    if "localizer" in words:
        return LOCALIZER
    if words & {"screen", "overlay", "rgb", "dose", "captured"}:
        return NO_SLICE
    if words & {"mip", "minip", "projection", "vrt", "volren", "rendering", "3d", "ssd", "collapse"}:
        return REFORMATTED
    if words & {"perfusion", "cbf", "cbv", "mtt", "tmax", "ttp"}:
        return DYNAMIC
    return ""


def _why_dropped_by_body_part(text: str) -> str:
    text = _plain_letters(text).replace("_", " ")
    if not text or _HEAD_PARTS.search(text):
        return ""
    if _PARTS_OF_HEAD.search(text):
        return PART_OF_HEAD
    return OTHER_BODY_PART if _OTHER_PARTS.search(text) or re.fullmatch(r"[ctl] ?spine|css|tss|lss", text) else ""


def _furthest(reasons: list[str]) -> str:
    """The reason furthest from a plain head; empty if there is none."""
    return max((reason for reason in reasons if reason), key=SEVERITIES.__getitem__, default="")

"""`ichkit submit --upload`: the CSV of a submission to the competition site, by the site's own command, once.

The site makes a submission in three steps: it is asked where to put the file, the file goes there, and only the third
request makes a submission of it. So whatever fails before the third may be tried again; after anything else the site is
asked first what it has. The command `kaggle` reads its own token; this module never sees it, and strikes out whatever
looks like one from what it shows and keeps.

Source of the messages: the package kaggle 2.2.5 (`competition_submit_cli`, `upload_complete`, `main`) and the reports
of its users (issues 87, 129, 148, 177, 181, 414, 419, 488, 530 and 621 of Kaggle/kaggle-cli).
"""

import csv
import io
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ichkit.core.errors import ConfigError, DataError, UploadError
from ichkit.core.progress import logger
from ichkit.validation.notes import read_note, record_upload

COMPETITION = "rsna-intracranial-hemorrhage-detection"
SITE = f"https://www.kaggle.com/c/{COMPETITION}"
LATE_NOTE = "The competition has ended: a late submission is scored, though not ranked."
RETRY_DELAYS_SECONDS = (5.0, 20.0)
"""Before the second and the third try."""
LOOK_DELAYS_SECONDS = (2.0, 10.0)
"""Before each look at the list of submissions: one that has just arrived may take a moment to be listed."""
_TIMEOUT_SECONDS = 3600.0
_TAG_DIGITS = 16


class _Outcome(Enum):
    """What one call of the command did."""

    SENT = "sent"
    REFUSED = "refused"
    NOT_SENT = "not sent"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Refusal:
    """A refusal the site is known for.

    Attributes:
        pattern: regular expression, case ignored, for its words.
        meaning: what it says, in plain words.
        remedy: what to do.
    """

    pattern: str
    meaning: str
    remedy: str


# The first that matches counts: from what the site says plainly to what only its number tells.
REFUSALS = {
    "token": Refusal(
        r"\b401\b|unauthorized|could not find kaggle\.json|missing username|authentication required|not authenticated",
        "the command `kaggle` has no valid token",
        f"Make one at https://www.kaggle.com/settings, put it where `kaggle` looks for it, and see that "
        f"`kaggle competitions submissions -c {COMPETITION}` works.",
    ),
    "rules": Refusal(
        r"accept (the|this) competition|competitions\.participate|accept.{0,20}rules",
        "the rules of the competition are not accepted by this account",
        f"Sign in, accept them at {SITE}/rules, and run the same command again.",
    ),
    "limit": Refusal(
        r"\b429\b|too many requests|submission limit|allowance|submissions? remaining|per day",
        "the account has no submission left for now",
        "Wait until the site's next day (UTC) and run the same command again.",
    ),
    "late": Refusal(
        r"deadline|late submission|has ended|accepting submissions|\b404\b",
        "the site takes no late submission of this file",
        f"Look at {SITE}/submit: where it offers no late submission, none can be made.",
    ),
    "forbidden": Refusal(
        r"\b403\b|forbidden",
        "this account may not submit",
        f"Join the competition, accept its rules at {SITE}/rules, and confirm the account's phone number.",
    ),
    "file": Refusal(
        r"\b400\b|bad request",
        "the site does not take the file, or this account has not joined",
        f"Join at {SITE}. The file must have a row for each row of stage_2_sample_submission.csv: "
        "prepare without --limit-studies.",
    ),
}
# What the command says where the file never got to its place: no submission is made of it, whatever else it says.
_NOT_PLACED = r"could not submit to competition"
# No connection was made, so nothing was asked; unless the text also tells of one that broke.
_NOT_REACHED = (
    r"failed to establish a new connection|name ?resolution|getaddrinfo|name or service not known|no route to host|"
    r"network is unreachable|connection refused"
)
_BROKEN = r"timed out|reset|aborted|broken pipe|closed|\b5\d\d\b"
_SUCCESS = r"successfully submitted|submission ref: *\d+"
_SECRETS = (
    (r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1?..."),  # addresses to put files at carry signatures
    (r"(/[\w./-]+)\?[^\s'\")]+", r"\1?..."),
    (r"(?i)((?:set-)?cookie|authorization|token|api[ _-]?key|key|password)(['\"]?\s*[:=]\s*)\S[^\n]*", r"\1\2..."),
    (r"\bKGAT_\w+", "..."),
    (r"\b[0-9a-fA-F]{32,}\b", "..."),
)


def upload(submissions: Path, name: str) -> str:
    """Sends the CSV of a submission to the site unless it is there already; returns the site's answer.

    The note of the submission says before the first byte leaves that an upload began, and afterwards how it ended, so
    that the same command, run again after whatever happened, sends no file twice.

    Args:
        name: of a submission that `submit.run` has written.

    Raises:
        ConfigError: no such submission, or the command `kaggle` is not installed.
        DataError: the predictions are not of the competition's own test images.
        UploadError: refused, not reached, or of unknown outcome; the message says what to do.
        ArtifactError: the CSV is not the one that the note describes.
    """
    note = read_note(submissions, name)
    if note is None:
        raise ConfigError(f'submit --upload: {submissions} holds no submission "{name}". Run `ichkit submit` first.')
    if note["data"] != "rsna":
        raise DataError(
            f"submit --upload: expected predictions of the competition's test images, found data={note['data']}. "
            f"The site knows no slice of {submissions / note['csv']}, so nothing was sent."
        )
    command = find_command()
    began = note.get("upload")
    if began is not None and began["answer"] is not None:
        return f"uploaded already on {began['utc']}; the site said: {began['answer']}"
    logger.info("submit: %s", LATE_NOTE)
    description = describe(note)
    if began is not None:
        logger.info("submit: an earlier upload of this file was cut short; asking the site whether it arrived")
        found = _look_for(command, description)
        if found is not None:
            return _finish(submissions, name, found)
    record_upload(submissions, name, None)
    return _finish(submissions, name, _send(command, submissions / note["csv"], description))


def find_command() -> str:
    """Where the command `kaggle` is.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which("kaggle")
    if found is None:
        raise ConfigError(
            "submit --upload: expected the command `kaggle` on the PATH, found none. "
            f"Run `pip install 'ichkit[kaggle]'`, or upload the file by hand at {SITE}/submit."
        )
    return found


def what_next(name: str) -> str:
    """What to do once a file was sent: scores come back by hand, as the site shows them."""
    return f"Once {SITE}/submissions shows its scores: `ichkit leaderboard --record {name} --public X --private Y`."


def describe(note: dict[str, Any]) -> str:
    """The description a submission gets on the site: its name and the start of its CSV's digest, by which it is found.

    Example:
        >>> describe({"name": "default-blend", "sha256": "e48baf68cb43f68259c2"})
        'ichkit default-blend e48baf68cb43f682'
    """
    return f"ichkit {note['name']} {note['sha256'][:_TAG_DIGITS]}"


def _finish(submissions: Path, name: str, answer: str) -> str:
    record_upload(submissions, name, answer)
    return answer


def _send(command: str, path: Path, description: str) -> str:
    """The site's answer to the file; tries again only where no submission can have been made."""
    words = [command, "competitions", "submit", "-q", "-c", COMPETITION, "-f", str(path), "-m", description]
    said = ""
    for delay in (0.0, *RETRY_DELAYS_SECONDS):
        if delay:
            logger.info("submit: nothing has arrived (%s); trying again in %.0f s", _last_line(said), delay)
            time.sleep(delay)
        logger.info("submit: uploading %s, %.1f MB", path, path.stat().st_size / 1e6)
        _, said = _call(words)
        outcome, refusal = _judge(said)
        if outcome is _Outcome.SENT:
            return said
        if refusal is not None:
            raise UploadError(
                f"submit --upload: {refusal.meaning}. The site said: {_last_line(said)}. {refusal.remedy}"
            )
        if outcome is _Outcome.UNKNOWN:
            logger.warning("submit: the connection was lost (%s); asking the site whether it arrived", _last_line(said))
            found = _look_for(command, description)
            if found is not None:
                return found
    raise UploadError(
        f"submit --upload: the site could not be reached in {len(RETRY_DELAYS_SECONDS) + 1} tries: {_last_line(said)}. "
        f"Nothing has arrived. Run the same command again later, or upload {path} by hand at {SITE}/submit."
    )


def _judge(said: str) -> tuple[_Outcome, Refusal | None]:
    """What a call did, by its words: the command exits with 0 after some failures."""
    if re.search(_SUCCESS, said, re.IGNORECASE):
        return _Outcome.SENT, None
    if re.search(_NOT_PLACED, said, re.IGNORECASE):
        return _Outcome.NOT_SENT, None
    if re.search(_NOT_REACHED, said, re.IGNORECASE) and not re.search(_BROKEN, said, re.IGNORECASE):
        return _Outcome.NOT_SENT, None
    for refusal in REFUSALS.values():
        if re.search(refusal.pattern, said, re.IGNORECASE):
            return _Outcome.REFUSED, refusal
    return _Outcome.UNKNOWN, None


def _look_for(command: str, description: str) -> str | None:
    """What the site lists under that description; None where it lists submissions and not this one.

    Raises:
        UploadError: the list cannot be had, so the outcome stays unknown.
    """
    words = [command, "competitions", "submissions", "-q", "-v", "-c", COMPETITION]
    for delay in LOOK_DELAYS_SECONDS:
        time.sleep(delay)
        code, said = _call(words)
        rows = _read_list(said)
        if code or rows is None:
            raise UploadError(
                f"submit --upload: it is not known whether the file arrived, and the site does not list what it has: "
                f'{_last_line(said)}. Look at {SITE}/submissions for "{description}", or run the same command again '
                "later: it asks before it sends anything."
            )
        for row in rows:
            if row.get("description") == description:
                told = [f"{name} {row[name]}" for name in ("status", "publicScore", "privateScore") if row.get(name)]
                return f"arrived on {row.get('date', 'an unknown day')}: {', '.join(told) or 'no status yet'}"
    return None


def _read_list(said: str) -> list[dict[str, str]] | None:
    """The rows of `kaggle competitions submissions -v`; None where the text is no such list."""
    if "no submissions found" in said.lower():
        return []
    # Notes about versions or permissions may stand above the table.
    lines = said.splitlines()
    start = next((i for i, line in enumerate(lines) if "description" in line and "fileName" in line), None)
    return None if start is None else list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))


def _call(words: list[str]) -> tuple[int, str]:
    """Exit code and words of one call, secrets struck out; a call that never ends counts as a lost connection."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer within {_TIMEOUT_SECONDS / 60:.0f} minutes"
    except OSError as error:
        raise ConfigError(f"{words[0]}: cannot be run ({error.strerror}). Reinstall it.") from error
    return done.returncode, strike_secrets(done.stdout).strip()


def strike_secrets(text: str) -> str:
    """The text without tokens, cookies, keys and signed addresses.

    Example:
        >>> strike_secrets("PUT /upload/o?upload_id=AEnB2U failed")
        'PUT /upload/o?... failed'
    """
    for name in ("KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        if os.environ.get(name):
            text = text.replace(os.environ[name], "...")
    for pattern, instead in _SECRETS:
        text = re.sub(pattern, instead, text)
    return text


def _last_line(said: str) -> str:
    """The last line that says anything, which is where the command puts its verdict."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "nothing"

"""`ichkit submit --upload`: uploads the CSV of a submission to Kaggle with the `kaggle` command, at most once.

Kaggle takes a submission in three requests: the first asks for an upload address, the second uploads the file, and only
the third creates the submission. A failure before the third can therefore be retried; after any other failure the list
of submissions is checked first. The command `kaggle` reads its own token; this module never reads it, and removes
anything that looks like a token from what it shows and stores.

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
from ichkit.core.roles import unmark_transductive
from ichkit.validation.notes import read_note, record_upload

COMPETITION = "rsna-intracranial-hemorrhage-detection"
SITE = f"https://www.kaggle.com/c/{COMPETITION}"
LATE_NOTE = "The competition has ended: a late submission is scored, though not ranked."
RETRY_DELAYS_SECONDS = (5.0, 20.0)
"""Waiting times before the second and the third attempt."""
LOOK_DELAYS_SECONDS = (2.0, 10.0)
"""Waiting times before each check of the list of submissions: a new one may take a moment to appear."""
_TIMEOUT_SECONDS = 3600.0
_TAG_DIGITS = 16


class _Outcome(Enum):
    """Result of one call of the command."""

    SENT = "sent"
    REFUSED = "refused"
    NOT_SENT = "not sent"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Refusal:
    """A known reason for a refusal by Kaggle.

    Attributes:
        pattern: case-insensitive regular expression that its message matches.
        meaning: the reason in plain words.
        remedy: what the user can do.
    """

    pattern: str
    meaning: str
    remedy: str


# The first match counts: from explicit messages to bare HTTP status codes.
REFUSALS = {
    "token": Refusal(
        r"\b401\b|unauthorized|could not find kaggle\.json|missing username|authentication required|not authenticated",
        "the command `kaggle` has no valid token",
        f"Create one at https://www.kaggle.com/settings, store it where `kaggle` looks for it, and check that "
        f"`kaggle competitions submissions -c {COMPETITION}` works.",
    ),
    "rules": Refusal(
        r"accept (the|this) competition|competitions\.participate|accept.{0,20}rules",
        "this account has not accepted the rules of the competition",
        f"Sign in, accept them at {SITE}/rules, and run the same command again.",
    ),
    "limit": Refusal(
        r"\b429\b|too many requests|submission limit|allowance|submissions? remaining|per day",
        "the account has no submission left for now",
        "Wait until the site's next day (UTC) and run the same command again.",
    ),
    "late": Refusal(
        r"deadline|late submission|has ended|accepting submissions|\b404\b",
        "Kaggle accepts no late submission of this file",
        f"Check {SITE}/submit: if it offers no late submission, none is possible.",
    ),
    "forbidden": Refusal(
        r"\b403\b|forbidden",
        "this account may not submit",
        f"Join the competition, accept its rules at {SITE}/rules, and confirm the account's phone number.",
    ),
    "file": Refusal(
        r"\b400\b|bad request",
        "Kaggle rejected the file, or this account has not joined the competition",
        f"Join at {SITE}. The file must have a row for each row of stage_2_sample_submission.csv: "
        "prepare without --limit-studies.",
    ),
}
# The message if the file was not uploaded: there is no submission then, whatever else the message says.
_NOT_PLACED = r"could not submit to competition"
# No connection was made, so no request was sent, unless the text also mentions a broken connection.
_NOT_REACHED = (
    r"failed to establish a new connection|name ?resolution|getaddrinfo|name or service not known|no route to host|"
    r"network is unreachable|connection refused"
)
_BROKEN = r"timed out|reset|aborted|broken pipe|closed|\b5\d\d\b"
_SUCCESS = r"successfully submitted|submission ref: *\d+"
_SECRETS = (
    (r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1?..."),  # upload addresses contain signatures
    (r"(/[\w./-]+)\?[^\s'\")]+", r"\1?..."),
    (r"(?i)((?:set-)?cookie|authorization|token|api[ _-]?key|key|password)(['\"]?\s*[:=]\s*)\S[^\n]*", r"\1\2..."),
    (r"\bKGAT_\w+", "..."),
    (r"\b[0-9a-fA-F]{32,}\b", "..."),
)


def upload(submissions: Path, name: str) -> str:
    """Uploads the CSV of a submission to Kaggle unless it was uploaded before; returns the answer of Kaggle.

    The note of the submission records the start of the upload before the first byte is sent, and afterwards its end, so
    that the same command can be run again after any failure without uploading a file twice.

    Args:
        name: of a submission that `submit.run` has written.

    Raises:
        ConfigError: no such submission, or the command `kaggle` is not installed.
        DataError: the predictions are not of the competition's own test images.
        UploadError: refused, Kaggle not reached, or outcome unknown; the message says what to do.
        ArtifactError: the CSV is not the one described by the note.
    """
    note = read_note(submissions, name)
    if note is None:
        raise ConfigError(f'submit --upload: {submissions} holds no submission "{name}". Run `ichkit submit` first.')
    if unmark_transductive(note["data"]) != "rsna":
        raise DataError(
            f"submit --upload: expected predictions of the competition's test images, found data={note['data']}. "
            f"Kaggle does not know the slices of {submissions / note['csv']}, so nothing was uploaded."
        )
    command = find_command()
    began = note.get("upload")
    if began is not None and began["answer"] is not None:
        return f"uploaded already on {began['utc']}; answer of Kaggle: {began['answer']}"
    logger.info("submit: %s", LATE_NOTE)
    description = describe(note)
    if began is not None:
        logger.info("submit: an earlier upload of this file was interrupted; checking whether Kaggle received it")
        found = _look_for(command, description)
        if found is not None:
            return _finish(submissions, name, found)
    record_upload(submissions, name, None)
    return _finish(submissions, name, _send(command, submissions / note["csv"], description))


def find_command() -> str:
    """The path of the command `kaggle`.

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
    """The next step after an upload: the user records the scores that Kaggle shows."""
    return f"Once {SITE}/submissions shows its scores: `ichkit leaderboard --record {name} --public X --private Y`."


def describe(note: dict[str, Any]) -> str:
    """The description of a submission on Kaggle: its name and the start of the SHA-256 of its CSV, to find it by.

    Example:
        >>> describe({"name": "default-blend", "sha256": "e48baf68cb43f68259c2"})
        'ichkit default-blend e48baf68cb43f682'
    """
    return f"ichkit {note['name']} {note['sha256'][:_TAG_DIGITS]}"


def _finish(submissions: Path, name: str, answer: str) -> str:
    record_upload(submissions, name, answer)
    return answer


def _send(command: str, path: Path, description: str) -> str:
    """Uploads the file and returns the answer of Kaggle; retries only if no submission can exist."""
    words = [command, "competitions", "submit", "-q", "-c", COMPETITION, "-f", str(path), "-m", description]
    said = ""
    for delay in (0.0, *RETRY_DELAYS_SECONDS):
        if delay:
            logger.info("submit: the upload failed (%s); trying again in %.0f s", _last_line(said), delay)
            time.sleep(delay)
        logger.info("submit: uploading %s, %.1f MB", path, path.stat().st_size / 1e6)
        _, said = _call(words)
        outcome, refusal = _judge(said)
        if outcome is _Outcome.SENT:
            return said
        if refusal is not None:
            raise UploadError(
                f"submit --upload: {refusal.meaning}. Answer of Kaggle: {_last_line(said)}. {refusal.remedy}"
            )
        if outcome is _Outcome.UNKNOWN:
            logger.warning(
                "submit: the connection was lost (%s); checking whether Kaggle received the file", _last_line(said)
            )
            found = _look_for(command, description)
            if found is not None:
                return found
    raise UploadError(
        f"submit --upload: Kaggle could not be reached in {len(RETRY_DELAYS_SECONDS) + 1} attempts: {_last_line(said)}"
        f". Nothing was submitted. Run the same command again later, or upload {path} by hand at {SITE}/submit."
    )


def _judge(said: str) -> tuple[_Outcome, Refusal | None]:
    """The outcome of a call by its output: the exit code is 0 even after some failures."""
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
    """The listed submission of that description; None if Kaggle lists none.

    Raises:
        UploadError: the list is not available, so the outcome stays unknown.
    """
    words = [command, "competitions", "submissions", "-q", "-v", "-c", COMPETITION]
    for delay in LOOK_DELAYS_SECONDS:
        time.sleep(delay)
        code, said = _call(words)
        rows = _read_list(said)
        if code or rows is None:
            raise UploadError(
                f"submit --upload: it is unknown whether Kaggle received the file, and its submissions cannot be listed"
                f': {_last_line(said)}. Look for "{description}" at {SITE}/submissions, or run the same command again '
                "later: it checks the list before it uploads."
            )
        for row in rows:
            if row.get("description") == description:
                facts = [f"{name} {row[name]}" for name in ("status", "publicScore", "privateScore") if row.get(name)]
                return f"arrived on {row.get('date', 'an unknown day')}: {', '.join(facts) or 'no status yet'}"
    return None


def _read_list(said: str) -> list[dict[str, str]] | None:
    """The rows of `kaggle competitions submissions -v`; None if the text is not such a list."""
    if "no submissions found" in said.lower():
        return []
    # Warnings about versions or permissions may precede the table.
    lines = said.splitlines()
    start = next((i for i, line in enumerate(lines) if "description" in line and "fileName" in line), None)
    return None if start is None else list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))


def _call(words: list[str]) -> tuple[int, str]:
    """Exit code and output of one call, without secrets; a timeout counts as a lost connection."""
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
    """The text without tokens, cookies, keys and signed URLs.

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
    """The last non-empty line, in which the command reports its result."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "nothing"

"""`submit --upload` against a stand-in for the command `kaggle`: what is sent, when, how often, and what is kept."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from ichkit.core.errors import ArtifactError, ConfigError, DataError, UploadError
from ichkit.stages.scores import upload as stage
from ichkit.validation.notes import read_note, record_scores, write_note
from ichkit.work.artifacts import digest_file

KEY = "0123456789abcdef0123456789abcdef"
SENT = "Successfully submitted to RSNA Intracranial Hemorrhage Detection"
HEAD = "ref,fileName,date,description,status,publicScore,privateScore"
NO_ROUTE = (
    "HTTPSConnectionPool(host='api.kaggle.com', port=443): Max retries exceeded with url: /v1/competitions "
    "(Caused by NameResolutionError(\"Failed to resolve 'api.kaggle.com' ([Errno -2] Name or service not known)\"))"
)
RESET = "('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))"
# Says the next of its answers for `submit` or `submissions`, and notes how it was called.
STAND_IN = """#!{python}
import json, pathlib, sys
here = pathlib.Path({here!r})
verb = sys.argv[2]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((here / verb).read_text())
code, out, err = answers.pop(0)
(here / verb).write_text(json.dumps(answers))
print(out)
print(err, file=sys.stderr)
sys.exit(code)
"""


class Site:
    """The stand-in on the PATH: what it will answer, and how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def answers(self, verb: str, *texts: str | tuple[int, str, str]) -> None:
        full = [(0, text, "") if isinstance(text, str) else text for text in texts]
        (self.folder / verb).write_text(json.dumps(full))

    def calls(self, verb: str) -> list[list[str]]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [words for words in map(json.loads, lines) if words[1] == verb]


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "kaggle"
    command.write_text(STAND_IN.format(python=sys.executable, here=str(folder)))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(stage, "RETRY_DELAYS_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(stage, "LOOK_DELAYS_SECONDS", (0.0, 0.0))
    return Site(folder)


@pytest.fixture
def out(tmp_path) -> Path:
    return write_submission(tmp_path / "submissions", "one")


def write_submission(folder: Path, content: str, data: str = "rsna") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a-blend.csv").write_text(f"ID,Label\n{content},0.5\n")
    facts = {"csv": "a-blend.csv", "sha256": digest_file(folder / "a-blend.csv"), "tables": {}, "data": data}
    write_note(folder, "a-blend", facts)
    return folder


def listed(out: Path, *scores: str) -> str:
    """The site's list with this file in it."""
    description = stage.describe(read_note(out, "a-blend"))
    own = ",".join(["7", "a-blend.csv", "2026-11-21 05:00:00", description, "complete", *(scores or ("", ""))])
    return (
        f"Warning: Looks like you're using an outdated API Version\n{HEAD}\n{own}\n6,b.csv,2026-11-20,other,complete,,"
    )


EMPTY = f"{HEAD}\n6,b.csv,2026-11-20 05:00:00,ichkit a-blend 0000000000000000,complete,0.1,0.2"


def test_a_file_is_sent_with_its_name_and_digest_and_the_sites_answer_is_kept(site, out):
    site.answers("submit", f"{SENT}\n4 submissions remaining today.")
    answer = stage.upload(out, "a-blend")
    (words,) = site.calls("submit")
    note = read_note(out, "a-blend")
    assert words[words.index("-f") + 1] == str(out / "a-blend.csv")
    assert words[words.index("-c") + 1] == "rsna-intracranial-hemorrhage-detection"
    assert words[words.index("-m") + 1] == f"ichkit a-blend {note['sha256'][:16]}"
    assert SENT in answer
    assert note["upload"]["answer"] == answer


def test_a_file_that_was_sent_is_not_sent_again(site, out):
    site.answers("submit", SENT)
    stage.upload(out, "a-blend")
    assert "uploaded already" in stage.upload(out, "a-blend")
    assert len(site.calls("submit")) == 1


def test_another_file_of_that_name_is_sent_and_the_old_answer_goes(site, out):
    site.answers("submit", SENT, SENT)
    stage.upload(out, "a-blend")
    write_submission(out, "two")
    assert "upload" not in read_note(out, "a-blend")
    stage.upload(out, "a-blend")
    first, second = site.calls("submit")
    assert first[-1] != second[-1]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "403 - You cannot submit until you accept the competition rules",
            "has not accepted the rules of the competition",
        ),
        (
            "403 - Forbidden - Permission 'competitions.participate' was denied",
            "has not accepted the rules of the competition",
        ),
        ("403 - Forbidden", "this account may not submit"),
        ("400 - Bad Request", "rejected the file, or this account has not joined"),
        ("400 Client Error: Bad Request: The competition's deadline has passed", "accepts no late submission"),
        ("Could not find competition - is still accepting submissions.\n  Error: 404 Not Found", "no late submission"),
        ("400 Client Error: Submission limit reached", "no submission left for now"),
        ("429 Client Error: Too Many Requests", "no submission left for now"),
        ("401 - Unauthorized", "no valid token"),
        ("OSError: Could not find kaggle.json. Make sure it's located in /root/.kaggle", "no valid token"),
    ],
)
@pytest.mark.parametrize("code", [0, 1])
def test_a_refusal_is_said_plainly_with_the_sites_words_and_nothing_is_tried_again(site, out, said, message, code):
    site.answers("submit", (code, "", said))
    with pytest.raises(UploadError) as caught:
        stage.upload(out, "a-blend")
    assert message in str(caught.value)
    assert said.splitlines()[-1].strip().rstrip(".") in str(caught.value)
    assert len(site.calls("submit")) == 1
    assert site.calls("submissions") == []


@pytest.mark.parametrize("said", [NO_ROUTE, f"{RESET}\nCould not submit to competition"])
def test_what_was_lost_before_a_submission_was_made_is_tried_again_without_asking(site, out, said):
    site.answers("submit", (1, "", said), (1, "", said), SENT)
    assert SENT in stage.upload(out, "a-blend")
    assert len(site.calls("submit")) == 3
    assert site.calls("submissions") == []


def test_a_site_that_is_never_reached_ends_in_one_message_after_three_tries(site, out):
    site.answers("submit", *[(1, "", NO_ROUTE)] * 3)
    with pytest.raises(UploadError, match=r"could not be reached in 3 attempts: .*Nothing was submitted"):
        stage.upload(out, "a-blend")
    assert len(site.calls("submit")) == 3


@pytest.mark.parametrize("said", [RESET, "504 Server Error: Gateway Timeout", "Read timed out.", ""])
def test_after_an_unknown_end_the_site_is_asked_and_a_file_that_arrived_is_not_sent_again(site, out, said):
    site.answers("submit", (1, "", said))
    site.answers("submissions", EMPTY, listed(out, "0.66", "0.05"))
    answer = stage.upload(out, "a-blend")
    assert answer == "arrived on 2026-11-21 05:00:00: status complete, publicScore 0.66, privateScore 0.05"
    assert len(site.calls("submit")) == 1
    assert len(site.calls("submissions")) == 2


def test_after_an_unknown_end_a_file_that_is_not_listed_is_sent_again(site, out):
    site.answers("submit", (1, "", RESET), SENT)
    site.answers("submissions", EMPTY, "No submissions found")
    assert SENT in stage.upload(out, "a-blend")
    assert len(site.calls("submit")) == 2


def test_a_connection_that_failed_after_another_broke_is_an_unknown_end(site, out):
    site.answers("submit", (1, RESET, NO_ROUTE))
    site.answers("submissions", listed(out))
    assert "arrived" in stage.upload(out, "a-blend")
    assert len(site.calls("submit")) == 1


def test_where_the_site_cannot_be_asked_nothing_is_sent_and_the_next_call_asks_first(site, out):
    site.answers("submit", (1, "", RESET))
    site.answers("submissions", (1, "", NO_ROUTE))
    with pytest.raises(UploadError, match=r"it is unknown whether Kaggle received the file"):
        stage.upload(out, "a-blend")
    site.answers("submissions", listed(out))
    assert "arrived on 2026-11-21" in stage.upload(out, "a-blend")
    assert len(site.calls("submit")) == 1


def test_a_call_that_was_killed_before_the_answer_is_followed_by_a_question(site, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_call", lambda words: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage.upload(out, "a-blend")
    site.answers("submissions", EMPTY, EMPTY)
    site.answers("submit", SENT)
    assert SENT in stage.upload(out, "a-blend")
    assert len(site.calls("submissions")) == 2


def test_no_token_cookie_or_signed_address_is_shown_or_kept(site, out, monkeypatch, caplog):
    monkeypatch.setenv("KAGGLE_KEY", "short-secret")
    said = (
        f"Retrying after connection broken: /upload/storage/v1/b?uploadType=resumable&upload_id=AEnB2UoTUF_ZJo\n"
        f"HTTP response headers: {{'Set-Cookie': 'TempData={KEY}'}}\nkey: {KEY}\nshort-secret KGAT_abc123\n{SENT}"
    )
    site.answers("submit", said)
    answer = stage.upload(out, "a-blend")
    for text in (answer, (out / "a-blend.json").read_text(), caplog.text):
        for secret in (KEY, "AEnB2UoTUF", "short-secret", "KGAT_abc123", "TempData"):
            assert secret not in text.replace(read_note(out, "a-blend")["sha256"], "")
    assert SENT in answer


def test_predictions_of_phantoms_are_not_sent(site, tmp_path):
    out = write_submission(tmp_path / "submissions", "one", data="phantom")
    with pytest.raises(DataError, match=r"found data=phantom. Kaggle does not know the slices"):
        stage.upload(out, "a-blend")
    assert site.calls("submit") == []


def test_without_the_command_the_message_says_how_to_get_it(out, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"pip install 'ichkit\[kaggle\]'"):
        stage.upload(out, "a-blend")
    assert "upload" not in read_note(out, "a-blend")


def test_a_file_that_was_edited_is_not_sent(site, out):
    (out / "a-blend.csv").write_text("ID,Label\nedited,0.1\n")
    with pytest.raises(ArtifactError, match=r"it has changed or is missing"):
        stage.upload(out, "a-blend")
    assert site.calls("submit") == []


def test_recorded_scores_and_the_upload_stand_beside_each_other(site, out):
    site.answers("submit", SENT)
    stage.upload(out, "a-blend")
    note = record_scores(out, "a-blend", 0.66, 0.05)
    assert note["upload"]["answer"] == SENT
    assert write_submission(out, "one") == out
    assert read_note(out, "a-blend") == note

"""Report section: gains on locked patients, and how often external sets and locked patients were scored."""

from ichkit.core.roles import LOCKED, title_of
from ichkit.show.blocks import Block, Missing, Prose, Section
from ichkit.show.table import Table
from ichkit.stages.report.report_data import ReportData
from ichkit.stages.scores import prove
from ichkit.stages.scores.book import read_proof
from ichkit.work.looks import read_looks

_LOOKS = (
    "Each row of `looks.csv` in the work folder is one run or stack whose predictions of the set were "
    "scored for the first time. The more often a set is scored while models are changed, the less it is a test of them."
)


def make_proof(report: ReportData) -> Section:
    """The gains of second stages on locked patients, if measured, and how often every external set was scored."""
    table = read_proof(report.work, report.sources)
    blocks: list[Block] = []
    if table is not None:
        blocks.append(prove.render(table, report.data))
    elif LOCKED in report.prepared.external_sets():
        blocks.append(Missing("The gains on locked patients were not measured.", prove.MADE_BY))
    else:
        blocks.append(
            Prose("No patients are locked (`ichkit prepare --lock 0.15`): gains were measured out of fold only.")
        )
    looks = read_looks(report.work)
    rows = [
        [title_of(str(name)), str(len(of_set)), of_set.source.iloc[0], of_set.source.iloc[-1]]
        for name, of_set in looks.groupby("set", sort=True)
    ]
    if rows:
        columns = ("set", "scored", "first for", "last for")
        blocks.append(Table("How often each set was scored", columns, rows, note=_LOOKS))
    return Section("proof", "Gains on locked patients and evaluation log", blocks)

"""The report: one self-contained HTML file, and the same values as JSON beside it."""

from ppl_em.report.write import write_report

__all__ = ["write_report"]

"""The report of a bench: from records to one self-contained page and a Markdown file.

content/ says what stands where, plots/ generates the figures, page.py and markdown.py put it together; from_folder.py reads a
bench folder, published.py holds the numbers of papers. No model, no judge.
"""

from saferedir.bench.report.content.data import PublishedRow, ReportData, Sample
from saferedir.bench.report.write import write_report

__all__ = ["PublishedRow", "ReportData", "Sample", "write_report"]

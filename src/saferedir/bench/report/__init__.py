"""The report of a bench: from records to one self-contained page and a Markdown file.

data.py says what goes in, numbers.py how a number is written, tables.py what stands in which column; measures.py,
limits.py and corrected.py derive what no cell holds, headline.py, captions.py and reading.py say what it means,
figures.py and scatter.py draw, provenance.py tells where it comes from, page.py and markdown.py put it together. No
model, no judge.
"""

from saferedir.bench.report.data import PublishedRow, ReportData, Sample
from saferedir.bench.report.write import write_report

__all__ = ["PublishedRow", "ReportData", "Sample", "write_report"]

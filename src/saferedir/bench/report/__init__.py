"""The report of a bench: from records to one self-contained page and a Markdown file. No model, no judge.

content/ says what stands where, templates/ in which words, plots/ has the figures. sections.py puts it together once; page.py and
markdown.py render it. from_folder.py reads a bench folder, stored_images.py its images, published.py the numbers of papers.
"""

from saferedir.bench.report.content.data import Miss, Misses, PublishedRow, ReportData, Sample
from saferedir.bench.report.write import write_report

__all__ = ["Miss", "Misses", "PublishedRow", "ReportData", "Sample", "write_report"]

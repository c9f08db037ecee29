"""The paper's tables: its figures, ours where they were measured, and what would make each that is missing."""

from davae.report.tables.page import write_page
from davae.report.tables.tables import PaperTable, paper_tables

__all__ = ["PaperTable", "paper_tables", "write_page"]

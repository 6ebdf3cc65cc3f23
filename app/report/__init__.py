"""A report that can be sent: one HTML file with charts and tables that needs nothing else."""

from __future__ import annotations

from app.report.report import Report, Section, report_html

__all__ = ["Report", "Section", "report_html"]

"""What is shown at the end of a run: tables, report.md and pictures, all from the run folder alone."""

"""The analyses of the SEW ResNet paper as commands: ``sewsnn analyze``. One file for each of them.

Every analysis writes figures (PNG and SVG), the data behind them (CSV) and a Markdown report into one folder, all of
them or none (:class:`sewsnn.experiments.report.Report`).
"""

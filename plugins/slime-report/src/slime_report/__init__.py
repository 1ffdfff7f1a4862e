"""`slime report RUN`: one page that shows what a run did.

report.py   what a report says, as data
page/       the page that a person opens
"""

__version__ = "0.1.0"

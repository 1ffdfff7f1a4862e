"""`slime report RUN`: one page that shows what a run did.

plugin.py     what slime finds
arguments.py  the options
recording/    what a run records while it goes on
command.py    the command
reading/      from run directories to a report
tensorboard.py  past metrics as TensorBoard event files
report.py     what a report says, as data
page/         the page that a person opens
"""

__version__ = "0.1.0"

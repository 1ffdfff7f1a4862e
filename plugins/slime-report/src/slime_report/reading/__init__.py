"""From run directories to a report. Called by `slime_report.command`; writes nothing.

run.py          everything that a report says of one run
curve.py        the values of a metric, in bounded memory
metrics.py      metrics.jsonl, also while it grows
folder.py       configuration, starts and ends, last signs: in which state the run is
evaluations.py  answers of evaluations: how sure a score is
samples.py      recorded samples of all training ranks
groups.py       how groups were solved
charts.py       which metrics are drawn together, in reading order
scores.py       scores with intervals, lost data, where time went
facts.py        what alarms look at
alarms.py       what is wrong, in words
policy_alarms.py  the alarms of runs that are trained by rewards
image_alarms.py  those of runs whose images show nothing
verdict.py      a run in one sentence
compare.py      options in which runs differ
"""

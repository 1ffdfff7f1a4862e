"""What a run records for its report, in the folder `record` of its run directory. Called by the observers in `slime_report.plugin`.

events.py       when the run was started and ended, and its last signs of life
recorder.py     which rollouts are recorded, and when
choice.py       which samples of a rollout are kept
pictures.py     small PNGs of the images of a sample
rows.py         a sample and the groups of a rollout as rows of JSON
bounded_log.py  a file of rows that keeps within a limit by dropping every second rollout

All files can be read at any time, also after a kill: a last line that is cut short is no line.
"""

FOLDER = "record"
EVENTS, SIGNS, SAMPLES, GROUPS = "events.jsonl", "signs", "samples-rank*.jsonl", "groups.jsonl"

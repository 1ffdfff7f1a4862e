"""`slime check --as-slime`: what becomes of the options of a launch script of slime.

bash_words.py     the words of a bash script, and what they become without a shell
launch_script.py  what a launch script hands to train.py
report.py         what becomes of each option, and the defaults that differ
"""

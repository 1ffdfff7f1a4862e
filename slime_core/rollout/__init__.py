"""What makes the samples of a rollout.

components.py     the components that a rollout calls, chosen from the arguments
worker.py         runs the rollout functions, checks what they return
result.py         what a rollout is when its samples have been made, and what is logged of it
image_counts.py   how many images a rollout shows
weight_intake.py  weights that arrive bucket by bucket, for the engine
checks.py         what the checks of rollout functions share
asking.py         how an engine is asked that may have to be shown images
rewards.py        scores finished samples
train_data.py     training data that a hook made of samples, put into them
surroundings.py   what of the run a generate function or reward can reach that is being called
stop_strings.py   where a response ends because of a stop string
boxed.py          reads what stands in the last \\boxed{…} of a text
in_flight.py      the state of a data source from which groups were taken that are not finished
debug_data.py     rollouts that are written to files and read again
"""

"""What `python -m benchmarks.gpu` does on a machine with a GPU: checks first, then measurements, each a job of its own.

job.py                what a job is, and what it finds
catalogue.py          all jobs, in the order of their value
results.py            the file of results, and the tables made of it
worker.py             the process that does jobs
machine.py            the device, its peaks and what it reaches of them
models.py             models with random weights of real shapes; trainers, engines and batches for them
kernels.py            which kernels ran, what waited for the device, and the share of time without a kernel
check_numbers.py      attention and cross-entropy against references in float64
check_training.py     bfloat16 against float32, GPU against CPU, repeated and resumed steps, offloading
check_engine.py       the engine's log-probs against the trainer's
check_fp8.py          the FP8 products of the GPU against their emulation
measure_training.py   tokens per second, MFU, memory
measure_engine.py     decoding, prefill, new weights
measure_grpo.py       whole steps of `slime train`
profiles.py           traces of a training step and of decoding
"""

"""What train backends and engines share. Everything here may import torch.

packed_rows.py  samples of a micro-batch as one packed row
offload.py      what lies on a device waits in host memory meanwhile
"""

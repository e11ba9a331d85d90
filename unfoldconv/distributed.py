"""Convolution of images that are too large for one machine: every rank holds a slab of one spatial axis.

A rank needs, beside its own slab, the few elements next to it that its windows reach into: its *halo*. Each function
fetches them from the ranks that hold them, convolves on every rank, and sends the gradients of the halo back. Together
the ranks compute what `unfoldconv.functional` computes of the whole image.

    import torch.distributed as dist
    dist.init_process_group("gloo")
    slab = image.tensor_split(dist.get_world_size(), dim=2)[dist.get_rank()]    # rows of (N, C, H, W)
    output = uc.distributed.conv2d(slab, weight, padding="same")                # the same rows of the output

How the slabs lie: along the axis they follow each other in the order of the ranks. They may be of any size, also empty, and
a halo may span several of them. Position p of the output lies with the rank that holds element p * stride of the
input, positions beyond the image with the last rank. So with padding="same" and stride 1 the slabs of the output are as
large as those of the input, and layers of the same stride agree on them whatever their kernels are.

Every rank has the whole weight and bias. Its gradients of them are its own share: **the caller adds them up over the
ranks**, for instance

    for parameter in model.parameters():
        dist.all_reduce(parameter.grad, group=process_group)

(DistributedDataParallel takes the mean instead: the loss on each rank is to be multiplied by the number of ranks.)
Gradients of the slab are complete. The backward pass communicates, too, so every rank has to run it; gradients of any
order are there.

Every call is a collective: all ranks of the group make it, in the same order and with the same arguments but for the size of
the slab. The ranks compare their arguments first, in one small exchange of numbers, and refuse a call alike.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

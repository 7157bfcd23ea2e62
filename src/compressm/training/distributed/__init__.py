"""Compression on many processes: rank 0 decides, all others follow, and nobody trains on where they differ.

Each cut takes these steps on all processes. Under `fully_shard`, parameters and optimizer state are gathered before and
sharded again afterwards:

1. a checksum of names, shapes, dtypes, optimizer state, step and earlier cuts is compared;
2. the second moments of what each process captured are summed up;
3. rank 0 analyses and cuts as a single process does;
4. the others receive orders, tensors and optimizer state of the layers that were cut;
5. the checksum is compared again, and a DistributedDataParallel is renewed in place.
"""

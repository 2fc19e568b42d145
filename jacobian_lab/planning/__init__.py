"""What a job costs, told before it is done: time by stage, memory of host and device, disk.

Here live the sketch of a model (its shape, without weights), the machine's measured rates, and the work of every stage
in terms of both. What does the work is elsewhere, and nothing here computes a number of a run.
"""

"""The speed comparison: ``python -m tests.speed [tables|images|losses|prediction|search ...]``.

All contenders of a case do the same work in turn, round after round, since the machine may be
shared; ratios are taken within a round, and their median is given.
"""

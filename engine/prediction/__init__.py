"""Peak memory without the hardware: the real code of a job under fake tensors, and what follows from it.

``stream`` knows what a history of memory is, ``depth`` how one of a few blocks becomes that of many, ``fake`` builds a
model without memory; one module for each kind of job records its history.
"""

"""Charts as pure functions: a DataFrame in, a Plotly figure out. Reads no database, knows no page, needs no browser."""

from app.figures.accuracy import errors, predicted_measured
from app.figures.alt import alt_text
from app.figures.context import context_memory
from app.figures.course import course
from app.figures.facets import facets
from app.figures.lines import lines
from app.figures.memory import CATEGORY_COLOURS, STEP_COLOURS, drift, process_memory, stacked, tensor_memory
from app.figures.merge import merge_peak
from app.figures.parallel import Dimension, parallel
from app.figures.parts import linear_ticks, time_axis_ticks
from app.figures.presenting import present
from app.figures.ratios import ratios
from app.figures.scatter import pareto_front, scatter
from app.figures.spread import repeats, spread

__all__ = [
    "CATEGORY_COLOURS",
    "STEP_COLOURS",
    "Dimension",
    "alt_text",
    "context_memory",
    "course",
    "drift",
    "errors",
    "facets",
    "linear_ticks",
    "lines",
    "merge_peak",
    "parallel",
    "pareto_front",
    "predicted_measured",
    "present",
    "process_memory",
    "ratios",
    "repeats",
    "scatter",
    "spread",
    "stacked",
    "tensor_memory",
    "time_axis_ticks",
]

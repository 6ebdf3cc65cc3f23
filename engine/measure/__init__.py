"""How things are measured: time, tensor memory, process memory, environment, disturbance. Knows no job and no model."""

"""One package per domain: its data, teachers, evaluation and pictures.

Nothing here knows a distillation method.
"""

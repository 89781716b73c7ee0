"""Distillation methods: one file and one class each."""

"""Text to 3D: scenes whose renders a teacher of images finds likely (score distillation)."""

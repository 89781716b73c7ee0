"""Students: the products of distillation, and the makers of their networks."""

"""Students: what a distillation leaves, and how one is made from a teacher."""

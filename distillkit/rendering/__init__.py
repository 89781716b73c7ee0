"""Pictures of scenes, differentiable, in plain torch: cameras, fields and splats."""

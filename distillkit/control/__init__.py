"""Control of finished models: what samples should be, and the noise that gives it."""

"""Networks: `network(x, time, cond) -> tensor like x`, with `features` for discriminator heads."""

"""From a checkpoint to the files of a bundle: options, plan, graphs, weights, engines."""

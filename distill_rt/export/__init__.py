"""From a student to a bundle: graphs, passes, golden inputs, the gate."""

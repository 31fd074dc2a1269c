"""What runs a compiled component: one file per inference engine."""

"""Low-precision graphs by other projects' quantizers, each in a form that fits how its target computes."""

"""Names from the disks of strangers, made safe to show in a terminal, a page or a plot, in any script."""

"""Attribution of bad outputs: repetitive, senseless and off-topic texts."""

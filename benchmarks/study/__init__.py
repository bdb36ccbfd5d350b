"""The paper's questions on generated videos."""

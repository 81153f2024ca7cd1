"""Quality of finished videos."""

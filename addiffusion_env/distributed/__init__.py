"""Ray: actors that hold lanes or make images, started, asked, and replaced when they are lost."""

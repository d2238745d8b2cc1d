"""Who spoke when, and where: from the audio of a meeting to segments; knows no model of speech."""

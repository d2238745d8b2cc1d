"""The recogniser behind a web page and one JSON protocol over WebSockets, for many clients at a time."""

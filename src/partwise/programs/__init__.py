"""What each node does, as reducers from messages to effects."""

"""Our guards inside other people's tools: one file a tool. May import anything below cli and server; nothing imports it."""

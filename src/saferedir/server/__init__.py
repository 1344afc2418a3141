"""A guarded image service over HTTP, in the shape of OpenAI's Images and Moderations APIs, with an audit trail.

`config` says what is served, `engine` generates, `audit` keeps the records, `api` speaks HTTP; `service.serve` runs it all.
Needs the extra `server`. Start at docs/server.md.
"""

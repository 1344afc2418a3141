"""HTTP: what clients send and get, in the shape of OpenAI's Images and Moderations APIs."""

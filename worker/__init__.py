"""The worker: take, claim, feed the engine, store, finish, heartbeat, drain."""

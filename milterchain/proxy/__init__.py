"""The application: front end, chain and next hop put together."""

"""Files from elsewhere: sources in order, the cache, the model hub, package registries."""

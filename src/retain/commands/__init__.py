"""One file a verb that is more than a call, and the data that `retain demo` trains on."""

"""The callbacks that come with onecycle, one concern a file; import them from `onecycle`."""

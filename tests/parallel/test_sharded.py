from onecycle import callbacks


def test_what_copies_or_replaces_parameters_needs_the_whole_model() -> None:
    kinds = {kind for kind in vars(callbacks).values() if isinstance(kind, type)}
    found = {kind.__name__ for kind in kinds if getattr(kind, "needs_whole_model", False)}
    assert found == {"ChannelsLast", "CudaGraph", "MicroBatches", "SnapshotEnsemble"}

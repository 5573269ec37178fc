"""What the tests of studies share."""

import pytest

from pennyweight.model.workers import start_workers


@pytest.fixture(scope="module")
def workers():
    with start_workers(1) as started:
        yield started

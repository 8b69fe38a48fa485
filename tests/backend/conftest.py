# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test of the backend gets: runs that begin fast."""

import pytest

from backend import object_start


@pytest.fixture(scope="module", autouse=True)
def quick_start(request):
    """The fit of the first material takes most of a short run; only test_object_start.py looks at its quality."""
    with pytest.MonkeyPatch.context() as patch:
        if "test_object_start" not in request.module.__name__:
            patch.setattr(object_start, "FIT_STEPS", 6)
        yield

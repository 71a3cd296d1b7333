"""What tests of predictions share."""

import pytest

from synfoc3d.errors import UserError


@pytest.fixture
def refusal(run):
    """Return a function that gives the sentence a prediction is refused with."""

    def call(*arguments, **options):
        with pytest.raises(UserError) as caught:
            run(*arguments, **options)
        return str(caught.value)

    return call

# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugin does to its own process."""

from __future__ import annotations

import gc

import pytest
from ansible_collections.fleetclean.docker.plugins.plugin_utils import anywhere


@pytest.mark.parametrize("before", [True, False])
def test_the_garbage_collector_rests_while_the_module_is_made_and_is_as_it_was_afterwards(before: bool) -> None:
    try:
        if not before:
            gc.disable()
        with pytest.raises(ConnectionError), anywhere._without_collector():
            assert not gc.isenabled()
            raise ConnectionError("whatever the connection raises")
        assert gc.isenabled() == before
    finally:
        gc.enable()

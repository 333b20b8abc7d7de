# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ledgers as tests write them down: by names."""

from __future__ import annotations

from collections.abc import Mapping

from ansible_collections.fleetclean.docker.plugins.module_utils.accounts import Account, Accounts
from ansible_collections.fleetclean.docker.plugins.module_utils.ledger import Ledger
from ansible_collections.fleetclean.docker.plugins.module_utils.walk import Figures, Sizes


def ledger_of(accounts: Mapping[str, Account], sizes: Mapping[str, Sizes]) -> Ledger:
    """A ledger of few accounts, by names of one part."""
    made, figures = Accounts(), Figures()
    for name, account in accounts.items():
        number = made.add(name, "", account.category, made.group_of_names(*account.holders), account.final, account.words)
        made.set_disk(number, account.disk)
        if name in sizes:
            figures.add(number, sizes[name])
    return Ledger(made, figures)

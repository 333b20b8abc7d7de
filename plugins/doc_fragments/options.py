# Copyright (c) The fleetclean.docker contributors
# GNU General Public License v3.0-or-later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation that the three modules share."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of every module: how to reach the engine, where to remember things."""

    DOCUMENTATION = r"""
options:
  docker_host:
    description:
      - The engine's socket or address, V(unix://PATH), V(tcp://HOST:PORT) or V(ssh://USER@HOST:PORT).
      - >-
        V(ssh://) is for a host that gets to the engine by SSH itself. It needs the Docker SDK for Python there (the packages C(docker) and
        C(paramiko), and the program C(ssh)), and C(docker) on the engine's machine. Keys and known hosts are those of the user that the module
        runs as. Where Ansible can connect to the engine's machine, let it do that; then nothing has to be installed.
      - An engine on another machine can be asked and cleaned; what lies on its disk can not be read from here,
        so figures are the engine's own then, and what needs the disk refuses. The same goes for a socket at which a user listens who is
        neither root nor the owner of the data root.
      - Who may put a socket there decides which engine is cleaned. For an engine without root, run the module as its user
        (C(become_user)).
      - Without it, the environment variable E(DOCKER_HOST) on the host counts, as for the other options E(DOCKER_API_VERSION),
        E(DOCKER_TIMEOUT), E(DOCKER_TLS), E(DOCKER_TLS_VERIFY) and E(DOCKER_TLS_HOSTNAME). They are read as community.docker reads them, so
        V(0) and V(no) are false; an empty one is not set.
    type: str
    default: unix:///var/run/docker.sock
    aliases: [docker_url]
  api_version:
    description:
      - The engine's API to speak, such as V(1.41); V(auto) takes the newest that the engine has.
      - V(1.21) (Docker 1.9) and newer are spoken.
    type: str
    default: auto
    aliases: [docker_api_version]
  timeout:
    description:
      - Seconds to wait for an answer of the engine, and for more of one that has begun. As a whole an answer may take five times as long from
        its beginning.
      - A removal, and figures that the engine walks its disk for, are waited for as long as it takes (up to an hour), because an engine whose
        client gave up leaves half-removed layers behind.
    type: int
    default: 60
  max_answer_size:
    description:
      - Bytes that an answer of the engine may have, and that what is kept of it may take in memory, such as V(64MB).
      - One answer with 10,000 containers has 20 MB. An engine that says more than this is refused, since what is reached over the network may be
        broken, or none. The error names this option. A single entry, such as a container with its labels, may have a thirty-second of it.
    type: str
    default: 64MB
  tls:
    description: Whether to use TLS without checking the server's certificate.
    type: bool
    default: false
  validate_certs:
    description: Whether to use TLS and check the server's certificate.
    type: bool
    default: false
    aliases: [tls_verify]
  tls_hostname:
    description: The name to expect in the server's certificate, if it is not the one in O(docker_host).
    type: str
  ca_path:
    description:
      - File of the authorities that may have signed the server's certificate, with O(validate_certs=true).
      - Without it, C(ca.pem) in the folder that E(DOCKER_CERT_PATH) names on the host; without both, the host's own authorities.
    type: path
    aliases: [ca_cert, tls_ca_cert, cacert_path]
  client_cert:
    description:
      - The client's certificate; needs O(client_key).
      - Without it, C(cert.pem) in the folder that E(DOCKER_CERT_PATH) names on the host, wherever TLS is used.
    type: path
    aliases: [tls_client_cert, cert_path]
  client_key:
    description: The client's key; needs O(client_cert). Without it, C(key.pem) in the folder that E(DOCKER_CERT_PATH) names on the host.
    type: path
    aliases: [tls_client_key, key_path]
  sdk:
    description:
      - Has no effect, and will be removed in fleetclean.docker 2.0.0. The modules need no Docker SDK for Python but for V(ssh://) in
        O(docker_host).
    type: str
    choices: [auto, host, carried]
  state_dir:
    description:
      - Folder on the host where M(fleetclean.docker.docker_clean) remembers when images, volumes and networks were last in use; empty
        for none.
      - An engine forgets that with their last container. What is remembered makes things look younger, or tells since when a network
        was not used. Losing it is no harm. On a full or read-only disk nothing is written.
      - The folder, and each folder and link on the path to it, must belong to the user that runs the module or to root, and nobody else may
        write there; else the module fails before it touches anything. It is made for that user alone. A file in it that cannot be read is
        warned of and made anew.
    type: path
    default: /var/lib/fleetclean
requirements:
  - Python 3.8 or newer on the host, and nothing else (but see O(docker_host) for V(ssh://)).
"""

    ATTRIBUTES = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and say what it would do without doing it.
  diff_mode:
    description: Returns what changes, a line for each object, when in diff mode.
  platform:
    description: The hosts that can be cleaned.
    support: full
    platforms: linux
  action_group:
    description: Use C(group/fleetclean.docker.docker) in C(module_defaults) to set the shared options once.
    support: full
    membership:
      - fleetclean.docker.docker
"""

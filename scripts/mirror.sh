# Sourced: FLEETCLEAN_MIRROR is the mirror that this machine's own Debian packages come from, unless it is set already.
if [ -z "${FLEETCLEAN_MIRROR:-}" ] && command -v apt-get >/dev/null; then
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(SITE)' 2>/dev/null | awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }')
    if [ -n "$mirror" ]; then export FLEETCLEAN_MIRROR=$mirror; fi
fi

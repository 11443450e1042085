#!/usr/bin/env bash
# Installs what some tests need from the system, where that is possible: a Slurm that runs in network namespaces
# (tests/slurm.py) and a browser that opens the report. Never fails: without them those tests are skipped.
set -euo pipefail

missing=()
for pair in slurmctld:slurmctld slurmd:slurmd srun:slurm-client munged:munge ip:iproute2 chromium:chromium; do
  command -v "${pair%%:*}" >/dev/null || [ -x "/usr/sbin/${pair%%:*}" ] || missing+=("${pair##*:}")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

say() { echo "not installed: ${missing[*]} ($1); tests that need them are skipped"; }
[ "$(id -u)" = 0 ] || { say "this is not root" && exit 0; }
command -v apt-get >/dev/null || { say "there is no apt-get" && exit 0; }
export DEBIAN_FRONTEND=noninteractive
install=(apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}")
{ timeout 300 apt-get update -qq && timeout 600 "${install[@]}"; } >/dev/null 2>&1 </dev/null || say "apt-get failed"

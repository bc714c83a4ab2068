#!/usr/bin/env bash
# The torture suites with their full counts, in a release build, held against the bars of a quiet machine. Hours.
#
#   tests/torture.sh                  everything
#   tests/torture.sh kill power       these suites: kill power io damage backlog network clock quota replay
#   FIELDGATE_CUTS=50 tests/torture.sh power
#
# CI runs the same tests with the reduced counts that each file states at its top. Needs root for loop mounts (without
# them the parts concerned say that they were not run, or ran on the simulated disk), strace, mosquitto and its clients;
# `tests/run` installs them. What each suite prints belongs in docs/durability.md. A seed is printed by every suite that
# rolls dice; FIELDGATE_SEED repeats it.
set -uo pipefail
cd "$(dirname "$0")/.."

export FIELDGATE_KILLS="${FIELDGATE_KILLS:-1000}"
export FIELDGATE_CUTS="${FIELDGATE_CUTS:-1000}"
export FIELDGATE_DAMAGES="${FIELDGATE_DAMAGES:-2000}"
export FIELDGATE_BACKLOG_MIB="${FIELDGATE_BACKLOG_MIB:-64}"
export FIELDGATE_TURNS="${FIELDGATE_TURNS:-15}"
export FIELDGATE_OPEN_MIB="${FIELDGATE_OPEN_MIB:-1024}"
export FIELDGATE_NETWORKS="${FIELDGATE_NETWORKS:-10}"
export FIELDGATE_STRICT="${FIELDGATE_STRICT:-1}"
export PATH="$PATH:/usr/sbin:/sbin"

suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(kill power io damage backlog network clock quota replay)

[ "$(id -u)" -eq 0 ] || echo "tests/torture.sh: not root: loop mounts are not possible, see what says NOT RUN" >&2
failed=()
for suite in "${suites[@]}"; do
    echo "== torture_$suite"
    # One after the other: they measure times.
    cargo test --release --locked --test "torture_$suite" -- --nocapture --test-threads=1 || failed+=("$suite")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "tests/torture.sh: FAILED: ${failed[*]}" >&2
    exit 1
fi

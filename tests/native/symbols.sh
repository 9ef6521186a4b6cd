#!/usr/bin/env bash
# Fails if object files of two instruction sets define a symbol of the same name: symbols.sh FOLDER (for the objects).
# -O1: what -O3 would inline away shows here.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/isas.sh"
for isa in "${!machine[@]}"; do
  for unit in engine class_gradients gradient_distance image_gram image_squares norm; do
    # shellcheck disable=SC2086
    "${CXX:-g++}" -std=c++17 -O1 -fPIC -DDECOCT_ISA="$isa" ${machine[$isa]} \
      -c "$here/../../csrc/cpu/$unit.cpp" -o "$1/$unit-$isa.o"
  done
  nm --defined-only --extern-only "$1"/*-"$isa.o" | awk '/:$/ || NF == 0 { next } { print $NF }' |
    sort -u >"$1/$isa.symbols"
  grep -q "engine_$isa" "$1/$isa.symbols" || { echo "engine_$isa is not exported"; exit 1; }
done
shared=$(sort "$1"/*.symbols | uniq -d)
if [ -n "$shared" ]; then
  echo "defined for more than one instruction set:"
  echo "$shared" | c++filt
  exit 1
fi
echo "${#machine[@]} instruction sets, no symbol shared"

#!/usr/bin/env bash
# Builds the CUDA kernels for the CPU with the tests beside this file and runs these.
#
#   tests/cuda_on_cpu/run.sh [-fsanitize=address,undefined -fno-sanitize-recover=all | ...]
#   CXX=clang++-19 tests/cuda_on_cpu/run.sh -fsanitize=thread
#
# Flags are added to those of the compiler; CXX is the compiler (default g++). The race check needs clang: its
# fibers are fast. QUICK=1 leaves kernels_test to few shapes of each kernel; so does the race check, in one order
# of the threads, for it finds a race in any. A kernel that no case launched is an error.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
csrc=$here/../../csrc
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cxx=${CXX:-g++}
command -v "$cxx" >/dev/null ||
  { echo "run.sh: no $cxx; apt install g++, or clang-19 and libclang-rt-19-dev for the race check" >&2; exit 1; }

flags=(-std=c++17 -O1 -g -Wall -Wextra -Wno-unknown-pragmas -fno-omit-frame-pointer -pthread "-I$here" "$@")
kernel=(-x c++ -include "$here/counted_launches.h" -DDECOCT_CUDA_ON_CPU '-DDECOCT_CUDA_NAME="cuda_on_cpu"')
test_flags=()
[ -z "${QUICK:-}" ] || test_flags=(--quick)
case " $* " in
  *fsanitize=thread*)
    test_flags=(--quick)
    export DECOCT_CUDA_ON_CPU_ORDER=${DECOCT_CUDA_ON_CPU_ORDER:-forward}
    ;;
esac

# Two at a time.
jobs=()
wait_for_one() {
  wait "${jobs[0]}"
  jobs=("${jobs[@]:1}")
}
start() {
  [ ${#jobs[@]} -lt 2 ] || wait_for_one
  "$@" &
  jobs+=($!)
}
wait_for_all() {
  while [ ${#jobs[@]} -gt 0 ]; do wait_for_one; done
}

compile() { "$cxx" "${flags[@]}" "${@:3}" -c "$2" -o "$build/$1.o"; }
for source in "$csrc"/cuda/*.cu; do start compile "$(basename "$source" .cu)" "$source" "${kernel[@]}"; done
start compile emulation_test "$here/emulation_test.cpp"
start compile plan "$csrc/cuda/plan.cpp"
start compile sizes "$csrc/sizes.cpp"
# The naive sums are much of the time and nothing of the kernels: without checks, and faster.
for test in kernels_test norm_test; do start compile "$test" "$here/$test.cpp" -O2 -fno-sanitize=all; done
wait_for_all
mkdir "$build/emulation" && mv "$build/emulation_test.o" "$build/emulation"
"$cxx" "${flags[@]}" "$build"/*.o -o "$build/kernels_test"
"$cxx" "${flags[@]}" "$build"/emulation/*.o -o "$build/emulation_test"

# Each group tells in a file of its own what it did: two at a time would mix.
group() {
  "$build/kernels_test" "${test_flags[@]}" --launched "$build/launched" "$1" >"$build/$1.log" 2>&1 || {
    cat "$build/$1.log"
    echo "kernels_test $1: FAILED"
    return 1
  }
  sed "s/^/$1: /" "$build/$1.log"
}
# The tests of the emulation choose their orders themselves.
start env -u DECOCT_CUDA_ON_CPU_ORDER "$build/emulation_test"
for name in transport layers samples small fused weights hvp matvec rows norm gradients characteristic projections; do start group "$name"; done
wait_for_all

# Kernels of the program, as nm knows them, against those whose offsets were told.
nm -C "$build/kernels_test" >"$build/symbols"
origin=$(awk '$3 == "note_launch" { print $1 }' "$build/symbols")
while read -r offset; do printf '%016x\n' $((0x$origin + offset)); done <"$build/launched" | sort -u >"$build/reached"
awk '$2 ~ /^[tTwW]$/ && /_kernel</ && !/\[clone|::{lambda|::operator|launch/' "$build/symbols" | sort -u >"$build/kernels"
missed=$(awk 'NR == FNR { reached[$1] = 1; next } !($1 in reached)' "$build/reached" "$build/kernels")
echo "$(wc -l <"$build/reached") of $(wc -l <"$build/kernels") kernels launched"
[ -z "$missed" ] || { printf 'never launched:\n%s\n' "$missed"; exit 1; }
[ -s "$build/kernels" ] || { echo "run.sh: nm shows no kernel"; exit 1; }

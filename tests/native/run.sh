#!/usr/bin/env bash
# Builds the native test with the engine's sources for every instruction set and runs it on each that the processor has.
#
#   tests/native/run.sh [-fsanitize=address,undefined | -fsanitize=thread -DDECOCT_STD_THREADS | ...]
#
# Flags are added to those of the compiler. CXX is the compiler (default g++), ISAS the instruction sets to run,
# KERNELS the kernels to test (default all), RUNNER what runs the program, as in
#
#   CXX=aarch64-linux-gnu-g++ RUNNER=qemu-aarch64 ISAS=generic tests/native/run.sh -static -DDECOCT_STD_THREADS
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cxx=${CXX:-g++}
command -v "$cxx" >/dev/null || { echo "run.sh: no $cxx; install a C++17 compiler: apt install g++" >&2; exit 1; }

flags=(-std=c++17 -O1 -g -Wall -Wextra -fno-omit-frame-pointer -pthread "$@")
case " $* " in *DECOCT_STD_THREADS*) ;; *) flags+=(-fopenmp) ;; esac

source "$root/tests/native/isas.sh"

jobs=()
compile() {  # output, source, flags...
  "$cxx" "${flags[@]}" "${@:3}" -c "$2" -o "$build/$1.o" &
  jobs+=($!)
  if [ ${#jobs[@]} -ge 2 ]; then
    wait "${jobs[0]}"
    jobs=("${jobs[@]:1}")
  fi
}
# Compiled once for each instruction set; all else once.
units=" engine barycenter characteristic_mean class_gradients gradient_distance image_gram image_squares norm random_projection "
for isa in "${!machine[@]}"; do
  for unit in $units; do
    # shellcheck disable=SC2086
    compile "${unit}_$isa" "$root/csrc/cpu/$unit.cpp" -DDECOCT_ISA="$isa" ${machine[$isa]} -ffp-contract=fast
  done
done
# The naive sums are most of the time and nothing of the engine: without checks, and faster.
for test in barycenter_test engine_test characteristic_test gradient_test layers_test norm_test per_sample_test projection_test transport_test; do
  compile "$test" "$root/tests/native/$test.cpp" -O2 -fno-sanitize=all
done
for source in "$root"/csrc/cpu/*.cpp "$root"/csrc/*.cpp; do
  name=$(basename "$source" .cpp)
  [[ $name == bindings || $units == *" $name "* ]] || compile "$name" "$source"
done
for job in "${jobs[@]}"; do wait "$job"; done
"$cxx" "${flags[@]}" "$build"/*.o -o "$build/engine_test"

has() {
  case $1 in
    generic) true ;;
    avx2) grep -qw avx2 /proc/cpuinfo && grep -qw fma /proc/cpuinfo ;;
    avx512) grep -qw avx512bw /proc/cpuinfo && grep -qw avx512dq /proc/cpuinfo && grep -qw avx512vl /proc/cpuinfo ;;
  esac
}
for isa in ${ISAS:-"${!machine[@]}"}; do
  if has "$isa"; then
    # shellcheck disable=SC2086
    DECOCT_ISA=$isa ${RUNNER:-} "$build/engine_test" ${KERNELS:-}
  else
    echo "instruction set: $isa: not on this processor, left out"
  fi
done

# Compiler flags of each instruction set, as CMakeLists.txt has them; sourced by the scripts beside it.
declare -A machine=([generic]="")
if [[ $("${CXX:-g++}" -dumpmachine) == x86_64* ]]; then
  machine[avx2]="-mavx2 -mfma"
  machine[avx512]="-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma"
fi

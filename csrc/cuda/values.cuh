// Several numbers of one lane as one: kernel_profiles.h then asks for each constant once for all of them.
#pragma once
#include "compat.cuh"

namespace decoct::cuda {

template <class T, int N>
struct Values {
  T v[N];
};

template <int N, class Make>
DECOCT_DEVICE auto make_values(Make make) {
  Values<decltype(make(0)), N> result;
#pragma unroll
  for (int k = 0; k < N; ++k) result.v[k] = make(k);
  return result;
}

template <class T, int N>
DECOCT_DEVICE Values<T, N> operator+(const Values<T, N>& a, const Values<T, N>& b) {
  return make_values<N>([&](int k) { return a.v[k] + b.v[k]; });
}
template <class T, int N>
DECOCT_DEVICE Values<T, N> operator-(const Values<T, N>& a, const Values<T, N>& b) {
  return make_values<N>([&](int k) { return a.v[k] - b.v[k]; });
}
template <class T, int N>
DECOCT_DEVICE Values<T, N> operator*(const Values<T, N>& a, const Values<T, N>& b) {
  return make_values<N>([&](int k) { return a.v[k] * b.v[k]; });
}
template <class T, int N>
DECOCT_DEVICE Values<T, N> operator+(const Values<T, N>& a, T b) {
  return make_values<N>([&](int k) { return a.v[k] + b; });
}
template <class T, int N>
DECOCT_DEVICE Values<T, N> operator*(const Values<T, N>& a, T b) {
  return make_values<N>([&](int k) { return a.v[k] * b; });
}
template <class T, int N>
DECOCT_DEVICE Values<T, N> operator/(T a, const Values<T, N>& b) {
  return make_values<N>([&](int k) { return a / b.v[k]; });
}
template <class T, int N>
DECOCT_DEVICE Values<T, N> operator-(const Values<T, N>& a) {
  return make_values<N>([&](int k) { return -a.v[k]; });
}
template <class T, int N>
DECOCT_DEVICE Values<T, N>& operator+=(Values<T, N>& a, const Values<T, N>& b) {
  return a = a + b;
}

}  // namespace decoct::cuda

// Short vectors of channels, and the functions of them that the kernels need.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif
#if defined(__SSE2__)
#include <pmmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace defocus {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};
}

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

template <class T>
inline void store(T* to, Vec<T> x) {
  std::memcpy(to, &x, sizeof(x));
}

template <class T>
inline Vec<T> larger(Vec<T> x, T bound) {
  // A NaN stays one: the comparison is false.
  return x < splat(bound) ? splat(bound) : x;
}

template <class T>
inline Vec<T> smaller(Vec<T> x, T bound) {
  return x > splat(bound) ? splat(bound) : x;
}

// 2^x to 2e-7. The polynomial is 1 at 0 and tightest there: a decay next to 1 is applied thousands of times.
// Below -126 the result is 0 or as good as, above 127 only the AVX-512 form knows infinity.
inline Vec<float> exp2(Vec<float> x) {
#if defined(__AVX512F__)
  const Vec<float> whole = (Vec<float>)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = larger(x, -126.0f);
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  const Vec<float> magic = splat(12582912.0f);
  const Vec<float> shifted = x + magic;
  const Vec<float> whole = shifted - magic;
#endif
  const Vec<float> r = x - whole;
  Vec<float> p = splat(0.0013400436298f);
  p = p * r + splat(0.00966637293859f);
  p = p * r + splat(0.055503331817f);
  p = p * r + splat(0.240223489553f);
  p = p * r + splat(0.693147195505f);
  p = p * r + splat(1.0f);
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
  using Bits = VectorOf<float>::bits;
  return (Vec<float>)((Bits)p + ((Bits)shifted << 23));
#endif
}

inline Vec<double> exp2(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

// log(1 + w) for 0 <= w <= 1, to 1e-7 of its value: 2 atanh(w / (2 + w)).
inline Vec<float> log1p(Vec<float> w) {
  const Vec<float> s = w / (splat(2.0f) + w);
  const Vec<float> q = s * s;
  Vec<float> p = splat(0.281783350867f);
  p = p * q + splat(0.279606027472f);
  p = p * q + splat(0.400249102795f);
  p = p * q + splat(0.666663146821f);
  p = p * q + splat(2.0f);
  return s * p;
}

inline Vec<double> log1p(Vec<double> w) {
  for (int i = 0; i < kLanes<double>; ++i) w[i] = std::log1p(w[i]);
  return w;
}

template <class T>
constexpr T kLog2E = T(1.44269504088896340736);

template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
  x = larger(smaller(x, T(80)), T(-80));
  return splat(T(1)) / (splat(T(1)) + exp2(x * splat(-kLog2E<T>)));
}

template <class T>
inline Vec<T> softplus(Vec<T> x) {
  const Vec<T> above = larger(x, T(0));
  const Vec<T> minus_abs = larger(x - above - above, T(-1000));
  return above + log1p(exp2(minus_abs * splat(kLog2E<T>)));
}

// Writes the sum of the lanes of each of `size` vectors.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DEFOCUS_SHUFFLES
#endif
#endif
#if defined(DEFOCUS_SHUFFLES)
// Of vectors that hold sums in blocks of kBlock lanes: those of two in one, in blocks of half the lanes.
template <class T, int kBlock, int... kLane>
inline Vec<T> fold(Vec<T> a, Vec<T> b, std::integer_sequence<int, kLane...>) {
  constexpr int kHalf = kBlock / 2;
  const Vec<T> low = __builtin_shufflevector(a, b, (kLane / kHalf * kBlock + kLane % kHalf)...);
  const Vec<T> high = __builtin_shufflevector(a, b, (kLane / kHalf * kBlock + kLane % kHalf + kHalf)...);
  return low + high;
}

// The vectors from `from` on folded into one, in blocks of kBlock / 2 lanes: with kBlock = 2 the sum of each.
template <class T, int kBlock>
inline Vec<T> fold_all(const Vec<T>* from) {
  if constexpr (kBlock == kLanes<T> * 2) {
    return *from;
  } else {
    return fold<T, kBlock>(fold_all<T, kBlock * 2>(from), fold_all<T, kBlock * 2>(from + kLanes<T> / kBlock),
                           std::make_integer_sequence<int, kLanes<T>>{});
  }
}
#endif

template <class T>
void sum_lanes(const Vec<T>* from, int64_t size, T* to) {
  int64_t i = 0;
#if defined(DEFOCUS_SHUFFLES)
  for (; i + kLanes<T> <= size; i += kLanes<T>) store(to + i, fold_all<T, 2>(from + i));
#endif
  for (; i < size; ++i) {
    T sum = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) sum += from[i][lane];
    to[i] = sum;
  }
}

// What a pointer to 16-bit or wider numbers means: rows of S are read into and written from rows of T.
template <class S, class T>
inline void read_row(const S* from, T* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<T>(from[i]);
}

template <class S, class T>
inline void write_row(const T* from, S* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) to[i] = static_cast<S>(from[i]);
}

inline void read_row(const c10::BFloat16* from, float* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i].x) << 16;
    std::memcpy(&to[i], &bits, sizeof(bits));
  }
}

inline void write_row(const float* from, c10::BFloat16* to, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &from[i], sizeof(bits));
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    to[i].x = static_cast<uint16_t>(is_nan ? 0x7fc0 : rounded);
  }
}

#if defined(__F16C__)
inline void read_row(const c10::Half* from, float* to, int64_t size) {
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  for (; i < size; ++i) to[i] = static_cast<float>(from[i]);
}

inline void write_row(const float* from, c10::Half* to, int64_t size) {
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), half);
  }
  for (; i < size; ++i) to[i] = static_cast<c10::Half>(from[i]);
}
#endif

// Asks for large pages where fresh memory is about to be written: for long sequences the first touch of each small page
// would cost more than the computation.
inline void prefer_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

// Memory for vectors: aligned, not initialised without a value.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new[](std::max<int64_t>(size, 1) * sizeof(T), std::align_val_t(64)))) {
    prefer_large_pages(get(), size * sizeof(T));
  }
  Buffer(int64_t size, T value) : Buffer(size) { std::fill_n(get(), size, value); }
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete[](data, std::align_val_t(64)); }
  };
  std::unique_ptr<T[], Free> data_;
};

// Memory that will be wanted soon: rows are some KiB apart, which no processor foresees.
class Ahead {
 public:
  // What was added is forgotten.
  void clear() { readings_ = writings_ = 0; }
  void read(const void* row, int64_t stride) { rows_[readings_++] = {static_cast<const char*>(row), stride}; }
  void write(const void* row, int64_t stride) {
    rows_[kMost - ++writings_] = {static_cast<const char*>(row), stride};
  }
  // Brings a place, both in bytes, of row t of everything added closer. Inlined, or GCC finds it without effect.
  __attribute__((always_inline)) void fetch(int64_t t, int64_t offset) const {
    for (int i = 0; i < readings_; ++i) __builtin_prefetch(rows_[i].start + t * rows_[i].stride + offset, 0, 2);
    for (int i = kMost - writings_; i < kMost; ++i) {
      __builtin_prefetch(rows_[i].start + t * rows_[i].stride + offset, 1, 2);
    }
  }

 private:
  static constexpr int kMost = 8;
  struct Row {
    const char* start;
    int64_t stride;
  };
  Row rows_[kMost];
  int readings_ = 0, writings_ = 0;
};

// States decay into numbers so small that some processors slow down a hundredfold: such numbers are zero meanwhile.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  FlushSubnormals() {}
  ~FlushSubnormals() {}
#endif
};

inline int64_t divide_up(int64_t x, int64_t by) {
  return (x + by - 1) / by;
}

// Calls f with a null pointer of the C++ type behind the number that Python gives a dtype, and with one of the type
// that it is computed in.
template <class F>
inline void with_dtype(int64_t dtype, const F& f) {
  switch (dtype) {
    case 0:
      return f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case 1:
      return f(static_cast<c10::BFloat16*>(nullptr), static_cast<float*>(nullptr));
    case 2:
      return f(static_cast<c10::Half*>(nullptr), static_cast<float*>(nullptr));
    default:
      return f(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
  }
}

}  // namespace defocus

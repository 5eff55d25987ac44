// Lets a processor without AVX-512 run the branches that `csrc` has for it: vectors of 64 bytes, which compilers cut
// into those that there are, and the two instructions that are named, by what the manual says they do.
#ifndef __AVX512F__
#include <immintrin.h>

#include <cmath>

namespace stand_in {

typedef float Floats __attribute__((vector_size(64)));

inline Floats round(Floats x) {
  for (int i = 0; i < 16; ++i) x[i] = std::nearbyint(x[i]);
  return x;
}

inline Floats scale(Floats x, Floats exponent) {
  for (int i = 0; i < 16; ++i) x[i] *= std::exp2(std::floor(exponent[i]));
  return x;
}

}  // namespace stand_in

#define __AVX512F__ 1
#define __m512 stand_in::Floats
#define _mm512_roundscale_ps(x, how) stand_in::round(x)
#define _mm512_scalef_ps(x, exponent) stand_in::scale(x, exponent)
#endif

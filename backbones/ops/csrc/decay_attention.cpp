// What De-focus attention does to a block of scores between its matrix products: decay, mask and softmax in one visit of
// each row, and the gradients of that in another.

#include <ATen/Parallel.h>

#include "vec.h"

namespace defocus {

// The same fields in the same order stand in decay_attention/cpu.py. All is contiguous.
struct DecayArguments {
  // `rows` queries from `first` on of each sample against the first `columns` of `length` keys.
  int64_t dtype, batch, rows, columns, first, length, causal;
  // What makes a product a score in base 2, by distance: that of i - (length - 1), then a vector of anything. In the
  // dtype of the computation, as all but the first of scores and dscores.
  const void* factors;
  // In: products of queries and keys, (batch, rows, columns). Out: shares of the softmax.
  void* scores;
  // Logarithm to base 2 of a row's sum of exponentials, (batch, rows): result of forward, input of backward.
  void* lse;
  // Backward alone. In: products of gradients and values. Out: gradients of the products of queries and keys.
  void* dscores;
  // Product of gradient and output of each row, and what the row adds to the gradient of λ, both (batch, rows).
  const void* inner;
  void* ddecay;
};

namespace {

// Calls f(row, query, keys it sees) for each row, on threads that have `buffers` rows of memory each, whole vectors.
template <class T, class F>
void for_rows(const DecayArguments& a, int64_t buffers, const F& f) {
  const int64_t padded = divide_up(a.columns, kLanes<T>) * kLanes<T>;
  at::parallel_for(0, a.batch * a.rows, divide_up(32768, a.columns), [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    Buffer<T> memory(buffers * padded);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t query = a.first + row % a.rows;
      f(row, query, a.causal ? std::min(query + 1, a.columns) : a.columns, memory.get(), memory.get() + padded);
    }
  });
}

template <class T>
const T* factors_of(const DecayArguments& a, int64_t query) {
  return static_cast<const T*>(a.factors) + a.length - 1 - query;
}

template <class T>
T sum_of_lanes(Vec<T> x) {
  T sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += x[lane];
  return sum;
}

template <class S, class T>
void forward(const DecayArguments& a) {
  using V = Vec<T>;
  for_rows<T>(a, 1, [&](int64_t row, int64_t query, int64_t keys, T* x, T*) {
    S* scores = static_cast<S*>(a.scores) + row * a.columns;
    const T* factors = factors_of<T>(a, query);
    const int64_t padded = divide_up(keys, kLanes<T>) * kLanes<T>;
    read_row(scores, x, keys);
    V top = splat(std::numeric_limits<T>::lowest());
    for (int64_t s = 0; s < padded; s += kLanes<T>) {
      V value = load(x + s) * load(factors + s);
      // What fills up the last vector gets no share.
      for (int64_t lane = keys - s; lane < kLanes<T>; ++lane) value[lane] = std::numeric_limits<T>::lowest() / 4;
      store(x + s, value);
      top = value > top ? value : top;
    }
    T highest = top[0];
    for (int lane = 1; lane < kLanes<T>; ++lane) highest = std::max(highest, top[lane]);
    V sum = V{};
    for (int64_t s = 0; s < padded; s += kLanes<T>) {
      const V share = exp2(load(x + s) - splat(highest));
      store(x + s, share);
      sum += share;
    }
    const T total = sum_of_lanes<T>(sum);
    for (int64_t s = 0; s < padded; s += kLanes<T>) store(x + s, load(x + s) * splat(T(1) / total));
    write_row(x, scores, keys);
    std::fill(scores + keys, scores + a.columns, S(0));
    static_cast<T*>(a.lse)[row] = highest + std::log2(total);
  });
}

template <class S, class T>
void backward(const DecayArguments& a) {
  using V = Vec<T>;
  V lanes;
  for (int lane = 0; lane < kLanes<T>; ++lane) lanes[lane] = T(lane);
  for_rows<T>(a, 2, [&](int64_t row, int64_t query, int64_t keys, T* x, T* dx) {
    S* scores = static_cast<S*>(a.scores) + row * a.columns;
    S* dscores = static_cast<S*>(a.dscores) + row * a.columns;
    const T* factors = factors_of<T>(a, query);
    const V lse = splat(static_cast<const T*>(a.lse)[row]), inner = splat(static_cast<const T*>(a.inner)[row]);
    read_row(scores, x, keys);
    read_row(dscores, dx, keys);
    V ddecay = V{};
    for (int64_t s = 0; s < keys; s += kLanes<T>) {
      const V factor = load(factors + s), score = load(x + s) * factor;
      const V share = exp2(score - lse), dscore = share * (load(dx + s) - inner);
      const V ahead = splat(T(s - query)) + lanes;
      V term = dscore * score * (ahead < V{} ? -ahead : ahead);
      for (int64_t lane = keys - s; lane < kLanes<T>; ++lane) term[lane] = 0;
      ddecay += term;
      store(x + s, share);
      // Scores are in base 2.
      store(dx + s, dscore * factor * splat(T(1) / kLog2E<T>));
    }
    write_row(x, scores, keys);
    write_row(dx, dscores, keys);
    std::fill(scores + keys, scores + a.columns, S(0));
    std::fill(dscores + keys, dscores + a.columns, S(0));
    static_cast<T*>(a.ddecay)[row] = sum_of_lanes<T>(ddecay) / kLog2E<T>;
  });
}

}  // namespace
}  // namespace defocus

// Both return 0, or 1 where memory ran out.
extern "C" int defocus_decay_forward(const defocus::DecayArguments* a) try {
  defocus::with_dtype(a->dtype, [a](auto* s, auto* t) {
    defocus::forward<std::decay_t<decltype(*s)>, std::decay_t<decltype(*t)>>(*a);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

extern "C" int defocus_decay_backward(const defocus::DecayArguments* a) try {
  defocus::with_dtype(a->dtype, [a](auto* s, auto* t) {
    defocus::backward<std::decay_t<decltype(*s)>, std::decay_t<decltype(*t)>>(*a);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

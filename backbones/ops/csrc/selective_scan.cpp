// The De-focus scan: phase, recurrence, group RMS norm, skip and gate in one pass over memory.
//
// The unit of work is a slice of channels of one sample, whole norm groups of it. Its tokens are walked through in
// chunks; a chunk's rows are first brought into small buffers of full precision. The lanes of a vector are channels,
// so that the recurrence and the sums over states are vertical. What is summed over slices or samples is summed in a
// fixed order at the end: results do not depend on the number of threads.

#include <ATen/Parallel.h>

#include <vector>

#include "vec.h"

namespace defocus {
namespace {

constexpr int64_t kSliceChannels = 64;

}  // namespace

// The same fields in the same order stand in selective_scan/cpu.py. Strides count elements; rows have stride 1.
struct ScanArguments {
  int64_t dtype, batch, length, channels, states, group, chunk;
  double rope_scale, delta_scale, norm_eps;
  const void *u, *dt, *B, *C, *z, *grad;
  int64_t u_batch, u_token, dt_batch, dt_token, B_batch, B_token, C_batch, C_token, z_batch, z_token, grad_batch,
      grad_token;
  // In the dtype of the computation, contiguous; the last four are results of the backward pass.
  const void *A, *D, *freq, *dt_bias;
  void *dA, *dD, *dfreq, *ddt_bias;
  // States before each chunk, (b, chunks, d, n).
  void* boundaries;
  // Contiguous, in the dtype of the sequences.
  void *out, *du, *ddt, *dB, *dC, *dz;
};

namespace {

template <class T>
struct Phase {
  // Cosine and sine of the angles of a chunk, (chunk, n), by the addition theorem from one exact angle.
  Phase(const ScanArguments& a, int64_t first, int64_t size) : cos(size * a.states), sin(size * a.states) {
    const T* freq = static_cast<const T*>(a.freq);
    for (int64_t k = 0; k < a.states; ++k) {
      const double step = static_cast<double>(freq[k]) / a.rope_scale;
      const double step_cos = std::cos(step), step_sin = std::sin(step);
      double c = std::cos(step * first), s = std::sin(step * first);
      for (int64_t t = 0; t < size; ++t) {
        cos[t * a.states + k] = static_cast<T>(c);
        sin[t * a.states + k] = static_cast<T>(s);
        const double next = c * step_cos - s * step_sin;
        s = s * step_cos + c * step_sin;
        c = next;
      }
    }
  }
  Buffer<T> cos, sin;
};

// B and C after the phase, (b, l, n) each.
template <class S, class T>
struct Turned {
  explicit Turned(const ScanArguments& a)
      : B(a.batch * a.length * a.states), C(a.batch * a.length * a.states) {
    const int64_t n = a.states, chunks = divide_up(a.length, a.chunk);
    at::parallel_for(0, a.batch * chunks, 1, [&](int64_t begin, int64_t end) {
      Buffer<T> row(n);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t sample = i / chunks, first = i % chunks * a.chunk;
        const int64_t size = std::min(a.chunk, a.length - first);
        const Phase<T> phase(a, first, size);
        for (int64_t t = 0; t < size; ++t) {
          const int64_t token = first + t, to = (sample * a.length + token) * n;
          const T *cos = &phase.cos[t * n], *sin = &phase.sin[t * n];
          read_row(static_cast<const S*>(a.B) + sample * a.B_batch + token * a.B_token, row.get(), n);
          turn(row.get(), cos, sin, n, &B[to]);
          read_row(static_cast<const S*>(a.C) + sample * a.C_batch + token * a.C_token, row.get(), n);
          turn(row.get(), cos, sin, n, &C[to]);
        }
      }
    });
  }

  static void turn(const T* x, const T* cos, const T* sin, int64_t n, T* to) {
    for (int64_t k = 0; k < n; k += 2) {
      to[k] = x[k] * cos[k] - x[k + 1] * sin[k];
      to[k + 1] = x[k + 1] * cos[k + 1] + x[k] * sin[k + 1];
    }
  }

  Buffer<T> B, C;
};

// Whole norm groups of one sample: their weights and their state.
template <class T>
struct Slice {
  using V = Vec<T>;
  static constexpr int64_t kWidth = kLanes<T>;

  static int64_t most_channels(const ScanArguments& a) {
    return std::min(a.channels, a.group * std::max<int64_t>(1, kSliceChannels / a.group));
  }
  static int64_t count(const ScanArguments& a) { return divide_up(a.channels, most_channels(a)); }

  Slice(const ScanArguments& a, int64_t index)
      : sample(index / count(a)),
        first_channel(index % count(a) * most_channels(a)),
        channels(std::min(most_channels(a), a.channels - first_channel)),
        columns(divide_up(channels, kWidth)),
        padded(columns * kWidth),
        states(a.states),
        rates(columns * states, V{}),
        state(columns * states, V{}),
        skip(padded, T(0)),
        bias(padded, T(0)) {
    std::copy_n(static_cast<const T*>(a.D) + first_channel, channels, skip.get());
    std::copy_n(static_cast<const T*>(a.dt_bias) + first_channel, channels, bias.get());
    gather(static_cast<const T*>(a.A) + first_channel * states, rates);
    for (int64_t i = 0; i < columns * states; ++i) rates[i] *= splat(kLog2E<T>);
  }

  // Between (d, n) in memory and vectors (columns, n).
  void gather(const T* from, const Buffer<V>& to) const {
    T* lanes = reinterpret_cast<T*>(to.get());
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < states; ++k) lanes[lane(c, k)] = from[c * states + k];
    }
  }
  void scatter(const Buffer<V>& from, T* to) const {
    const T* lanes = reinterpret_cast<const T*>(from.get());
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < states; ++k) to[c * states + k] = lanes[lane(c, k)];
    }
  }
  int64_t lane(int64_t c, int64_t k) const { return (c / kWidth * states + k) * kWidth + c % kWidth; }

  T* boundary(const ScanArguments& a, int64_t chunk) const {
    const int64_t chunks = divide_up(a.length, a.chunk);
    return static_cast<T*>(a.boundaries) + ((sample * chunks + chunk) * a.channels + first_channel) * states;
  }

  int64_t sample, first_channel, channels, columns, padded, states;
  Buffer<V> rates, state;
  Buffer<T> skip, bias;
};

// The rows of a chunk of tokens, a slice wide, in the precision of the computation. Lanes past the slice are zero.
template <class S, class T>
struct Tile {
  using V = Vec<T>;
  static constexpr int64_t kWidth = kLanes<T>;

  explicit Tile(const ScanArguments& a)
      : a(a),
        stride(divide_up(Slice<T>::most_channels(a), kWidth) * kWidth),
        u(a.chunk * stride),
        delta(a.chunk * stride),
        x(a.chunk * stride),
        y(a.chunk * stride),
        scale(stride),
        row(stride) {}

  void read(const Slice<T>& slice, const void* from, int64_t batch_stride, int64_t token_stride, int64_t token, T* to) {
    const S* row = static_cast<const S*>(from) + slice.sample * batch_stride + token * token_stride;
    read_row(row + slice.first_channel, to, slice.channels);
    std::fill(to + slice.channels, to + slice.padded, T(0));
  }

  void write(const Slice<T>& slice, const T* from, int64_t token, void* to) {
    S* row = static_cast<S*>(to) + (slice.sample * a.length + token) * a.channels;
    write_row(from, row + slice.first_channel, slice.channels);
  }

  // u, Δ and Δu of `size` tokens; slope, unless null, gets the derivative of Δ by dt.
  void enter(const Slice<T>& slice, int64_t first, int64_t size, T* slope) {
    const V shrink = splat(static_cast<T>(1 / a.delta_scale));
    for (int64_t t = 0; t < size; ++t) {
      read(slice, a.u, a.u_batch, a.u_token, first + t, &u[t * stride]);
      read(slice, a.dt, a.dt_batch, a.dt_token, first + t, &delta[t * stride]);
      for (int64_t c = 0; c < slice.padded; c += kWidth) {
        const int64_t at = t * stride + c;
        const V step = load(&delta[at]) + load(&slice.bias[c]);
        const V d = softplus<T>(step) * shrink;
        store(&delta[at], d);
        store(&x[at], d * load(&u[at]));
        if (slope != nullptr) store(slope + at, sigmoid<T>(step) * shrink);
      }
    }
  }

  // One over the root mean square of each norm group of token t, in all its channels.
  void measure(const Slice<T>& slice, int64_t t) {
    for (int64_t from = 0; from < slice.channels; from += a.group) {
      const T* group = &y[t * stride + from];
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < a.group; ++c) sum += group[c] * group[c];
      std::fill_n(&scale[from], a.group, T(1) / std::sqrt(sum / a.group + static_cast<T>(a.norm_eps)));
    }
    std::fill(&scale[slice.channels], &scale[slice.padded], T(0));
  }

  // Makes `ahead` the inputs of the next slice in the same chunk; rows of gradients and results join them.
  void look_ahead(const Slice<T>& slice, int64_t first) {
    ahead.clear();
    look_ahead(slice, a.u, a.u_batch, a.u_token, first);
    look_ahead(slice, a.dt, a.dt_batch, a.dt_token, first);
    look_ahead(slice, a.z, a.z_batch, a.z_token, first);
  }
  void look_ahead(const Slice<T>& slice, const void* from, int64_t batch_stride, int64_t token_stride, int64_t first) {
    const S* row = static_cast<const S*>(from) + slice.sample * batch_stride + first * token_stride;
    ahead.read(row + slice.first_channel + slice.channels, token_stride * sizeof(S));
  }
  void look_ahead(const Slice<T>& slice, const void* to, int64_t first) {
    const S* row = static_cast<const S*>(to) + (slice.sample * a.length + first) * a.channels;
    ahead.write(row + slice.first_channel, a.channels * sizeof(S));
  }

  const ScanArguments& a;
  const int64_t stride;
  Ahead ahead;
  Buffer<T> u, delta, x, y, scale, row;
};

// Calls f with a sample's slices, those in [begin, end) of all samples' slices.
template <class AnySlice, class F>
void for_samples(const ScanArguments& a, int64_t begin, int64_t end, const F& f) {
  while (begin < end) {
    const int64_t count = AnySlice::count(a), stop = std::min(end, (begin / count + 1) * count);
    std::vector<AnySlice> slices;
    for (; begin < stop; ++begin) slices.emplace_back(a, begin);
    f(slices);
  }
}

// Splits the states into blocks that fit into registers: f is called with a block's size, as a type, and its first.
template <int kMost, class F>
void for_state_blocks(int64_t states, const F& f, int64_t first = 0) {
  for (; first + kMost <= states; first += kMost) f(std::integral_constant<int, kMost>{}, first);
  if constexpr (kMost > 2) for_state_blocks<kMost / 2>(states, f, first);
}

// kCount states of one column of channels through a chunk. With kKeep, the states (before and after each token) and
// the decays are left in `kept` and `decays`.
template <class T, int kCount, bool kKeep>
void walk(int64_t size, int64_t stride, int64_t n, bool first_block, const T* delta, const T* x, const T* B, const T* C,
          const Vec<T>* rates, Vec<T>* state, T* y, Vec<T>* kept, Vec<T>* decays, const Ahead& ahead,
          int64_t ahead_offset) {
  using V = Vec<T>;
  V h[kCount];
  for (int k = 0; k < kCount; ++k) {
    h[k] = state[k];
    if (kKeep) kept[k] = h[k];
  }
  for (int64_t t = 0; t < size; ++t) {
    const V step = load(delta + t * stride), in = load(x + t * stride);
    V sum = first_block ? V{} : load(y + t * stride);
    if (first_block) ahead.fetch(t, ahead_offset);
#pragma GCC unroll 16
    for (int k = 0; k < kCount; ++k) {
      const V decay = exp2(step * rates[k]);
      h[k] = decay * h[k] + in * splat(B[t * n + k]);
      sum += h[k] * splat(C[t * n + k]);
      if (kKeep) {
        kept[(t + 1) * kCount + k] = h[k];
        decays[t * kCount + k] = decay;
      }
    }
    store(y + t * stride, sum);
  }
  for (int k = 0; k < kCount; ++k) state[k] = h[k];
}

template <class S, class T>
void forward(const ScanArguments& a) {
  using V = Vec<T>;
  const Turned<S, T> turned(a);
  const int64_t n = a.states;
  prefer_large_pages(a.out, a.batch * a.length * a.channels * sizeof(S));
  prefer_large_pages(a.boundaries, a.batch * divide_up(a.length, a.chunk) * a.channels * n * sizeof(T));
  at::parallel_for(0, a.batch * Slice<T>::count(a), 1, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    Tile<S, T> tile(a);
    const auto advance = [&](Slice<T>& slice, int64_t first) {
      const int64_t size = std::min(a.chunk, a.length - first);
      slice.scatter(slice.state, slice.boundary(a, first / a.chunk));
      tile.enter(slice, first, size, nullptr);
      tile.look_ahead(slice, first);
      tile.look_ahead(slice, a.out, first);
      const T* B = &turned.B[(slice.sample * a.length + first) * n];
      const T* C = &turned.C[(slice.sample * a.length + first) * n];
      for (int64_t column = 0; column < slice.columns; ++column) {
        const int64_t c = column * slice.kWidth;
        for_state_blocks<16>(n, [&](auto count, int64_t k) {
          walk<T, count(), false>(size, tile.stride, n, k == 0, &tile.delta[c], &tile.x[c], B + k, C + k,
                                  &slice.rates[column * n + k], &slice.state[column * n + k], &tile.y[c], nullptr,
                                  nullptr, tile.ahead, c * sizeof(S));
        });
      }
      for (int64_t t = 0; t < size; ++t) {
        tile.measure(slice, t);
        tile.read(slice, a.z, a.z_batch, a.z_token, first + t, tile.row.get());
        for (int64_t c = 0; c < slice.padded; c += slice.kWidth) {
          const int64_t at = t * tile.stride + c;
          const V z = load(&tile.row[c]);
          const V value = load(&tile.y[at]) * load(&tile.scale[c]) + load(&slice.skip[c]) * load(&tile.u[at]);
          store(&tile.row[c], value * z * sigmoid<T>(z));
        }
        tile.write(slice, tile.row.get(), first + t, a.out);
      }
    };
    for_samples<Slice<T>>(a, begin, end, [&](std::vector<Slice<T>>& slices) {
      for (int64_t first = 0; first < a.length; first += a.chunk) {
        for (Slice<T>& slice : slices) advance(slice, first);
      }
    });
  });
}

// The recurrence backwards: `carry` is what the token after asks of the state, `x_grad` and `rate_sum` get the sums
// over states of the gradient of Δu B and of the decays' logarithms, `B_sums` and `C_sums` the terms of the gradients
// of B and C by lane.
template <class T, int kCount>
void walk_back(int64_t size, int64_t stride, int64_t n, bool first_block, bool first_column, const T* delta, const T* x,
               const T* y_grad, const T* B, const T* C, const Vec<T>* rates, const Vec<T>* kept, const Vec<T>* decays,
               Vec<T>* carry, Vec<T>* rates_grad, T* x_grad, T* rate_sum, Vec<T>* B_sums, Vec<T>* C_sums) {
  using V = Vec<T>;
  V from_next[kCount], rate_grad[kCount];
  for (int k = 0; k < kCount; ++k) {
    from_next[k] = carry[k];
    rate_grad[k] = rates_grad[k];
  }
  for (int64_t t = size - 1; t >= 0; --t) {
    const V step = load(delta + t * stride), in = load(x + t * stride), dy = load(y_grad + t * stride);
    V dx = first_block ? V{} : load(x_grad + t * stride);
    V sum = first_block ? V{} : load(rate_sum + t * stride);
#pragma GCC unroll 8
    for (int k = 0; k < kCount; ++k) {
      const V dh = from_next[k] + dy * splat(C[t * n + k]);
      V* B_sum = B_sums + t * n + k;
      V* C_sum = C_sums + t * n + k;
      *B_sum = dh * in + (first_column ? V{} : *B_sum);
      *C_sum = dy * kept[(t + 1) * kCount + k] + (first_column ? V{} : *C_sum);
      dx += dh * splat(B[t * n + k]);
      from_next[k] = dh * decays[t * kCount + k];
      const V dlog = from_next[k] * kept[t * kCount + k];
      rate_grad[k] += dlog * step;
      sum += dlog * rates[k];
    }
    store(x_grad + t * stride, dx);
    store(rate_sum + t * stride, sum);
  }
  for (int k = 0; k < kCount; ++k) {
    carry[k] = from_next[k];
    rates_grad[k] = rate_grad[k];
  }
}

// Gradients of B and C before the phase, and of the frequencies, from those after it in every slice.
template <class S, class T>
void turn_back(const ScanArguments& a, const Buffer<T>& B_parts, const Buffer<T>& C_parts) {
  const int64_t n = a.states, chunks = divide_up(a.length, a.chunk), slices = Slice<T>::count(a);
  Buffer<double> freq_parts(a.batch * chunks * n);
  at::parallel_for(0, a.batch * chunks, 1, [&](int64_t begin, int64_t end) {
    Buffer<T> total(n), value(n), result(n);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / chunks, first = i % chunks * a.chunk;
      const int64_t size = std::min(a.chunk, a.length - first);
      const Phase<T> phase(a, first, size);
      double* dfreq = &freq_parts[i * n];
      std::fill_n(dfreq, n, 0.0);
      const auto back = [&](const Buffer<T>& parts, const S* from, S* to, int64_t t) {
        const int64_t token = first + t;
        std::fill_n(total.get(), n, T(0));
        for (int64_t s = 0; s < slices; ++s) {
          const T* part = &parts[((sample * slices + s) * a.length + token) * n];
          for (int64_t k = 0; k < n; ++k) total[k] += part[k];
        }
        read_row(from, value.get(), n);
        const T *cos = &phase.cos[t * n], *sin = &phase.sin[t * n];
        const double position = token / a.rope_scale;
        for (int64_t k = 0; k < n; k += 2) {
          const T g0 = total[k], g1 = total[k + 1], x0 = value[k], x1 = value[k + 1];
          result[k] = g0 * cos[k] + g1 * sin[k + 1];
          result[k + 1] = g1 * cos[k + 1] - g0 * sin[k];
          dfreq[k] -= position * g0 * (x1 * cos[k] + x0 * sin[k]);
          dfreq[k + 1] += position * g1 * (x0 * cos[k + 1] - x1 * sin[k + 1]);
        }
        write_row(result.get(), to, n);
      };
      for (int64_t t = 0; t < size; ++t) {
        const int64_t token = first + t, to = (sample * a.length + token) * n;
        back(B_parts, static_cast<const S*>(a.B) + sample * a.B_batch + token * a.B_token, static_cast<S*>(a.dB) + to,
             t);
        back(C_parts, static_cast<const S*>(a.C) + sample * a.C_batch + token * a.C_token, static_cast<S*>(a.dC) + to,
             t);
      }
    }
  });
  for (int64_t k = 0; k < n; ++k) {
    double sum = 0;
    for (int64_t i = 0; i < a.batch * chunks; ++i) sum += freq_parts[i * n + k];
    static_cast<T*>(a.dfreq)[k] = static_cast<T>(sum);
  }
}

template <class T>
void sum_over_samples(const Buffer<T>& parts, int64_t batch, int64_t size, void* to) {
  for (int64_t i = 0; i < size; ++i) {
    T sum = 0;
    for (int64_t sample = 0; sample < batch; ++sample) sum += parts[sample * size + i];
    static_cast<T*>(to)[i] = sum;
  }
}

template <class T>
struct BackwardSlice : Slice<T> {
  using V = Vec<T>;
  BackwardSlice(const ScanArguments& a, int64_t index)
      : Slice<T>(a, index),
        index(index),
        carry(this->columns * a.states, V{}),
        rates_grad(this->columns * a.states, V{}),
        skip_grad(this->padded, T(0)),
        bias_grad(this->padded, T(0)) {}

  int64_t index;
  Buffer<V> carry, rates_grad;
  Buffer<T> skip_grad, bias_grad;
};

template <class S, class T>
void backward(const ScanArguments& a) {
  using V = Vec<T>;
  const Turned<S, T> turned(a);
  const int64_t n = a.states, chunks = divide_up(a.length, a.chunk), slices = Slice<T>::count(a);
  for (void* result : {a.du, a.ddt, a.dz}) prefer_large_pages(result, a.batch * a.length * a.channels * sizeof(S));
  Buffer<T> B_parts(a.batch * slices * a.length * n), C_parts(a.batch * slices * a.length * n);
  Buffer<T> A_parts(a.batch * a.channels * n), D_parts(a.batch * a.channels), bias_parts(a.batch * a.channels);

  at::parallel_for(0, a.batch * slices, 1, [&](int64_t begin, int64_t end) {
    const FlushSubnormals flush;
    Tile<S, T> tile(a);
    const int64_t width = kLanes<T>, stride = tile.stride, vectors = stride / width * n;
    Buffer<V> kept((a.chunk + 1) * vectors), decays(a.chunk * vectors);
    Buffer<V> B_sums(a.chunk * n), C_sums(a.chunk * n);
    Buffer<T> slope(a.chunk * stride), ungated(a.chunk * stride), x_grad(a.chunk * stride), rate_sum(a.chunk * stride);
    Buffer<T> other_row(stride);

    const auto retreat = [&](BackwardSlice<T>& slice, int64_t chunk) {
      const int64_t first = chunk * a.chunk, size = std::min(a.chunk, a.length - first);
      slice.gather(slice.boundary(a, chunk), slice.state);
      tile.enter(slice, first, size, slope.get());
      tile.look_ahead(slice, first);
      tile.look_ahead(slice, a.grad, a.grad_batch, a.grad_token, first);
      tile.look_ahead(slice, a.dz, first);
      tile.look_ahead(slice, a.du, first);
      tile.look_ahead(slice, a.ddt, first);
      const T* B = &turned.B[(slice.sample * a.length + first) * n];
      const T* C = &turned.C[(slice.sample * a.length + first) * n];
      for (int64_t column = 0; column < slice.columns; ++column) {
        const int64_t c = column * width;
        for_state_blocks<8>(n, [&](auto count, int64_t k) {
          const int64_t at = column * n + k;
          walk<T, count(), true>(size, stride, n, k == 0, &tile.delta[c], &tile.x[c], B + k, C + k, &slice.rates[at],
                                 &slice.state[at], &tile.y[c], &kept[at * (a.chunk + 1)], &decays[at * a.chunk],
                                 tile.ahead, c * sizeof(S));
        });
      }

      // Through gate, skip and norm: y becomes the gradient of y.
      for (int64_t t = 0; t < size; ++t) {
        tile.measure(slice, t);
        tile.read(slice, a.z, a.z_batch, a.z_token, first + t, tile.row.get());
        tile.read(slice, a.grad, a.grad_batch, a.grad_token, first + t, other_row.get());
        for (int64_t c = 0; c < slice.padded; c += width) {
          const int64_t at = t * stride + c;
          const V z = load(&tile.row[c]), grad = load(&other_row[c]), u = load(&tile.u[at]);
          const V normed = load(&tile.y[at]) * load(&tile.scale[c]);
          const V gate = sigmoid<T>(z);
          const V value = normed + load(&slice.skip[c]) * u;
          const V by_value = grad * z * gate;
          store(&tile.row[c], grad * value * gate * (splat(T(1)) + z * (splat(T(1)) - gate)));
          store(&slice.skip_grad[c], load(&slice.skip_grad[c]) + by_value * u);
          store(&tile.y[at], normed);
          store(&ungated[at], by_value);
        }
        tile.write(slice, tile.row.get(), first + t, a.dz);
        for (int64_t from = 0; from < slice.channels; from += a.group) {
          T* normed = &tile.y[t * stride + from];
          const T* by_normed = &ungated[t * stride + from];
          T along = 0;
#pragma omp simd reduction(+ : along)
          for (int64_t c = 0; c < a.group; ++c) along += normed[c] * by_normed[c];
          along /= a.group;
          const T scale = tile.scale[from];
          for (int64_t c = 0; c < a.group; ++c) normed[c] = scale * (by_normed[c] - normed[c] * along);
        }
      }

      for (int64_t column = 0; column < slice.columns; ++column) {
        const int64_t c = column * width;
        for_state_blocks<8>(n, [&](auto count, int64_t k) {
          const int64_t at = column * n + k;
          walk_back<T, count()>(size, stride, n, k == 0, column == 0, &tile.delta[c], &tile.x[c], &tile.y[c], B + k,
                                C + k, &slice.rates[at], &kept[at * (a.chunk + 1)], &decays[at * a.chunk],
                                &slice.carry[at], &slice.rates_grad[at], &x_grad[c], &rate_sum[c], &B_sums[k],
                                &C_sums[k]);
        });
      }
      sum_lanes(B_sums.get(), size * n, &B_parts[(slice.index * a.length + first) * n]);
      sum_lanes(C_sums.get(), size * n, &C_parts[(slice.index * a.length + first) * n]);

      const V ln2 = splat(1 / kLog2E<T>);
      for (int64_t t = 0; t < size; ++t) {
        for (int64_t c = 0; c < slice.padded; c += width) {
          const int64_t at = t * stride + c;
          const V dx = load(&x_grad[at]);
          store(&tile.row[c], dx * load(&tile.delta[at]) + load(&ungated[at]) * load(&slice.skip[c]));
          const V ddt = (dx * load(&tile.u[at]) + load(&rate_sum[at]) * ln2) * load(&slope[at]);
          store(&slice.bias_grad[c], load(&slice.bias_grad[c]) + ddt);
          store(&other_row[c], ddt);
        }
        tile.write(slice, tile.row.get(), first + t, a.du);
        tile.write(slice, other_row.get(), first + t, a.ddt);
      }
    };
    for_samples<BackwardSlice<T>>(a, begin, end, [&](std::vector<BackwardSlice<T>>& own) {
      for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
        for (BackwardSlice<T>& slice : own) retreat(slice, chunk);
      }
      for (const BackwardSlice<T>& slice : own) {
        const int64_t channel = slice.sample * a.channels + slice.first_channel;
        slice.scatter(slice.rates_grad, &A_parts[channel * n]);
        std::copy_n(slice.skip_grad.get(), slice.channels, &D_parts[channel]);
        std::copy_n(slice.bias_grad.get(), slice.channels, &bias_parts[channel]);
      }
    });
  });

  turn_back<S, T>(a, B_parts, C_parts);
  sum_over_samples(A_parts, a.batch, a.channels * n, a.dA);
  sum_over_samples(D_parts, a.batch, a.channels, a.dD);
  sum_over_samples(bias_parts, a.batch, a.channels, a.ddt_bias);
}

}  // namespace
}  // namespace defocus

// Both return 0, or 1 where memory ran out.
extern "C" int defocus_scan_forward(const defocus::ScanArguments* a) try {
  defocus::with_dtype(a->dtype, [a](auto* s, auto* t) {
    defocus::forward<std::decay_t<decltype(*s)>, std::decay_t<decltype(*t)>>(*a);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

extern "C" int defocus_scan_backward(const defocus::ScanArguments* a) try {
  defocus::with_dtype(a->dtype, [a](auto* s, auto* t) {
    defocus::backward<std::decay_t<decltype(*s)>, std::decay_t<decltype(*t)>>(*a);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

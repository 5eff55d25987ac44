// Causal depthwise convolution with SiLU: each row is read once, what backward needs is computed again.

#include <ATen/Parallel.h>

#include "vec.h"

namespace defocus {

// The same fields in the same order stand in causal_conv1d/cpu.py. Strides count elements; rows have stride 1.
struct ConvArguments {
  int64_t dtype, batch, length, channels, taps;
  const void *x, *grad;
  int64_t x_batch, x_token, grad_batch, grad_token;
  // In the dtype of the computation: weights (k, d) and bias (d), and their gradients.
  const void *weight, *bias;
  void *dweight, *dbias;
  // Contiguous, in the dtype of x.
  void *out, *dx;
};

namespace {

constexpr int64_t kTokens = 64;
constexpr int64_t kChannels = 256;

// A tile of kTokens tokens and kChannels channels, with as many tokens before as the taps reach.
template <class S, class T>
class Tile {
 public:
  using V = Vec<T>;
  static constexpr int kWidth = kLanes<T>;

  static int64_t chunks(const ConvArguments& a) { return divide_up(a.length, kTokens); }
  static int64_t slices(const ConvArguments& a) { return divide_up(a.channels, kChannels); }
  static int64_t count(const ConvArguments& a) { return a.batch * chunks(a) * slices(a); }

  // `more` is how many tokens after the tile are convolved too.
  Tile(const ConvArguments& a, int64_t more)
      : a(a), x((kTokens + a.taps - 1 + more) * kChannels), weight(a.taps * kChannels), bias(kChannels) {}

  void enter(int64_t index, int64_t more) {
    const int64_t slice = index % slices(a);
    part = index / slices(a);
    sample = part / chunks(a);
    first = part % chunks(a) * kTokens;
    size = std::min(kTokens, a.length - first);
    convolved = std::min(kTokens + more, a.length - first);
    first_channel = slice * kChannels;
    channels = std::min(kChannels, a.channels - first_channel);
    padded = divide_up(channels, kWidth) * kWidth;
    for (int64_t k = 0; k < a.taps; ++k) copy(a.weight, k * a.channels, &weight[k * kChannels]);
    copy(a.bias, 0, bias.get());
    for (int64_t t = 0; t < convolved + a.taps - 1; ++t) {
      const int64_t token = first + t - (a.taps - 1);
      T* to = &x[t * kChannels];
      int64_t filled = 0;
      if (token >= 0) {
        read_row(static_cast<const S*>(a.x) + sample * a.x_batch + token * a.x_token + first_channel, to, channels);
        filled = channels;
      }
      std::fill(to + filled, to + padded, T(0));
    }
  }

  // The convolution of token `first + t` before SiLU.
  V convolve(int64_t t, int64_t c) const {
    V sum = load(&bias[c]);
    for (int64_t k = 0; k < a.taps; ++k) sum += load(&weight[k * kChannels + c]) * load(&x[(t + k) * kChannels + c]);
    return sum;
  }

  S* result_row(void* to, int64_t t) const {
    return static_cast<S*>(to) + (sample * a.length + first + t) * a.channels + first_channel;
  }

  const ConvArguments& a;
  int64_t part = 0, sample = 0, first = 0, size = 0, convolved = 0, first_channel = 0, channels = 0, padded = 0;
  Buffer<T> x, weight, bias;

 private:
  void copy(const void* from, int64_t offset, T* to) const {
    std::copy_n(static_cast<const T*>(from) + offset + first_channel, channels, to);
    std::fill(to + channels, to + padded, T(0));
  }
};

template <class S, class T>
void forward(const ConvArguments& a) {
  using V = Vec<T>;
  prefer_large_pages(a.out, a.batch * a.length * a.channels * sizeof(S));
  at::parallel_for(0, Tile<S, T>::count(a), 1, [&](int64_t begin, int64_t end) {
    Tile<S, T> tile(a, 0);
    Buffer<T> row(kChannels);
    for (int64_t index = begin; index < end; ++index) {
      tile.enter(index, 0);
      for (int64_t t = 0; t < tile.size; ++t) {
        for (int64_t c = 0; c < tile.padded; c += tile.kWidth) {
          const V value = tile.convolve(t, c);
          store(&row[c], value * sigmoid<T>(value));
        }
        write_row(row.get(), tile.result_row(a.out, t), tile.channels);
      }
    }
  });
}

template <class S, class T>
void backward(const ConvArguments& a) {
  using V = Vec<T>;
  const int64_t parts = a.batch * Tile<S, T>::chunks(a), rows = a.taps + 1, more = a.taps - 1;
  // For each chunk of tokens the gradients of the weights, then of the bias: (parts, k + 1, d).
  prefer_large_pages(a.dx, a.batch * a.length * a.channels * sizeof(S));
  Buffer<T> sums(parts * rows * a.channels);
  at::parallel_for(0, Tile<S, T>::count(a), 1, [&](int64_t begin, int64_t end) {
    Tile<S, T> tile(a, more);
    Buffer<T> linear_grad((kTokens + more) * kChannels), sum(rows * kChannels), row(kChannels);
    for (int64_t index = begin; index < end; ++index) {
      tile.enter(index, more);
      std::fill_n(sum.get(), rows * kChannels, T(0));
      std::fill_n(row.get(), kChannels, T(0));
      for (int64_t t = 0; t < tile.size + more; ++t) {
        T* to = &linear_grad[t * kChannels];
        if (t >= tile.convolved) {
          std::fill_n(to, kChannels, T(0));
          continue;
        }
        const S* grad = static_cast<const S*>(a.grad) + tile.sample * a.grad_batch +
                        (tile.first + t) * a.grad_token + tile.first_channel;
        read_row(grad, row.get(), tile.channels);
        for (int64_t c = 0; c < tile.padded; c += tile.kWidth) {
          const V value = tile.convolve(t, c);
          const V gate = sigmoid<T>(value);
          store(to + c, load(&row[c]) * gate * (splat(T(1)) + value * (splat(T(1)) - gate)));
        }
      }
      for (int64_t t = 0; t < tile.size; ++t) {
        for (int64_t c = 0; c < tile.padded; c += tile.kWidth) {
          const V here = load(&linear_grad[t * kChannels + c]);
          V dx = V{};
          for (int64_t k = 0; k < a.taps; ++k) {
            // Tap k of token t + more - k looks at token t.
            dx += load(&tile.weight[k * kChannels + c]) * load(&linear_grad[(t + more - k) * kChannels + c]);
            T* to = &sum[k * kChannels + c];
            store(to, load(to) + here * load(&tile.x[(t + k) * kChannels + c]));
          }
          T* to = &sum[a.taps * kChannels + c];
          store(to, load(to) + here);
          store(&row[c], dx);
        }
        write_row(row.get(), tile.result_row(a.dx, t), tile.channels);
      }
      T* part = &sums[tile.part * rows * a.channels + tile.first_channel];
      for (int64_t k = 0; k < rows; ++k) std::copy_n(&sum[k * kChannels], tile.channels, part + k * a.channels);
    }
  });
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      T* to = k < a.taps ? static_cast<T*>(a.dweight) + k * a.channels : static_cast<T*>(a.dbias);
      std::fill_n(to, a.channels, T(0));
      for (int64_t part = 0; part < parts; ++part) {
        const T* from = &sums[(part * rows + k) * a.channels];
        for (int64_t c = 0; c < a.channels; ++c) to[c] += from[c];
      }
    }
  });
}

}  // namespace
}  // namespace defocus

// Both return 0, or 1 where memory ran out.
extern "C" int defocus_conv_forward(const defocus::ConvArguments* a) try {
  defocus::with_dtype(a->dtype, [a](auto* s, auto* t) {
    defocus::forward<std::decay_t<decltype(*s)>, std::decay_t<decltype(*t)>>(*a);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

extern "C" int defocus_conv_backward(const defocus::ConvArguments* a) try {
  defocus::with_dtype(a->dtype, [a](auto* s, auto* t) {
    defocus::backward<std::decay_t<decltype(*s)>, std::decay_t<decltype(*t)>>(*a);
  });
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

// Multi-scale deformable attention: rows of channels are read where a query looks, none of its samples is ever stored.

#include <ATen/Parallel.h>

#include <vector>

#include "vec.h"

namespace defocus {

// The same fields in the same order stand in deformable_attention/cpu.py. All is contiguous and in the dtype of the
// computation, with the axes of `deformable_attention`.
struct DeformableArguments {
  int64_t is_double, batch, tokens, queries, heads, width, maps, points;
  // (height, width) of each map.
  const int64_t* shapes;
  const void *value, *locations, *weights, *grad;
  void *out, *dvalue, *dlocations, *dweights;
};

namespace {

constexpr int kCorners = 4;

template <class T>
class Sampling {
 public:
  explicit Sampling(const DeformableArguments& a)
      : a(a),
        row(a.heads * a.width),
        samples(a.maps * a.points),
        value(static_cast<const T*>(a.value)),
        locations(static_cast<const T*>(a.locations)),
        weights(static_cast<const T*>(a.weights)) {
    for (int64_t map = 0, start = 0; map < a.maps; ++map) {
      starts.push_back(start);
      start += height(map) * width(map);
    }
  }

  int64_t height(int64_t map) const { return a.shapes[2 * map]; }
  int64_t width(int64_t map) const { return a.shapes[2 * map + 1]; }

  // First channel of a head in the first token of an image.
  int64_t value_start(int64_t image, int64_t head) const { return image * a.tokens * row + head * a.width; }
  int64_t out_start(int64_t image, int64_t query, int64_t head) const {
    return (image * a.queries + query) * row + head * a.width;
  }
  int64_t sample_start(int64_t image, int64_t query, int64_t head) const {
    return ((image * a.queries + query) * a.heads + head) * samples;
  }

  // The four neighbours of a point: where their rows lie after that of the first token, and their shares. One beyond
  // the edge has no row (-1).
  struct Point {
    int64_t rows[kCorners];
    T shares[kCorners];
    T right, below;  // how far the point is from its upper left neighbour
  };

  // Returns whether any neighbour lies in the map. A point at NaN does, so that its result is NaN too.
  bool locate(int64_t map, const T* location, Point& point) const {
    const int64_t h = height(map), w = width(map);
    // Pixel i covers i to i + 1, its value holds at its centre.
    const T x = location[0] * w - T(0.5), y = location[1] * h - T(0.5);
    if (!(x > -1 && x < w && y > -1 && y < h)) {
      if (x == x && y == y) return false;
      for (int corner = 0; corner < kCorners; ++corner) {
        point.rows[corner] = starts[map] * row;
        point.shares[corner] = x + y;
      }
      point.right = point.below = x + y;
      return true;
    }
    const int64_t left = static_cast<int64_t>(std::floor(x)), top = static_cast<int64_t>(std::floor(y));
    point.right = x - left;
    point.below = y - top;
    for (int corner = 0; corner < kCorners; ++corner) {
      const int64_t column = left + corner % 2, line = top + corner / 2;
      const bool inside = column >= 0 && column < w && line >= 0 && line < h;
      point.rows[corner] = inside ? (starts[map] + line * w + column) * row : -1;
      point.shares[corner] =
          (corner % 2 ? point.right : 1 - point.right) * (corner / 2 ? point.below : 1 - point.below);
    }
    return true;
  }

  const DeformableArguments& a;
  const int64_t row, samples;
  const T *value, *locations, *weights;

 private:
  std::vector<int64_t> starts;
};

template <class T>
void forward(const DeformableArguments& a) {
  using V = Vec<T>;
  constexpr int64_t kWidth = kLanes<T>;
  const Sampling<T> sampling(a);
  at::parallel_for(0, a.batch * a.queries, 16, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> rows(kCorners * sampling.samples);
    std::vector<T> shares(kCorners * sampling.samples);
    typename Sampling<T>::Point point;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t image = index / a.queries, query = index % a.queries;
      for (int64_t head = 0; head < a.heads; ++head) {
        const int64_t first = sampling.sample_start(image, query, head);
        int64_t size = 0;
        for (int64_t sample = 0; sample < sampling.samples; ++sample) {
          if (!sampling.locate(sample / a.points, sampling.locations + 2 * (first + sample), point)) continue;
          for (int corner = 0; corner < kCorners; ++corner) {
            if (point.rows[corner] < 0) continue;
            rows[size] = point.rows[corner];
            shares[size++] = point.shares[corner] * sampling.weights[first + sample];
          }
        }
        const T* from = sampling.value + sampling.value_start(image, head);
        T* to = static_cast<T*>(a.out) + sampling.out_start(image, query, head);
        int64_t c = 0;
        for (; c + kWidth <= a.width; c += kWidth) {
          V sum{};
          for (int64_t i = 0; i < size; ++i) sum += splat(shares[i]) * load(from + rows[i] + c);
          store(to + c, sum);
        }
        for (; c < a.width; ++c) {
          T sum = 0;
          for (int64_t i = 0; i < size; ++i) sum += shares[i] * from[rows[i] + c];
          to[c] = sum;
        }
      }
    }
  });
}

template <class T>
void backward(const DeformableArguments& a) {
  using V = Vec<T>;
  constexpr int64_t kWidth = kLanes<T>;
  const Sampling<T> sampling(a);
  T *dlocations = static_cast<T*>(a.dlocations), *dweights = static_cast<T*>(a.dweights);
  // Queries share the rows that they read, heads and images do not: who owns a head of an image adds to its rows
  // undisturbed and in one order.
  at::parallel_for(0, a.batch * a.heads, 1, [&](int64_t begin, int64_t end) {
    std::vector<typename Sampling<T>::Point> points(sampling.samples);
    std::vector<char> reads(sampling.samples);
    // Of each neighbour of each point the product of its row with the gradient: lanes of it, then the sum.
    Buffer<V> lanes(kCorners * sampling.samples);
    Buffer<T> products(kCorners * sampling.samples);
    for (int64_t index = begin; index < end; ++index) {
      const int64_t image = index / a.heads, head = index % a.heads;
      const T* from = sampling.value + sampling.value_start(image, head);
      T* dvalue = static_cast<T*>(a.dvalue) + sampling.value_start(image, head);
      for (int64_t token = 0; token < a.tokens; ++token) std::fill_n(dvalue + token * sampling.row, a.width, T(0));
      for (int64_t query = 0; query < a.queries; ++query) {
        const T* grad = static_cast<const T*>(a.grad) + sampling.out_start(image, query, head);
        const int64_t first = sampling.sample_start(image, query, head);
        for (int64_t sample = 0; sample < sampling.samples; ++sample) {
          auto& point = points[sample];
          reads[sample] = sampling.locate(sample / a.points, sampling.locations + 2 * (first + sample), point);
          for (int corner = 0; corner < kCorners; ++corner) {
            V product{};
            if (reads[sample] && point.rows[corner] >= 0) {
              const V share = splat(point.shares[corner] * sampling.weights[first + sample]);
              const T* read = from + point.rows[corner];
              T* write = dvalue + point.rows[corner];
              for (int64_t c = 0; c + kWidth <= a.width; c += kWidth) {
                const V g = load(grad + c);
                product += g * load(read + c);
                store(write + c, load(write + c) + share * g);
              }
            }
            lanes[sample * kCorners + corner] = product;
          }
        }
        sum_lanes<T>(lanes.get(), kCorners * sampling.samples, products.get());
        for (int64_t sample = 0; sample < sampling.samples; ++sample) {
          T* to = dlocations + 2 * (first + sample);
          if (!reads[sample]) {
            to[0] = to[1] = dweights[first + sample] = 0;
            continue;
          }
          const auto& point = points[sample];
          T* product = &products[sample * kCorners];
          const T weight = sampling.weights[first + sample];
          T dweight = 0;
          for (int corner = 0; corner < kCorners; ++corner) {
            if (point.rows[corner] < 0) continue;
            // What does not fill a vector.
            for (int64_t c = a.width / kWidth * kWidth; c < a.width; ++c) {
              product[corner] += grad[c] * from[point.rows[corner] + c];
              dvalue[point.rows[corner] + c] += point.shares[corner] * weight * grad[c];
            }
            dweight += point.shares[corner] * product[corner];
          }
          const int64_t map = sample / a.points;
          const T dx = (1 - point.below) * (product[1] - product[0]) + point.below * (product[3] - product[2]);
          const T dy = (1 - point.right) * (product[2] - product[0]) + point.right * (product[3] - product[1]);
          to[0] = weight * sampling.width(map) * dx;
          to[1] = weight * sampling.height(map) * dy;
          dweights[first + sample] = dweight;
        }
      }
    }
  });
}

}  // namespace
}  // namespace defocus

// Both return 0, or 1 where memory ran out.
extern "C" int defocus_deformable_forward(const defocus::DeformableArguments* a) try {
  a->is_double ? defocus::forward<double>(*a) : defocus::forward<float>(*a);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

extern "C" int defocus_deformable_backward(const defocus::DeformableArguments* a) try {
  a->is_double ? defocus::backward<double>(*a) : defocus::backward<float>(*a);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

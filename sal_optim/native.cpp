// The update of a step in one pass over memory, for tensors on a CPU: the same mathematics as
// update.py, stability.py and the optimizers' directions, element by element.
//
// native.py compiles it with these set:
//   REAL: the type of parameters, gradients and moments: float or double.
//   KEPT: the type of evidence and anchor: float, double or bf16.
//   ADAM, AMSGRAD, SGD, MOMENTUM, LION: 0 or 1, the base optimizer's rule.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

// A bfloat16 is the upper half of a float.
struct bf16 {
  uint16_t upper;
};

static inline float value(float x) { return x; }
static inline double value(double x) { return x; }
static inline float value(bf16 x) {
  uint32_t bits = uint32_t(x.upper) << 16;
  float found;
  std::memcpy(&found, &bits, 4);
  return found;
}
// A growing sum; `lower` carries the lost half up as rounding.py does.
static inline void keep(float &to, float x, uint32_t) { to = x; }
static inline void keep(double &to, double x, uint32_t) { to = x; }
static inline void keep(bf16 &to, float x, uint32_t lower) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to.upper = uint16_t((bits + lower) >> 16);
}

// What holds for all tensors of a call.
struct Numbers {
  double constants[4];   // of the base optimizer's rule
  double decay;          // lr * weight_decay where nothing is protected
  double coupled_decay;  // through the gradient
  double sign;           // of the gradient: -1 to maximize
  double protection, stiffness, scale, gathered, rounding;
};
// What a tensor has of its own.
struct Tensor {
  int64_t rows, columns;
  int64_t shared;  // whether evidence is a number a row times a number a column
  REAL *param;
  REAL *first, *second, *third;  // moments
  const KEPT *evidence;          // of the elements, or of the columns
  const KEPT *row;               // of the rows
  KEPT *pending, *pending_row;
  const KEPT *anchor;
  const REAL *grad;  // from here on, new in each step
  REAL *sums;        // of the gradient's squares, if shared: of each row, then of each column
  double factor, share, inverse;  // of the update; of its decay; of Adam's denominators
};

constexpr int64_t CHUNK = 16384;  // elements that stay in a core's cache from one loop to the next
struct Part {
  int64_t tensor, first, last;  // elements
};

// Where evidence is shared, whole rows, and no more parts of a tensor than `most`.
static std::vector<Part> cut(int64_t count, const Tensor *tensors,
                             int64_t most = std::numeric_limits<int64_t>::max()) {
  std::vector<Part> parts;
  for (int64_t t = 0; t < count; t++) {
    const int64_t size = tensors[t].rows * tensors[t].columns;
    if (!size) continue;
    int64_t step = CHUNK;
    if (tensors[t].shared) {
      const int64_t rows = tensors[t].rows, columns = tensors[t].columns;
      int64_t height = CHUNK > columns ? CHUNK / columns : 1;
      if (rows / height >= most) height = rows / most + 1;
      step = columns * height;
    }
    for (int64_t first = 0; first < size; first += step)
      parts.push_back({t, first, first + step < size ? first + step : size});
  }
  return parts;
}

// Of four stretches at a time, since a core fetches several streams faster than one, each in so many
// sums that no addition waits for the one before it.
static double sum_of_squares(const REAL *__restrict grad, int64_t size) {
  constexpr int64_t STRETCHES = 4, LANES = 16;
  REAL lanes[STRETCHES][LANES] = {}, sum = 0;
  const int64_t length = size / (STRETCHES * LANES) * LANES;
  for (int64_t i = 0; i < length; i += LANES)
    for (int64_t s = 0; s < STRETCHES; s++)
#pragma omp simd
      for (int64_t j = 0; j < LANES; j++) {
        const REAL one = grad[s * length + i + j];
        lanes[s][j] += one * one;
      }
  for (int64_t i = STRETCHES * length; i < size; i++) sum += grad[i] * grad[i];
  for (int64_t s = 0; s < STRETCHES; s++)
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < LANES; j++) sum += lanes[s][j];
  return double(sum);
}

// A core fetches streams ahead by itself, but anew at each page, and late where there are many. So
// as a block begins, one further on is asked for: 10% less time, none more in a cache. It is a hint,
// and may point past an end.
constexpr int64_t BLOCK = 64, AHEAD = 384, LINE = 64;  // elements, elements, bytes
template <bool written, typename T>
static inline void fetch(const T *block, int64_t size) {
  const char *ahead = reinterpret_cast<const char *>(block + AHEAD);
  for (int64_t byte = 0; byte < size * int64_t(sizeof(T)); byte += LINE)
    __builtin_prefetch(ahead + byte, written);
}

// The sum of squares of the gradient comes for nothing, in a step that can take its norm this late.
template <bool gathers, bool guarded, bool pulled, bool moves>
static REAL span(const Numbers &numbers, const Tensor &tensor, int64_t first, int64_t size,
                 const KEPT *__restrict evidence, REAL row) {
  REAL *__restrict param = tensor.param + first;
  const REAL *__restrict grad = tensor.grad + first;
  REAL *__restrict one = tensor.first + first;
  REAL *__restrict two = tensor.second + first;
  REAL *__restrict three = tensor.third + first;
  KEPT *__restrict pending = tensor.pending + first;
  const KEPT *__restrict anchor = tensor.anchor + first;
  const REAL coupled = numbers.coupled_decay, sign = numbers.sign, scale = numbers.scale;
  const REAL gathered = numbers.gathered;
  const REAL protection = numbers.protection, stiffness = numbers.stiffness;
  const REAL stays = 1 - numbers.decay;
  const REAL factor = tensor.factor, share = tensor.share, inverse = tensor.inverse;
  const uint32_t lower = uint32_t(numbers.rounding * 65536.0);
#if ADAM
  const REAL beta1 = 1 - numbers.constants[0], beta2 = numbers.constants[1];
  const REAL beta2_rest = 1 - numbers.constants[1], eps = numbers.constants[2];
#elif SGD
  const REAL momentum = numbers.constants[0], enters = numbers.constants[1];
  const REAL of_grad = numbers.constants[2], of_momentum = numbers.constants[3];
#else
  const REAL beta1 = numbers.constants[0], beta1_rest = 1 - numbers.constants[0];
  const REAL beta2 = numbers.constants[1], beta2_rest = 1 - numbers.constants[1];
#endif
  REAL sum = 0;
  for (int64_t begin = 0; begin < size; begin += BLOCK) {
    const int64_t end = begin + BLOCK < size ? begin + BLOCK : size, length = end - begin;
    fetch<false>(grad + begin, length);
    if (gathers) fetch<true>(pending + begin, length);
    if (guarded) fetch<false>(evidence + begin, length);
    if (pulled) fetch<false>(anchor + begin, length);
    if (moves) {
      fetch<true>(param + begin, length);
#if ADAM || LION || MOMENTUM
      fetch<true>(one + begin, length);
#endif
#if ADAM
      fetch<true>(two + begin, length);
#endif
#if AMSGRAD
      fetch<true>(three + begin, length);
#endif
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; i++) {
      const REAL raw = grad[i];
      if (!gathers && !pulled) sum += raw * raw;
      REAL weight = param[i];
      if (gathers) {
        const REAL scaled = raw * gathered;
        keep(pending[i], value(pending[i]) + scaled * scaled, lower);
      }
      if (!moves) continue;
      const REAL slope = sign * raw + coupled * weight;
#if ADAM
      const REAL mean = one[i] + beta1 * (slope - one[i]);
      REAL square = two[i] * beta2 + slope * slope * beta2_rest;
      one[i] = mean;
      two[i] = square;
#if AMSGRAD
      const REAL most = three[i];
      square = most > square || most != most ? most : square;
      three[i] = square;
#endif
      const REAL size_of = std::sqrt(square) * inverse + eps;
      REAL update = mean;
#elif SGD
      const REAL size_of = 1;
#if MOMENTUM
      const REAL buffer = one[i] * momentum + slope * enters;
      one[i] = buffer;
      REAL update = slope * of_grad + buffer * of_momentum;
#else
      REAL update = slope;
#endif
#else
      const REAL size_of = 1, mean = one[i];
      const REAL blend = mean * beta1 + slope * beta1_rest;
      one[i] = mean * beta2 + slope * beta2_rest;
      REAL update = blend > 0 ? REAL(1) : blend < 0 ? REAL(-1) : blend;
#endif
      REAL divisor = size_of, known = 0;
      if (guarded) {
        known = row * value(evidence[i]);
        update += weight * size_of * share;
        REAL resisted = known * protection;
#if LION
        const REAL active = raw * scale * (raw * scale);
        resisted = known / (active < REAL(1e-24) ? REAL(1e-24) : active) * protection;
#endif
        divisor = size_of * (1 + resisted);
      } else {
        weight *= stays;
      }
      weight += factor * (update / divisor);
      if (pulled) {
        const REAL spring = known * stiffness;
        weight += spring / (spring + size_of) * (REAL(value(anchor[i])) - weight);
      }
      param[i] = weight;
    }
  }
  return sum;
}

// Evidence of an element is row * column / (mean of the columns).
static REAL share_of_rows(const Tensor &tensor) {
  REAL sum = 0;
  for (int64_t c = 0; c < tensor.columns; c++) sum += value(tensor.evidence[c]);
  const REAL mean = sum / REAL(tensor.columns), tiny = std::numeric_limits<REAL>::min();
  return 1 / (mean < tiny ? tiny : mean);
}

// Means by row and by column, into the pending evidence.
static void gather_shared(const Numbers &numbers, const Tensor &tensor) {
  const int64_t rows = tensor.rows, columns = tensor.columns;
  const uint32_t lower = uint32_t(numbers.rounding * 65536.0);
  // Squares of what is very small or large leave the range of a float one by one.
  const double square = numbers.gathered * numbers.gathered;
  const double of_row = square / double(columns), of_column = square / double(rows);
  for (int64_t r = 0; r < rows; r++) {
    KEPT &sum = tensor.pending_row[r];
    keep(sum, value(sum) + REAL(tensor.sums[r] * of_row), lower);
  }
  for (int64_t c = 0; c < columns; c++) {
    KEPT &sum = tensor.pending[c];
    keep(sum, value(sum) + REAL(tensor.sums[rows + c] * of_column), lower);
  }
}

template <bool gathers, bool guarded, bool pulled, bool moves = true>
static void advance(const Numbers &numbers, int64_t count, const Tensor *tensors,
                    const std::vector<Part> &parts, double *squares, int threads) {
  std::vector<REAL> shares(guarded ? size_t(count) : 0);
  for (size_t t = 0; t < shares.size(); t++)
    if (tensors[t].shared) shares[t] = share_of_rows(tensors[t]);
  if (gathers)
    for (int64_t t = 0; t < count; t++)
      if (tensors[t].shared && tensors[t].rows * tensors[t].columns)
        gather_shared(numbers, tensors[t]);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t p = 0; p < int64_t(parts.size()); p++) {
    const Part &part = parts[p];
    const Tensor &tensor = tensors[part.tensor];
    double sum = 0;
    if (!tensor.shared) {
      sum = span<gathers, guarded, pulled, moves>(numbers, tensor, part.first,
                                                  part.last - part.first,
                                                  tensor.evidence + part.first, 1);
    } else {
      for (int64_t first = part.first; first < part.last; first += tensor.columns) {
        REAL row = 1;
        if (guarded) row = value(tensor.row[first / tensor.columns]) * shares[part.tensor];
        sum += span<false, guarded, pulled, moves>(numbers, tensor, first, tensor.columns,
                                                   tensor.evidence, row);
      }
    }
    if (squares) squares[p] = sum;
  }
}

// Sums are taken part by part in a fixed order: the same with any number of threads.
static void by_tensor(const std::vector<Part> &parts, const double *found, double *squares) {
  for (size_t p = 0; p < parts.size(); p++) squares[parts[p].tensor] += found[p];
}

// One step. `squares`: of each tensor's gradient, zeros before; null where it gathers or pulls.
extern "C" void sal_advance(const Numbers *numbers, int64_t count, const Tensor *tensors,
                            double *squares, int plan, int threads) {
  const std::vector<Part> parts = cut(count, tensors);
  std::vector<double> found(squares ? parts.size() : 0);
  double *sums = squares ? found.data() : nullptr;
  switch (plan) {  // gathers, is guarded, pulls, does not move: 1, 2, 4, 8
    case 0: advance<false, false, false>(*numbers, count, tensors, parts, sums, threads); break;
    case 1: advance<true, false, false>(*numbers, count, tensors, parts, sums, threads); break;
    case 2: advance<false, true, false>(*numbers, count, tensors, parts, sums, threads); break;
    case 3: advance<true, true, false>(*numbers, count, tensors, parts, sums, threads); break;
    case 6: advance<false, true, true>(*numbers, count, tensors, parts, sums, threads); break;
    case 9: advance<true, false, false, false>(*numbers, count, tensors, parts, sums, threads); break;
    default: advance<true, true, true>(*numbers, count, tensors, parts, sums, threads);
  }
  if (squares) by_tensor(parts, sums, squares);
}

// The sum of squares of each gradient; where evidence is shared, by row and by column (zeros before)
// as well.
extern "C" void sal_squares(int64_t count, const Tensor *tensors, double *squares, int threads) {
  // Each part has sums by column of its own: as many with any number of threads.
  const std::vector<Part> parts = cut(count, tensors, 32);
  std::vector<size_t> places;
  size_t room = 0;
  for (const Part &part : parts) {
    places.push_back(room);
    if (tensors[part.tensor].shared) room += size_t(tensors[part.tensor].columns);
  }
  std::vector<double> found(parts.size());
  std::vector<REAL> columns(room, REAL(0));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t p = 0; p < int64_t(parts.size()); p++) {
    const Part &part = parts[p];
    const Tensor &tensor = tensors[part.tensor];
    if (!tensor.shared) {
      found[p] = sum_of_squares(tensor.grad + part.first, part.last - part.first);
      continue;
    }
    REAL *__restrict mine = columns.data() + places[p];
    for (int64_t first = part.first; first < part.last; first += tensor.columns) {
      const REAL *__restrict grad = tensor.grad + first;
      REAL sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < tensor.columns; c++) {
        const REAL square = grad[c] * grad[c];
        mine[c] += square;
        sum += square;
      }
      tensor.sums[first / tensor.columns] = sum;
      found[p] += sum;
    }
  }
  for (size_t p = 0; p < parts.size(); p++) {
    const Tensor &tensor = tensors[parts[p].tensor];
    if (!tensor.shared) continue;
    for (int64_t c = 0; c < tensor.columns; c++)
      tensor.sums[tensor.rows + c] += columns[places[p] + size_t(c)];
  }
  by_tensor(parts, found.data(), squares);
}

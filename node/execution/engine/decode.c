/* One token more for each of a few sequences: a decode step of a dense model of the Llama family on a CPU.

   compiled_decode.py calls it; llama.py, attention.py and norms.py say what it computes. Weights, cache and what
   is multiplied are bfloat16, as there; sums and the states between layers are float32. At one sequence nothing
   counts but how fast the weights come from memory: each matrix is read once, row by row, as it lies.

   C with GCC's vector types, for any processor; AVX512-BF16 multiplies where there is one that has it. */

#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef uint16_t bf16;

#ifdef __AVX512F__
enum { WORDS = 16 };
#else
enum { WORDS = 8 };
#endif

enum {
    PAIRS = 2 * WORDS, /* numbers of a vector: each of its words holds two */
    ROWS = 2,          /* of a matrix at once, where many sequences share them */
    BLOCK = 8,         /* sequences at once */
    AHEAD = 4096,      /* numbers from what is read to what is fetched: 29 GB/s without, 36 with it */
    LINE = 32,         /* numbers of a cache's line */
    SPINS = 4000,      /* before a waiting thread lets others have its core */
};

typedef uint32_t words __attribute__((vector_size(4 * WORDS)));
typedef float floats __attribute__((vector_size(4 * WORDS)));

/* As compiled_decode.py lays them out. Matrices are (out, in). */

typedef struct {
    const bf16 *attention_norm, *qkv, *qkv_bias, *qk_norm, *output, *mlp_norm, *gate, *up, *down;
    bf16 *keys, *values; /* (cache rows, KV heads, head size) */
} Layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, head_size, feed_forward, vocabulary, context, cache_rows;
    double epsilon;
    const bf16 *embedding, *cos, *sin; /* cos and sin (context, head size); sin is negative in its first half */
    const Layer *layer;
} Model;

/* What the threads of one step share: a row for each sequence. */
typedef struct {
    int64_t rows;
    const int64_t *tokens, *positions, *targets;
    float *states, *columns, *gate, *up;
    bf16 *mixed, *gated;
    atomic_int arrived, phase;
} Step;

/* What one thread has for itself. */
typedef struct {
    int64_t number, count;
    float *scores, *head;
    bf16 *normed, *queries, *arranged;
} Thread;

/* out[k * apart + r] = row r of weights times row k of inputs. */
typedef struct {
    const bf16 *weights;
    int64_t stride; /* from one of their rows to the next */
    const bf16 *inputs;
    int64_t count, size;
    float *out;
    int64_t apart;
} Product;

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static inline bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    /* To the nearest, ties to even; a NaN stays one. */
    return x == x ? (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;
}

/* e^x without branches, so that loops over it become vectors: Cephes' expf, off by 2 units in the last place. */
static inline float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    /* 1.5 * 2^23 leaves no room for a fraction. */
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    int32_t bits;
    memcpy(&bits, &y, sizeof bits);
    bits += (int32_t)n * (1 << 23);
    memcpy(&y, &bits, sizeof y);
    return y;
}

static inline words load(const bf16 *at) {
    words v;
    memcpy(&v, at, sizeof v);
    return v;
}

static inline floats add_products(floats sum, words a, words b) {
#ifdef __AVX512BF16__
    return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (floats)(a << 16) * (floats)(b << 16);
    return sum + (floats)(a & 0xffff0000) * (floats)(b & 0xffff0000);
#endif
}

static inline float total(floats sums) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)sums);
#else
    float sum = 0;
    for (int i = 0; i < WORDS; i++) sum += sums[i];
    return sum;
#endif
}

/* out[k * apart + r] = row r of weights times row k of inputs, for rows and columns of them, which are constants.
   Inputs lie as arrange leaves them. */
static inline __attribute__((always_inline)) void tile(
    const int rows, const int columns, const Product *p, int64_t ahead, const bf16 *w, const bf16 *x, float *out) {
    floats sums[ROWS][BLOCK];
    int64_t i = 0;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < columns; k++) sums[r][k] = (floats){0};
    for (; i + PAIRS <= p->size; i += PAIRS, x += columns * PAIRS) {
        words row[ROWS];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            __builtin_prefetch(w + r * p->stride + i + ahead);
            row[r] = load(w + r * p->stride + i);
        }
#pragma GCC unroll 8
        for (int k = 0; k < columns; k++) {
            const words input = load(x + k * PAIRS);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) sums[r][k] = add_products(sums[r][k], row[r], input);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int k = 0; k < columns; k++) {
            float y = total(sums[r][k]);
            for (int64_t j = i; j < p->size; j++) y += widen(w[r * p->stride + j]) * widen(x[k * PAIRS + j - i]);
            out[k * p->apart + r] = y;
        }
}

#define TILE(R, N) \
    case N: \
        tile(R, N, p, ahead, w, x, out); \
        break;
#define TILES(R) TILE(R, 1) TILE(R, 2) TILE(R, 3) TILE(R, 4) TILE(R, 5) TILE(R, 6) TILE(R, 7) TILE(R, 8)

/* Lay a block's rows of inputs in turns, a vector of each: a tile then needs one address for all of them. */
static void arrange(const Product *p, const bf16 *x, int64_t columns, bf16 *out) {
    for (int64_t i = 0; i < p->size; i += PAIRS)
        for (int64_t k = 0; k < columns; k++, out += PAIRS)
            memcpy(out, x + k * p->size + i, (size_t)(p->size - i < PAIRS ? p->size - i : PAIRS) * sizeof *x);
}

/* Whole rows, as many as make AHEAD: of keys and values that are read, others lie between. */
static int64_t whole_rows(int64_t stride) { return AHEAD < stride ? AHEAD : AHEAD / stride * stride; }

/* The rows from from to to of the weights, with all inputs. */
static void multiply(const Product *p, Thread *t, int64_t from, int64_t to) {
    const int64_t padded = (p->size + PAIRS - 1) / PAIRS * PAIRS, ahead = whole_rows(p->stride);
    for (int64_t k = 0; k < p->count; k += BLOCK)
        arrange(p, p->inputs + k * p->size, p->count - k < BLOCK ? p->count - k : BLOCK, t->arranged + k * padded);
    for (int64_t r = from; r < to;) {
        /* For few inputs a row after the other: memory is fastest so, and it is what they wait for. */
        const int64_t rows = p->count > BLOCK / 2 && r + ROWS <= to ? ROWS : 1;
        for (int64_t k = 0; k < p->count; k += BLOCK) {
            const int64_t columns = p->count - k < BLOCK ? p->count - k : BLOCK;
            const bf16 *w = p->weights + r * p->stride, *x = t->arranged + k * padded;
            float *out = p->out + k * p->apart + r;
            if (rows == 1)
                switch (columns) { TILES(1) }
            else
                switch (columns) { TILES(ROWS) }
        }
        r += rows;
    }
}

/* 1 / sqrt(mean(x^2) + epsilon) */
static float norm_of(const float *x, int64_t size, double epsilon) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; i++) squares += x[i] * x[i];
    return 1.0f / sqrtf(squares / (float)size + (float)epsilon);
}

static void norm_rows(const Model *m, const Step *s, const bf16 *scale, bf16 *out) {
    for (int64_t b = 0; b < s->rows; b++) {
        const float *x = s->states + b * m->hidden;
        const float by = norm_of(x, m->hidden, m->epsilon);
        for (int64_t i = 0; i < m->hidden; i++) out[b * m->hidden + i] = narrow(x[i] * by * widen(scale[i]));
    }
}

/* states += weights times inputs, in the rows of the weights from from to to. */
static void add_product(
    const Model *m, Step *s, Thread *t, const bf16 *weights, const bf16 *inputs, int64_t size, int64_t from,
    int64_t to) {
    const Product product = {weights, size, inputs, s->rows, size, s->columns, m->hidden};
    multiply(&product, t, from, to);
    for (int64_t b = 0; b < s->rows; b++)
        for (int64_t r = from; r < to; r++) s->states[b * m->hidden + r] += s->columns[b * m->hidden + r];
}

/* Wait until every thread has come here. */
static void meet(Step *s, const Thread *t) {
    if (t->count == 1) return;
    const int phase = atomic_load(&s->phase);
    if (atomic_fetch_add(&s->arrived, 1) == t->count - 1) {
        atomic_store(&s->arrived, 0);
        atomic_fetch_add(&s->phase, 1);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&s->phase, memory_order_acquire) == phase; spins++)
        if (spins > SPINS) sched_yield();
}

/* Norm one head of query or key, where the model does, and turn it to its position. */
static void rotate(const Model *m, const float *head, const bf16 *scale, int64_t position, bf16 *out) {
    const int64_t size = m->head_size, half = size / 2;
    const float by = scale ? norm_of(head, size, m->epsilon) : 1.0f;
    const bf16 *cos = m->cos + position * size, *sin = m->sin + position * size;
    for (int64_t i = 0; i < size; i++) {
        const int64_t other = i < half ? i + half : i - half;
        const float x = scale ? head[i] * by * widen(scale[i]) : head[i];
        const float y = scale ? head[other] * by * widen(scale[other]) : head[other];
        out[i] = narrow(x * widen(cos[i]) + y * widen(sin[i]));
    }
}

/* Store one key and value of a sequence and mix the values for the query heads that share them. */
static void attend(const Model *m, const Layer *layer, Step *s, Thread *t, int64_t b, int64_t kv) {
    const int64_t size = m->head_size, group = m->heads / m->kv_heads, width = m->kv_heads * size;
    const int64_t position = s->positions[b], seen = position + 1, first = s->targets[b] - position;
    const float *columns = s->columns + b * (m->heads + 2 * m->kv_heads) * size;
    bf16 *keys = layer->keys + first * width + kv * size, *values = layer->values + first * width + kv * size;

    for (int64_t h = 0; h <= group; h++) {
        const int64_t head = h < group ? kv * group + h : m->heads + kv;
        const float *from = columns + head * size;
        const bf16 *scale = layer->qk_norm ? layer->qk_norm + head * size : 0;
        rotate(m, from, scale, position, h < group ? t->queries + h * size : keys + position * width);
    }
    const float *value = columns + (m->heads + m->kv_heads + kv) * size;
    for (int64_t i = 0; i < size; i++) values[position * width + i] = narrow(value[i]);

    const Product product = {keys, width, t->queries, group, size, t->scores, m->context};
    multiply(&product, t, 0, seen);
    const float scale = 1.0f / sqrtf((float)size);
    float *mixed = t->head;
    memset(mixed, 0, (size_t)(group * size) * sizeof *mixed);
    for (int64_t h = 0; h < group; h++) {
        float *scores = t->scores + h * m->context, most = scores[0], sum = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < seen; i++) most = scores[i] > most ? scores[i] : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < seen; i++) sum += scores[i] = exp_of((scores[i] - most) * scale);
        for (int64_t i = 0; i < seen; i++) scores[i] /= sum;
    }
    const int64_t ahead = whole_rows(width);
    for (int64_t i = 0; i < seen; i++) {
        const bf16 *v = values + i * width;
        for (int64_t j = 0; j < size; j += LINE) __builtin_prefetch(v + ahead + j);
        for (int64_t h = 0; h < group; h++) {
            const float share = t->scores[h * m->context + i];
            for (int64_t j = 0; j < size; j++) mixed[h * size + j] += share * widen(v[j]);
        }
    }
    bf16 *out = s->mixed + (b * m->heads + kv * group) * size;
    for (int64_t i = 0; i < group * size; i++) out[i] = narrow(mixed[i]);
}

/* One thread's share of the step. */
static void run(const Model *m, Step *s, Thread *t) {
    const int64_t columns = (m->heads + 2 * m->kv_heads) * m->head_size, n = s->rows;
#define FROM(all) ((all) * t->number / t->count)
#define TO(all) ((all) * (t->number + 1) / t->count)
    for (const Layer *layer = m->layer; layer < m->layer + m->layers; layer++) {
        norm_rows(m, s, layer->attention_norm, t->normed);
        const Product qkv = {layer->qkv, m->hidden, t->normed, n, m->hidden, s->columns, columns};
        multiply(&qkv, t, FROM(columns), TO(columns));
        for (int64_t b = 0; layer->qkv_bias && b < n; b++)
            for (int64_t r = FROM(columns); r < TO(columns); r++)
                s->columns[b * columns + r] += widen(layer->qkv_bias[r]);
        meet(s, t);
        for (int64_t i = FROM(n * m->kv_heads); i < TO(n * m->kv_heads); i++)
            attend(m, layer, s, t, i / m->kv_heads, i % m->kv_heads);
        meet(s, t);
        add_product(m, s, t, layer->output, s->mixed, m->heads * m->head_size, FROM(m->hidden), TO(m->hidden));
        meet(s, t);
        norm_rows(m, s, layer->mlp_norm, t->normed);
        const int64_t from = FROM(m->feed_forward), to = TO(m->feed_forward);
        const Product gate = {layer->gate, m->hidden, t->normed, n, m->hidden, s->gate, m->feed_forward};
        const Product up = {layer->up, m->hidden, t->normed, n, m->hidden, s->up, m->feed_forward};
        multiply(&gate, t, from, to);
        multiply(&up, t, from, to);
        for (int64_t b = 0; b < n; b++)
            for (int64_t i = b * m->feed_forward + from; i < b * m->feed_forward + to; i++)
                s->gated[i] = narrow(s->gate[i] / (1.0f + exp_of(-s->gate[i])) * s->up[i]);
        meet(s, t);
        add_product(m, s, t, layer->down, s->gated, m->feed_forward, FROM(m->hidden), TO(m->hidden));
        meet(s, t);
    }
}

/* Cut the next piece from memory, on a line of its own. */
static void *cut(uintptr_t *memory, int64_t count, size_t size) {
    const uintptr_t piece = *memory;
    *memory += ((size_t)count * size + 63) / 64 * 64;
    return (void *)piece;
}

/* Lay out what a step of at most so many rows needs from memory on, and return where it ends. */
static uintptr_t lay_out(const Model *m, Step *s, Thread *threads, int64_t rows, int64_t count, uintptr_t memory) {
    const int64_t columns = (m->heads + 2 * m->kv_heads) * m->head_size, group = m->heads / m->kv_heads;
    const int64_t mixed = m->heads * m->head_size, most = rows > group ? rows : group;
    const int64_t wider = m->feed_forward > m->hidden ? m->feed_forward : m->hidden;
    s->states = cut(&memory, rows * m->hidden, sizeof(float));
    s->columns = cut(&memory, rows * (columns > m->hidden ? columns : m->hidden), sizeof(float));
    s->gate = cut(&memory, rows * m->feed_forward, sizeof(float));
    s->up = cut(&memory, rows * m->feed_forward, sizeof(float));
    s->mixed = cut(&memory, rows * mixed, sizeof(bf16));
    s->gated = cut(&memory, rows * m->feed_forward, sizeof(bf16));
    for (Thread *t = threads; t < threads + count; t++) {
        t->scores = cut(&memory, group * m->context, sizeof(float));
        t->head = cut(&memory, group * m->head_size, sizeof(float));
        t->normed = cut(&memory, rows * m->hidden, sizeof(bf16));
        t->queries = cut(&memory, group * m->head_size, sizeof(bf16));
        t->arranged = cut(&memory, most * ((wider > mixed ? wider : mixed) + PAIRS), sizeof(bf16));
    }
    return memory;
}

/* The bytes that a step of at most so many rows needs. */
int64_t decode_bytes(const Model *m, int64_t rows, int64_t threads) {
    Step s;
    Thread all[threads];
    return (int64_t)lay_out(m, &s, all, rows, threads, 0);
}

/* Compute the last states (rows, hidden) of one token of each sequence. Inputs are (3, rows): tokens, positions,
   and the cache's rows that are written, each as far behind the first one of its sequence as the position says.
   Return 0, or the number from 1 on of the first sequence whose inputs are out of bounds: nothing is done then. */
int64_t decode(const Model *m, int64_t rows, const int64_t *inputs, bf16 *hidden, void *memory, int64_t threads) {
    Step s = {.rows = rows, .tokens = inputs, .positions = inputs + rows, .targets = inputs + 2 * rows};
    Thread all[threads];
    for (int64_t b = 0; b < rows; b++)
        if (s.tokens[b] < 0 || s.tokens[b] >= m->vocabulary || s.positions[b] < 0 ||
            s.positions[b] >= m->context || s.targets[b] < s.positions[b] || s.targets[b] >= m->cache_rows)
            return b + 1;
    lay_out(m, &s, all, rows, threads, (uintptr_t)memory);
    for (int64_t b = 0; b < rows; b++)
        for (int64_t i = 0; i < m->hidden; i++)
            s.states[b * m->hidden + i] = widen(m->embedding[s.tokens[b] * m->hidden + i]);
#pragma omp parallel num_threads((int)threads) if (threads > 1)
    {
        Thread *t = all + omp_get_thread_num();
        t->number = omp_get_thread_num();
        t->count = omp_get_num_threads();
        run(m, &s, t);
    }
    for (int64_t i = 0; i < rows * m->hidden; i++) hidden[i] = narrow(s.states[i]);
    return 0;
}

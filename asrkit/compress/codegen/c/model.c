/* Made by asrkit: a network for vectors of @bytes@ bytes (@target@). It calls no library. */
#include "@name@.h"

#define VECTOR_BYTES @bytes@
@prelude@
#ifdef _OPENMP
#define PARALLEL _Pragma("omp parallel for")
#define PLACE(chunk) (chunk)
#else
#define PARALLEL
#define PLACE(chunk) 0 /* still in the cache from the chunk before */
#endif
#define UNUSED __attribute__((unused))
#define ARGUMENTS                                                                                                     \
  const unsigned char *weights UNUSED, float *work UNUSED, const float *const *inputs UNUSED,                         \
      float *const *outputs UNUSED
#define STEP(name) static NOINLINE void name(ARGUMENTS)
#define PART(name) static NOINLINE void name(ARGUMENTS, int chunk)

@kernels@
@steps@
typedef void step_function(ARGUMENTS);
static step_function *const steps[] = {@table@}, *const stages[] = {@run@};

int @name@_check(const void *weights, unsigned long long bytes) {
  const unsigned char *p = (const unsigned char *)weights;
  const char *magic = "asrkit-c";
  const unsigned long long *header = (const unsigned long long *)weights;
  if (bytes != @size@ull) return 1;
  for (int i = 0; i < 8; ++i)
    if (p[i] != (unsigned char)magic[i]) return 2;
  const unsigned *words = (const unsigned *)weights;
  unsigned low = 0, high = 0;
  for (unsigned long long i = 16; i < @size@ull / 4; ++i) high += low += words[i];
  return header[2] == ((unsigned long long)high << 32 | low) ? 0 : 3;
}

void @name@_run_step(int i, const void *weights, float *work, const float *const *inputs, float *const *outputs) {
  steps[i]((const unsigned char *)weights, work, inputs, outputs);
}

void @name@_run(const void *weights, float *work, const float *const *inputs, float *const *outputs) {
  for (int i = 0; i < @stages@; ++i) stages[i]((const unsigned char *)weights, work, inputs, outputs);
}

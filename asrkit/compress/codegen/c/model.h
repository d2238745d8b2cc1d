/* A network made by asrkit; see README.md. */
#ifndef @guard@
#define @guard@
#ifdef __cplusplus
extern "C" {
#endif

#define @guard@_WEIGHTS @size@ull /* bytes of weights.bin */
#define @guard@_WORKSPACE @workspace@ull /* floats */
#define @guard@_STEPS @count@
@shapes@
/* 0 if these are the weights of this network: 1 wrong size, 2 another file, 3 damaged. */
int @name@_check(const void *weights, unsigned long long bytes);

/* Weights and workspace lie at multiples of 64 bytes. Threads may share weights, but each call needs its own workspace. */
void @name@_run(const void *weights, float *work, const float *const *inputs, float *const *outputs);
/* One of the steps, to measure how long it takes: what steps leave to each other may lie in the same place, chunk by
   chunk of the pixels, so one after another they do not give the results of all together. */
void @name@_run_step(int i, const void *weights, float *work, const float *const *inputs, float *const *outputs);

#ifdef __cplusplus
}
#endif
#endif

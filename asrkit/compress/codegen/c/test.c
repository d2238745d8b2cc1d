/* Runs the network on the inputs in test/, compares its outputs with those there, and tells how long it takes. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "@name@.h"

/* The contents of a file, at a multiple of 64 bytes. */
static void *read_file(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    fprintf(stderr, "%s: cannot be read\n", path);
    exit(1);
  }
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  void *contents = aligned_alloc(64, (*bytes + 63) / 64 * 64);
  if (!contents || fread(contents, 1, *bytes, file) != *bytes) exit(1);
  fclose(file);
  return contents;
}

int main(int argc, char **argv) {
  const char *folder = argc > 1 ? argv[1] : ".";
  const int repeats = argc > 2 ? atoi(argv[2]) : 1;
  char path[4096];
  size_t bytes;
  snprintf(path, sizeof path, "%s/weights.bin", folder);
  void *weights = read_file(path, &bytes);
  if (@name@_check(weights, bytes)) {
    fprintf(stderr, "%s: not the weights of this network, or damaged\n", path);
    return 1;
  }
  float *work = aligned_alloc(64, (@guard@_WORKSPACE / 16 + 1) * 64);
  if (!work) return 1;
  const float *inputs[@inputs@ + 1] = {0};
  float *outputs[@outputs@ + 1] = {0};
  const float *wanted[@outputs@ + 1] = {0};
  size_t sizes[@outputs@ + 1] = {0};
  for (int i = 0; i < @inputs@; ++i) {
    snprintf(path, sizeof path, "%s/test/input-%d.bin", folder, i);
    inputs[i] = read_file(path, &bytes);
  }
  for (int i = 0; i < @outputs@; ++i) {
    snprintf(path, sizeof path, "%s/test/output-%d.bin", folder, i);
    wanted[i] = read_file(path, &sizes[i]);
    outputs[i] = malloc(sizes[i]);
  }
  clock_t start = clock();
  for (int i = 0; i < repeats; ++i) @name@_run(weights, work, inputs, outputs);
  double seconds = (double)(clock() - start) / CLOCKS_PER_SEC / repeats, worst = 0;
  for (int i = 0; i < @outputs@; ++i) {
    double largest = 1;
    for (size_t k = 0; k < sizes[i] / sizeof(float); ++k)
      if (fabs(wanted[i][k]) > largest) largest = fabs(wanted[i][k]);
    for (size_t k = 0; k < sizes[i] / sizeof(float); ++k) {
      double error = fabs((double)outputs[i][k] - wanted[i][k]) / largest;
      if (error > worst || error != error) worst = error;
    }
  }
  printf("largest difference %.2e, %.3f ms\n", worst, 1e3 * seconds);
  for (int i = 0; i < @outputs@; ++i) free(outputs[i]), free((void *)wanted[i]);
  for (int i = 0; i < @inputs@; ++i) free((void *)inputs[i]);
  free(work);
  free(weights);
  return worst <= @tolerance@ ? 0 : 1;
}

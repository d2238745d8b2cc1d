/* Made by asrkit: features of speech on standard input, float32, @bins@ a frame; text, greedily, on standard output. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "decoder/decoder.h"
#include "encoder/encoder.h"
#include "joiner/joiner.h"

enum { BINS = @bins@, CHUNK = @chunk@, SHIFT = @shift@, FINAL = @final@, FRAMES = @frames@ };
enum { SUBSAMPLING = @subsampling@, JOINT = @joint@, VOCAB = @vocab@, BLANK = 0 };
static const size_t encoder_state[] = {@encoder_state@}, decoder_state[] = {@decoder_state@};
enum { ENCODER_STATES = sizeof encoder_state / sizeof *encoder_state };
enum { DECODER_STATES = sizeof decoder_state / sizeof *decoder_state };

static void *zeros(size_t bytes) {
  bytes = (bytes / 64 + 1) * 64;
  void *memory = aligned_alloc(64, bytes);
  if (!memory) exit(1);
  return memset(memory, 0, bytes);
}

static FILE *open_file(const char *folder, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "rb");
  if (!file) fprintf(stderr, "%s: cannot be read\n", path), exit(1);
  return file;
}

static void *read_weights(const char *folder, const char *name, size_t bytes,
                          int check(const void *, unsigned long long)) {
  FILE *file = open_file(folder, name);
  void *weights = zeros(bytes);
  if (fread(weights, 1, bytes, file) != bytes || check(weights, bytes))
    fprintf(stderr, "%s: damaged, or of another network\n", name), exit(1);
  fclose(file);
  return weights;
}

/* A symbol of tokens.txt; in it U+2581 begins a word. */
static void print_symbol(const char *symbol) {
  for (; *symbol; ++symbol)
    if (strncmp(symbol, "\xe2\x96\x81", 3)) putchar(*symbol);
    else putchar(' '), symbol += 2;
}

int main(int argc, char **argv) {
  const char *folder = argc > 1 ? argv[1] : ".";
  static char symbols[VOCAB][64];
  FILE *tokens = open_file(folder, "tokens.txt");
  for (int i = 0; i < VOCAB; ++i)
    if (fscanf(tokens, "%63s %*d", symbols[i]) != 1) return 1;
  fclose(tokens);
  const void *encoder = read_weights(folder, "encoder/weights.bin", ENCODER_WEIGHTS, encoder_check);
  const void *decoder = read_weights(folder, "decoder/weights.bin", DECODER_WEIGHTS, decoder_check);
  const void *joiner = read_weights(folder, "joiner/weights.bin", JOINER_WEIGHTS, joiner_check);
  size_t most = ENCODER_WORKSPACE > DECODER_WORKSPACE ? ENCODER_WORKSPACE : DECODER_WORKSPACE;
  float *work = zeros(sizeof(float) * (most > JOINER_WORKSPACE ? most : JOINER_WORKSPACE));

  /* What a call gives as its state, the next one takes. */
  static float features[CHUNK * BINS], encoder_out[FRAMES * JOINT], decoder_out[JOINT], logits[VOCAB];
  float count, label = BLANK;
  const float *encoder_in[2 + ENCODER_STATES] = {features, &count}, *decoder_in[1 + DECODER_STATES] = {&label};
  float *encoder_to[1 + ENCODER_STATES] = {encoder_out}, *decoder_to[1 + DECODER_STATES] = {decoder_out};
  for (int i = 0; i < ENCODER_STATES; ++i) {
    encoder_in[2 + i] = zeros(sizeof(float) * encoder_state[i]);
    encoder_to[1 + i] = zeros(sizeof(float) * encoder_state[i]);
  }
  for (int i = 0; i < DECODER_STATES; ++i) {
    decoder_in[1 + i] = zeros(sizeof(float) * decoder_state[i]);
    decoder_to[1 + i] = zeros(sizeof(float) * decoder_state[i]);
  }

  size_t have = 0;
  decoder_run(decoder, work, decoder_in, decoder_to);
  for (int last = 0; !last;) {
    have += fread(features + have * BINS, sizeof(float) * BINS, CHUNK - have, stdin);
    const int next = getc(stdin);
    last = ungetc(next, stdin) == EOF;
    if (!have) break;
    memset(features + have * BINS, 0, sizeof(float) * BINS * (CHUNK - have));
    count = (float)have;
    encoder_run(encoder, work, encoder_in, encoder_to);
    for (int i = 0; i < ENCODER_STATES; ++i) {
      float *old = (float *)encoder_in[2 + i];
      encoder_in[2 + i] = encoder_to[1 + i], encoder_to[1 + i] = old;
    }
    const int frames = last ? (int)(have + SUBSAMPLING - 1) / SUBSAMPLING : FINAL;
    for (int t = 0; t < frames; ++t) {
      const float *joiner_in[2] = {encoder_out + t * JOINT, decoder_out};
      float *joiner_to[1] = {logits};
      joiner_run(joiner, work, joiner_in, joiner_to);
      int best = BLANK;
      for (int i = 0; i < VOCAB; ++i)
        if (logits[i] > logits[best]) best = i;
      if (best == BLANK) continue;
      print_symbol(symbols[best]);
      for (int i = 0; i < DECODER_STATES; ++i) {
        float *old = (float *)decoder_in[1 + i];
        decoder_in[1 + i] = decoder_to[1 + i], decoder_to[1 + i] = old;
      }
      label = (float)best;
      decoder_run(decoder, work, decoder_in, decoder_to);
    }
    fflush(stdout);
    memmove(features, features + SHIFT * BINS, sizeof(float) * BINS * (CHUNK - SHIFT));
    have = CHUNK - SHIFT;
  }
  putchar('\n');
  return 0;
}

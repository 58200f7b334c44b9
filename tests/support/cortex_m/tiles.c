/* Runs the tiles of tiles.c: their numbers from tiles.in, their outputs to tiles.out. */
#include "semihosting.h"

void run_cases(const uint8_t *in, uint8_t *out);

static uint8_t in[3 << 20] __attribute__((aligned(64))), out[640 << 10];
extern const uint32_t out_bytes;

int main(void) {
  const int numbers = open_file("tiles.in", 1), outputs = open_file("tiles.out", 5);
  const int32_t size = file_size(numbers);
  if (size < 0 || size > (int32_t)sizeof in || out_bytes > sizeof out || read_file(numbers, in, (size_t)size)) return 1;
  run_cases(in, out);
  return write_file(outputs, out, out_bytes) != 0;
}

/* Runs a generated network on a bare Cortex-M: images from IN, expected outputs from WANT, and what memory it took.

   Compile with -DMODEL=\"name.h\" -DNAME=name -DPREFIX=NAME -DIN=\"path\" -DWANT=\"path\" -DIMAGES=n, and -DBY_ROWS if the
   input arrives by rows. */
#include "semihosting.h"
#include MODEL

#define JOINED(A, B) A##_##B
#define JOIN(A, B) JOINED(A, B)
#define SIZE(WHAT) JOIN(PREFIX, WHAT)
#define CALL(WHAT) JOIN(NAME, WHAT)

uint32_t stack_bytes(void);
uint32_t static_bytes(void);

static int8_t got[SIZE(OUTPUT_BYTES)], want[SIZE(OUTPUT_BYTES)];
#ifdef BY_ROWS
static int8_t row[SIZE(ROW_BYTES)];
#endif

static void infer(int in) {
#ifdef BY_ROWS
  CALL(begin)();
  for (int i = 0; i < SIZE(ROWS); i++) {
    read_file(in, row, sizeof row);
    CALL(row)(row);
  }
  CALL(end)(got);
#else
  read_file(in, CALL(input)(), SIZE(INPUT_BYTES));
  CALL(invoke)(got);
#endif
}

int main(void) {
  const int in = open_file(IN, 1), expected = open_file(WANT, 1);
  uint32_t equal = 0;
  for (int i = 0; i < IMAGES; i++) {
    infer(in);
    read_file(expected, want, sizeof want);
    equal += !memcmp(got, want, sizeof got);
  }
  const uint32_t numbers[] = {equal, SIZE(ARENA_BYTES), static_bytes(), stack_bytes()};
  const char *const names[] = {"equal ", " arena ", " static ", " stack "};
  for (int i = 0; i < 4; i++) {
    print(names[i]);
    print_number(numbers[i]);
  }
  print("\n");
  return equal != IMAGES;
}

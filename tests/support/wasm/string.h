/* What generated C needs of a C library, for compilers without one. */
#ifndef STRING_H
#define STRING_H
#include <stddef.h>
static inline void *memcpy(void *restrict to, const void *restrict from, size_t size) {
  return __builtin_memcpy(to, from, size);
}
static inline void *memset(void *to, int value, size_t size) { return __builtin_memset(to, value, size); }
static inline int memcmp(const void *a, const void *b, size_t size) {
  const unsigned char *x = a, *y = b;
  for (; size; size--, x++, y++)
    if (*x != *y) return *x - *y;
  return 0;
}
#endif

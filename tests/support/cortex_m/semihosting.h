/* Files and output of the machine that debugs or emulates this processor (Arm's semihosting). */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline int semihosting(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static inline void print(const char *text) { semihosting(0x04, text); }

static inline void print_number(uint32_t value) {
  char text[12];
  int at = 11;
  text[at] = 0;
  do text[--at] = (char)('0' + value % 10);
  while (value /= 10);
  print(text + at);
}

/* A file's handle, or -1; mode 1 reads bytes and mode 5 writes them. */
static inline int open_file(const char *name, int mode) {
  const uintptr_t arguments[3] = {(uintptr_t)name, (uintptr_t)mode, strlen(name)};
  return semihosting(0x01, arguments);
}

/* Bytes that were not read or written: 0 is success. */
static inline int read_file(int file, void *to, size_t size) {
  const uintptr_t arguments[3] = {(uintptr_t)file, (uintptr_t)to, size};
  return semihosting(0x06, arguments);
}

static inline int write_file(int file, const void *from, size_t size) {
  const uintptr_t arguments[3] = {(uintptr_t)file, (uintptr_t)from, size};
  return semihosting(0x05, arguments);
}

static inline int32_t file_size(int file) {
  const uintptr_t arguments[1] = {(uintptr_t)file};
  return semihosting(0x0C, arguments);
}

/* Ends the emulator; processors of 32 bits cannot pass a status, so success and failure are all there is. */
static inline void leave(int failed) {
  semihosting(0x18, (const void *)(uintptr_t)(failed ? 0x20023 : 0x20026));
  for (;;) {
  }
}
#endif

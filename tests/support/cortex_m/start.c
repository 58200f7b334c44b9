/* From reset to main on a bare Cortex-M: FPU, initialized data, zeroed data, and paint on the stack. */
#include "semihosting.h"

#define PAINT 0xDEADBEEFu

extern uint32_t stack_top, data_start, data_end, data_image, bss_start, bss_end;
int main(void);
uint32_t stack_bytes(void);
uint32_t static_bytes(void);

static void reset(void) {
#if defined(__ARM_FP)
  *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: full access to the FPU */
  __asm__ volatile("dsb\n\tisb");
#endif
  memcpy(&data_start, &data_image, (size_t)((char *)&data_end - (char *)&data_start));
  memset(&bss_start, 0, (size_t)((char *)&bss_end - (char *)&bss_start));
  /* What lies below the stack of this function belongs to nobody yet. */
  volatile uint32_t *const used = (volatile uint32_t *)__builtin_frame_address(0) - 32;
  for (volatile uint32_t *p = &bss_end; p < used; p++) *p = PAINT;
  leave(main());
}

/* The deepest stack so far, or all there is if no paint is left. */
uint32_t stack_bytes(void) {
  const volatile uint32_t *p = &bss_end;
  while (p < &stack_top && *p == PAINT) p++;
  return (uint32_t)((const volatile char *)&stack_top - (const volatile char *)p);
}

/* Initialized and zeroed data. */
uint32_t static_bytes(void) { return (uint32_t)((char *)&bss_end - (char *)&data_start); }

static void fault(void) {
  print("fault\n");
  leave(1);
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, (const void *)reset, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault,
};

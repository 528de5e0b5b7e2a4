/* A bare PC in long mode: its first serial port, and Bochs' port for switching off. */
#include "calls.h"

static void out(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static uint8_t in(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

enum { SERIAL = 0x3f8, DIVISOR = 0x80, EIGHT_BITS = 3, READY = 0x20 };

void put(const char* bytes, size_t count) {
  for (size_t i = 0; i < count; i++) {
    while (!(in(SERIAL + 5) & READY)) continue;
    out(SERIAL, bytes[i]);
  }
}

/* Kernels call these two. */
void* memcpy(void* to, const void* from, size_t count) {
  void* start = to;
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
  return start;
}

void* memset(void* to, int value, size_t count) {
  void* start = to;
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(count) : "a"(value) : "memory");
  return start;
}

void boot(void) {
  /* 115200 baud. */
  out(SERIAL + 3, DIVISOR);
  out(SERIAL, 1);
  out(SERIAL + 1, 0);
  out(SERIAL + 3, EIGHT_BITS);
  run();
  /* A byte is ready to be replaced before the last one has gone. */
  while (!(in(SERIAL + 5) & 0x40)) continue;
  for (const char* c = "Shutdown"; *c; c++) out(0x8900, *c);
  for (;;) __asm__ volatile("hlt");
}

#include <unistd.h>

#include "calls.h"

void put(const char* bytes, size_t count) {
  for (ssize_t sent; count; bytes += sent, count -= sent)
    if ((sent = write(1, bytes, count)) < 0) _exit(2);
}

int main(void) { return run(); }

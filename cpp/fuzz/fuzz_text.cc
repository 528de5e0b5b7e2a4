// The text form: no input may do anything but load or raise, and what loads round-trips.
#include "vocabulary_fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  // Behind the 256 single bytes, without which nothing can load, and alone.
  static const std::string base = [] {
    std::string text;
    for (int byte = 0; byte < 256; ++byte) {
      char line[32];
      std::snprintf(line, sizeof(line), "%d b'\\x%02x' 1\n", byte + 1, byte);
      text += line;
    }
    return text;
  }();
  const std::string input(reinterpret_cast<const char*>(data), size);
  rwkv_world::fuzzing::CheckVocabulary(input);
  rwkv_world::fuzzing::CheckVocabulary(base + input);
  return 0;
}

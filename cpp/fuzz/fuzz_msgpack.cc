// The msgpack form: no input may do anything but load or raise, and what loads round-trips.
#include "vocabulary_fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  rwkv_world::fuzzing::CheckVocabulary(input);
  if (size == 0) return 0;
  // A map of the 256 single bytes, without which nothing can load, and of as many more entries
  // from the input as its first byte says.
  std::string blob = {'\xde', '\1', static_cast<char>(data[0])};
  for (int byte = 0; byte < 256; ++byte) {
    const int id = byte + 1;
    blob += {'\xcd', static_cast<char>(id >> 8), static_cast<char>(id & 0xff), '\xc4', '\1'};
    blob += static_cast<char>(byte);
  }
  rwkv_world::fuzzing::CheckVocabulary(blob + input.substr(1));
  return 0;
}

// A test program is a main function that ends with `return Failures();`.
#ifndef RWKV_WORLD_TESTS_CHECK_H_
#define RWKV_WORLD_TESTS_CHECK_H_

#include <cstdio>
#include <sstream>
#include <string>
#include <string_view>

#include "rwkv_world/tokenizer.h"

namespace rwkv_world::testing {

inline int failures = 0;

inline int Failures() {
  if (failures != 0) std::fprintf(stderr, "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}

inline void Report(const char* file, int line, const std::string& problem) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, problem.c_str());
  ++failures;
}

template <typename Actual, typename Expected>
void CheckEqual(const Actual& actual, const Expected& expected, const char* expression,
                const char* file, int line) {
  if (actual == expected) return;
  std::ostringstream problem;
  problem << expression << " is " << actual << ", expected " << expected;
  Report(file, line, problem.str());
}

// Runs `action`, which must throw an Error whose message contains `part`.
template <typename Error, typename Action>
void CheckFails(const Action& action, std::string_view part, const char* file, int line) {
  try {
    action();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (message.find(part) == std::string::npos) {
      Report(file, line, "the error is \"" + message + "\", expected " + std::string(part));
    }
    return;
  }
  Report(file, line, "no error, expected " + std::string(part));
}

}  // namespace rwkv_world::testing

#define CHECK(condition)              \
  ((condition) ? static_cast<void>(0) \
               : ::rwkv_world::testing::Report(__FILE__, __LINE__, "not so: " #condition))
#define CHECK_EQUAL(actual, expected) \
  ::rwkv_world::testing::CheckEqual(actual, expected, #actual, __FILE__, __LINE__)
#define CHECK_FAILS_WITH(error, action, part) \
  ::rwkv_world::testing::CheckFails<error>([&] { (void)(action); }, part, __FILE__, __LINE__)
#define CHECK_FAILS(action, part) CHECK_FAILS_WITH(::rwkv_world::VocabularyError, action, part)

#endif  // RWKV_WORLD_TESTS_CHECK_H_

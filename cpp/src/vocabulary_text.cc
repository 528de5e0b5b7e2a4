// The text form of a vocabulary: `id literal length` on each line.
#include "utf8.h"
#include "vocabulary.h"

namespace rwkv_world {
namespace {

// One line: the position in it moves on as its three fields are read.
class LineReader {
 public:
  LineReader(std::string_view line, std::size_t number, const VocabularyBuilder& builder)
      : rest_(line), number_(number), builder_(builder) {}

  uint64_t ReadNumber() {
    uint64_t value = 0;
    std::size_t digits = 0;
    while (digits < rest_.size() && rest_[digits] >= '0' && rest_[digits] <= '9') {
      // Nothing that is counted here has more digits, and 18 of them cannot overflow.
      if (digits == 18) Fail("a number has too many digits");
      value = value * 10 + static_cast<uint64_t>(rest_[digits++] - '0');
    }
    if (digits == 0) Fail("expected `id literal length`, found " + Found() + " for a number");
    rest_.remove_prefix(digits);
    return value;
  }

  void ReadSpace() {
    if (rest_.empty() || rest_[0] != ' ') Fail("expected a space, found " + Found());
    rest_.remove_prefix(1);
  }

  void ReadEnd() const {
    if (!rest_.empty()) Fail("expected the end of the line, found " + Found());
  }

  // Replaces `bytes` by the value of a Python literal, a str in UTF-8.
  void ReadLiteral(std::string* bytes) {
    bytes->clear();
    const bool is_bytes = !rest_.empty() && rest_[0] == 'b';
    if (is_bytes) rest_.remove_prefix(1);
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) {
      Fail("expected a quoted str or bytes literal, found " + Found());
    }
    const char quote = rest_[0];
    rest_.remove_prefix(1);
    for (;;) {
      const std::size_t plain = rest_.find_first_of(quote == '"' ? "\"\\" : "'\\");
      if (plain == std::string_view::npos) Fail("the literal has no closing quote");
      const std::string_view text = rest_.substr(0, plain);
      CheckPlain(text, is_bytes);
      *bytes += text;
      const char stop = rest_[plain];
      rest_.remove_prefix(plain + 1);
      if (stop == quote) return;
      ReadEscape(is_bytes, bytes);
    }
  }

  [[noreturn]] void Fail(const std::string& problem) const { builder_.Fail(number_, problem); }

 private:
  void CheckPlain(std::string_view text, bool is_bytes) const {
    if (!is_bytes) {
      if (!IsUtf8(text)) Fail("the literal is not valid UTF-8");
      return;
    }
    for (const char c : text) {
      if (static_cast<uint8_t>(c) >= 0x80) Fail("a bytes literal holds a byte that is not ASCII");
    }
  }

  // `rest_` starts behind the backslash.
  void ReadEscape(bool is_bytes, std::string* bytes) {
    if (rest_.empty()) Fail("the literal has no closing quote");
    const char kind = rest_[0];
    if (kind >= '0' && kind <= '7') return AppendCode(ReadDigits(3, 8, 1), is_bytes, bytes);
    rest_.remove_prefix(1);
    switch (kind) {
      case 'x':
        return AppendCode(ReadDigits(2, 16, 2), is_bytes, bytes);
      case 'u':
      case 'U':
        if (!is_bytes) {
          const std::size_t digits = kind == 'u' ? 4 : 8;
          return AppendCode(ReadDigits(digits, 16, digits), is_bytes, bytes);
        }
        break;
      case '\\':
      case '\'':
      case '"':
        return bytes->push_back(kind);
      case 'a':
        return bytes->push_back('\a');
      case 'b':
        return bytes->push_back('\b');
      case 'f':
        return bytes->push_back('\f');
      case 'n':
        return bytes->push_back('\n');
      case 'r':
        return bytes->push_back('\r');
      case 't':
        return bytes->push_back('\t');
      case 'v':
        return bytes->push_back('\v');
      default:
        break;
    }
    Fail("the literal has an unknown escape");
  }

  uint32_t ReadDigits(std::size_t most, uint32_t base, std::size_t least) {
    uint32_t value = 0;
    std::size_t count = 0;
    for (; count < most && !rest_.empty(); ++count) {
      const char c = rest_[0];
      uint32_t digit = base;
      if (c >= '0' && c <= '9') digit = static_cast<uint32_t>(c - '0');
      if (c >= 'a' && c <= 'f') digit = static_cast<uint32_t>(c - 'a') + 10;
      if (c >= 'A' && c <= 'F') digit = static_cast<uint32_t>(c - 'A') + 10;
      if (digit >= base) break;
      value = value * base + digit;
      rest_.remove_prefix(1);
    }
    if (count < least) Fail("the literal has an escape with too few digits");
    return value;
  }

  void AppendCode(uint32_t code, bool is_bytes, std::string* bytes) const {
    if (is_bytes) {
      if (code > 0xff) Fail("a bytes literal has an escape above 255");
      bytes->push_back(static_cast<char>(code));
      return;
    }
    if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
      Fail("the literal has an escape that is no character");
    }
    AppendUtf8(code, bytes);
  }

  std::string Found() const {
    if (rest_.empty()) return "the end of the line";
    return "byte " + std::to_string(static_cast<uint8_t>(rest_[0]));
  }

  std::string_view rest_;
  std::size_t number_;
  const VocabularyBuilder& builder_;
};

}  // namespace

Vocabulary ParseText(std::string_view blob, const std::string& name, std::size_t min_tokens) {
  VocabularyBuilder builder(name, "line", kFreshCopy);
  std::string bytes;
  for (std::size_t number = 1; !blob.empty(); ++number) {
    const std::size_t end = blob.find('\n');
    std::string_view text = blob.substr(0, end);
    blob.remove_prefix(end == std::string_view::npos ? blob.size() : end + 1);
    if (!text.empty() && text.back() == '\r') text.remove_suffix(1);

    LineReader line(text, number, builder);
    const uint64_t id = line.ReadNumber();
    line.ReadSpace();
    line.ReadLiteral(&bytes);
    line.ReadSpace();
    const uint64_t length = line.ReadNumber();
    line.ReadEnd();
    if (length != bytes.size()) {
      line.Fail("the literal has " + std::to_string(bytes.size()) + " bytes, and the line says " +
                std::to_string(length));
    }
    builder.Add(id, bytes, number);
  }
  return builder.Finish(min_tokens);
}

}  // namespace rwkv_world

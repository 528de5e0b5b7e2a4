#include "rwkv_world/tokenizer.h"
#include "utf8.h"

namespace rwkv_world {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

}  // namespace

std::string StreamDecoder::Push(int32_t id) {
  pending_ += tokenizer_.IdToBytes(id);
  std::string_view rest = pending_;
  std::string text;
  text.reserve(rest.size());
  while (!rest.empty()) {
    const Utf8Head head = ReadUtf8(rest);
    if (head.kind == Utf8Head::kIncomplete) break;
    text += head.kind == Utf8Head::kCharacter ? rest.substr(0, head.length) : kReplacement;
    rest.remove_prefix(head.length);
  }
  pending_.erase(0, pending_.size() - rest.size());
  return text;
}

std::string StreamDecoder::Finish() {
  const bool unfinished = !pending_.empty();
  pending_.clear();
  return std::string(unfinished ? kReplacement : std::string_view());
}

}  // namespace rwkv_world

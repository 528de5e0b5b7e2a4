// The msgpack form of a vocabulary: one map from ids to bytes.
#include "vocabulary.h"

namespace rwkv_world {
namespace {

class MsgpackReader {
 public:
  MsgpackReader(std::string_view blob, const VocabularyBuilder& builder)
      : blob_(blob), builder_(builder) {}

  std::size_t position() const { return position_; }
  bool at_end() const { return position_ == blob_.size(); }

  uint64_t ReadMapSize() {
    const std::size_t start = position_;
    const uint8_t tag = ReadTag();
    if ((tag & 0xf0) == 0x80) return tag & 0x0f;
    if (tag == 0xde) return ReadBigEndian(2);
    if (tag == 0xdf) return ReadBigEndian(4);
    FailAt(start, tag, "a map");
  }

  // A key: any integer that is not negative.
  uint64_t ReadId() {
    const std::size_t start = position_;
    const uint8_t tag = ReadTag();
    if (tag <= 0x7f) return tag;
    if (tag >= 0xcc && tag <= 0xcf) return ReadBigEndian(std::size_t{1} << (tag - 0xcc));
    if (tag >= 0xd0 && tag <= 0xd3) {
      const std::size_t width = std::size_t{1} << (tag - 0xd0);
      const uint64_t value = ReadBigEndian(width);
      if (value >> (8 * width - 1) == 0) return value;
    }
    FailAt(start, tag, "a token id");
  }

  // A value: a bin, or a str as older writers have it.
  std::string_view ReadBytes() {
    const std::size_t start = position_;
    const uint8_t tag = ReadTag();
    if ((tag & 0xe0) == 0xa0) return Take(tag & 0x1f);
    if (tag >= 0xc4 && tag <= 0xc6) return Take(ReadBigEndian(std::size_t{1} << (tag - 0xc4)));
    if (tag >= 0xd9 && tag <= 0xdb) return Take(ReadBigEndian(std::size_t{1} << (tag - 0xd9)));
    FailAt(start, tag, "the bytes of a token");
  }

 private:
  uint8_t ReadTag() { return static_cast<uint8_t>(Take(1)[0]); }

  uint64_t ReadBigEndian(std::size_t width) {
    uint64_t value = 0;
    for (const char byte : Take(width)) value = value << 8 | static_cast<uint8_t>(byte);
    return value;
  }

  std::string_view Take(uint64_t size) {
    if (size > blob_.size() - position_) {
      builder_.Fail(position_, "the file ends after " + std::to_string(blob_.size()) +
                                   " bytes, where " + std::to_string(size) +
                                   " more than the offset are expected");
    }
    const std::string_view taken = blob_.substr(position_, static_cast<std::size_t>(size));
    position_ += taken.size();
    return taken;
  }

  [[noreturn]] void FailAt(std::size_t position, uint8_t tag, const std::string& expected) const {
    builder_.Fail(position, "expected " + expected + ", found a value that starts with byte " +
                                std::to_string(tag));
  }

  std::string_view blob_;
  const VocabularyBuilder& builder_;
  std::size_t position_ = 0;
};

void AppendBigEndian(uint64_t value, std::size_t width, std::string* out) {
  for (std::size_t shift = 8 * width; shift > 0; shift -= 8) {
    out->push_back(static_cast<char>(value >> (shift - 8) & 0xff));
  }
}

}  // namespace

Vocabulary ParseMsgpack(std::string_view blob, const std::string& name, std::size_t min_tokens) {
  VocabularyBuilder builder(name, "offset", kFreshCopy);
  MsgpackReader reader(blob, builder);
  for (uint64_t left = reader.ReadMapSize(); left > 0; --left) {
    const std::size_t position = reader.position();
    const uint64_t id = reader.ReadId();
    builder.Add(id, reader.ReadBytes(), position);
  }
  if (!reader.at_end()) {
    builder.Fail(reader.position(), std::to_string(blob.size() - reader.position()) +
                                        " bytes follow the end of the map");
  }
  return builder.Finish(min_tokens);
}

std::string ToMsgpack(const Vocabulary& vocabulary) {
  std::string out;
  out.reserve(vocabulary.bytes.size() + 6 * vocabulary.token_count);
  const std::size_t count = vocabulary.token_count;
  // At least the 256 single bytes are there, so the map never has the short form.
  out.push_back(static_cast<char>(0xde));
  AppendBigEndian(count, 2, &out);
  for (std::size_t id = 1; id <= count; ++id) {
    if (id < 0x80) {
      out.push_back(static_cast<char>(id));
    } else if (id < 0x100) {
      out.push_back(static_cast<char>(0xcc));
      AppendBigEndian(id, 1, &out);
    } else {
      out.push_back(static_cast<char>(0xcd));
      AppendBigEndian(id, 2, &out);
    }
    const std::string_view token = vocabulary.token(id);
    out.push_back(static_cast<char>(0xc4));
    AppendBigEndian(token.size(), 1, &out);
    out += token;
  }
  return out;
}

}  // namespace rwkv_world

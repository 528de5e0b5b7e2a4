// The Python module: types, and the interpreter's lock. Everything else is in the C++ library.
#define PY_SSIZE_T_CLEAN
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "rwkv_world/tokenizer.h"

namespace py = pybind11;

namespace {

using rwkv_world::StreamDecoder;
using rwkv_world::Tokenizer;
using rwkv_world::VocabularyError;

// Inputs from here on let other Python threads run meanwhile; for less, the switch costs more.
constexpr std::size_t kReleaseFrom = 16 << 10;

// A batch gets one more thread for every so many bytes.
constexpr std::size_t kBytesPerThread = 64 << 10;

class MaybeReleaseGil {
 public:
  explicit MaybeReleaseGil(std::size_t work) {
    if (work >= kReleaseFrom) release_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> release_;
};

// The buffer of any object that has one, until destruction.
class Buffer {
 public:
  Buffer(py::handle object, int flags) {
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw py::error_already_set();
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  const Py_buffer& view() const { return view_; }

 private:
  Py_buffer view_;
};

// The bytes of a str (as UTF-8) or of a bytes-like object, which must outlive it.
class Text {
 public:
  explicit Text(py::handle object) {
    if (PyUnicode_Check(object.ptr())) {
      Py_ssize_t size = 0;
      const char* data = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
      if (data == nullptr) throw py::error_already_set();
      bytes_ = {data, static_cast<std::size_t>(size)};
    } else if (PyBytes_Check(object.ptr())) {
      bytes_ = {PyBytes_AS_STRING(object.ptr()),
                static_cast<std::size_t>(PyBytes_GET_SIZE(object.ptr()))};
    } else if (PyObject_CheckBuffer(object.ptr())) {
      buffer_ = std::make_unique<Buffer>(object, PyBUF_SIMPLE);
      bytes_ = {static_cast<const char*>(buffer_->view().buf),
                static_cast<std::size_t>(buffer_->view().len)};
    } else {
      throw py::type_error(std::string("expected str or bytes to encode, found ") +
                           Py_TYPE(object.ptr())->tp_name);
    }
  }

  std::string_view bytes() const { return bytes_; }

 private:
  std::string_view bytes_;
  std::unique_ptr<Buffer> buffer_;
};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Ids in memory that is neither initialised nor larger than they need.
class IdArray {
 public:
  IdArray(const Tokenizer& tokenizer, std::string_view text) {
    // Most texts have three bytes or more for each token.
    Resize(text.size() / 3 + 16);
    for (std::size_t position = 0;;) {
      size_ += tokenizer.EncodeSome(text, &position, data_.get() + size_, capacity_ - size_);
      if (position == text.size()) break;
      Resize(2 * capacity_);
    }
    Resize(std::max<std::size_t>(size_, 1));
  }

  const int32_t* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  int32_t* release() { return data_.release(); }

 private:
  void Resize(std::size_t capacity) {
    void* memory = std::realloc(data_.get(), capacity * sizeof(int32_t));
    if (memory == nullptr) throw std::bad_alloc();
    static_cast<void>(data_.release());
    data_.reset(static_cast<int32_t*>(memory));
    capacity_ = capacity;
  }

  std::unique_ptr<int32_t, Free> data_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

// One int object for each id, made once and never freed: a new one for each token would take
// longer than finding the token.
PyObject* const* SharedInts() {
  static PyObject** const ints = [] {
    auto* objects = new PyObject*[rwkv_world::kVocabSize];
    for (int32_t id = 0; id < rwkv_world::kVocabSize; ++id) {
      objects[id] = PyLong_FromLong(id);
      if (objects[id] == nullptr) throw py::error_already_set();
    }
    return objects;
  }();
  return ints;
}

py::list ToList(const int32_t* ids, std::size_t count) {
  PyObject* const* const ints = SharedInts();
  py::list list(count);
  for (std::size_t i = 0; i < count; ++i) {
    PyObject* const id = ints[ids[i]];
    Py_INCREF(id);
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), id);
  }
  return list;
}

// An id that does not fit the library's type at all.
[[noreturn]] void FailUnknownId(py::handle id) {
  throw VocabularyError("token id " + py::str(id).cast<std::string>() +
                        " does not exist; no id has more than 16 bits");
}

int32_t ToId(py::handle object) {
  int overflow = 0;
  const long id = PyLong_AsLongAndOverflow(object.ptr(), &overflow);
  if (id == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  if (overflow != 0 || id != static_cast<int32_t>(id)) FailUnknownId(object);
  return static_cast<int32_t>(id);
}

// Ids as the library takes them: an int32 array is used where it is, all else is converted.
class Ids {
 public:
  explicit Ids(py::handle object) {
    if (PyUnicode_Check(object.ptr()) || PyBytes_Check(object.ptr()) ||
        PyByteArray_Check(object.ptr())) {
      throw py::type_error(std::string("expected token ids to decode, found ") +
                           Py_TYPE(object.ptr())->tp_name);
    }
    if (!PyObject_CheckBuffer(object.ptr()) || !TakeBuffer(object)) TakeSequence(object);
  }

  const int32_t* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  bool TakeBuffer(py::handle object) {
    buffer_ = std::make_unique<Buffer>(object, PyBUF_RECORDS_RO);
    const Py_buffer& view = buffer_->view();
    if (view.ndim != 1 || view.format == nullptr) return false;
    std::string_view format = view.format;
    if (format.size() == 2 && (format[0] == '@' || format[0] == '=')) format.remove_prefix(1);
    if (format.size() != 1) return false;
    const bool is_signed = std::string_view("bhilqn").find(format[0]) != std::string_view::npos;
    const bool is_unsigned = std::string_view("BHILQN").find(format[0]) != std::string_view::npos;
    if (!is_signed && !is_unsigned) return false;
    switch (view.itemsize) {
      case 1:
        return is_signed ? TakeItems<int8_t>(view) : TakeItems<uint8_t>(view);
      case 2:
        return is_signed ? TakeItems<int16_t>(view) : TakeItems<uint16_t>(view);
      case 4:
        return is_signed ? TakeItems<int32_t>(view) : TakeItems<uint32_t>(view);
      case 8:
        return is_signed ? TakeItems<int64_t>(view) : TakeItems<uint64_t>(view);
      default:
        return false;
    }
  }

  template <typename Item>
  bool TakeItems(const Py_buffer& view) {
    const auto* first = static_cast<const char*>(view.buf);
    const Py_ssize_t stride = view.strides[0];
    size_ = static_cast<std::size_t>(view.shape[0]);
    if constexpr (std::is_same_v<Item, int32_t>) {
      if (stride == sizeof(Item) && reinterpret_cast<uintptr_t>(first) % alignof(Item) == 0) {
        data_ = reinterpret_cast<const int32_t*>(first);
        return true;
      }
    }
    converted_.reserve(size_);
    for (std::size_t i = 0; i < size_; ++i) {
      Item item;
      std::memcpy(&item, first + static_cast<Py_ssize_t>(i) * stride, sizeof(item));
      const auto id = static_cast<int32_t>(item);
      if (static_cast<Item>(id) != item || (id < 0 && std::is_unsigned_v<Item>)) {
        FailUnknownId(py::cast(item));
      }
      converted_.push_back(id);
    }
    data_ = converted_.data();
    return true;
  }

  void TakeSequence(py::handle object) {
    const auto items = py::reinterpret_steal<py::object>(
        PySequence_Fast(object.ptr(), "expected a sequence of token ids to decode"));
    if (!items) throw py::error_already_set();
    size_ = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
    converted_.reserve(size_);
    // Converting an item may run Python code, which may change a list.
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
      const auto item =
          py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(items.ptr(), i));
      converted_.push_back(ToId(item));
    }
    size_ = converted_.size();
    data_ = converted_.data();
  }

  const int32_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::vector<int32_t> converted_;
  std::unique_ptr<Buffer> buffer_;
};

py::list Encode(const Tokenizer& tokenizer, py::handle object) {
  const Text text(object);
  const IdArray ids = [&] {
    const MaybeReleaseGil release(text.bytes().size());
    return IdArray(tokenizer, text.bytes());
  }();
  return ToList(ids.data(), ids.size());
}

py::array_t<int32_t> EncodeArray(const Tokenizer& tokenizer, py::handle object) {
  const Text text(object);
  IdArray ids = [&] {
    const MaybeReleaseGil release(text.bytes().size());
    return IdArray(tokenizer, text.bytes());
  }();
  const auto size = static_cast<py::ssize_t>(ids.size());
  const py::capsule owner(ids.data(), [](void* memory) { std::free(memory); });
  return py::array_t<int32_t>(size, ids.release(), owner);
}

py::list EncodeBatch(const Tokenizer& tokenizer, const py::sequence& objects,
                     std::size_t max_threads) {
  if (PyUnicode_Check(objects.ptr()) || PyBytes_Check(objects.ptr())) {
    throw py::type_error("expected a sequence of texts to encode, found one text");
  }
  const py::tuple held(objects);
  std::vector<Text> texts;
  std::size_t size = 0;
  for (const py::handle object : held) {
    texts.emplace_back(object);
    size += texts.back().bytes().size();
  }

  std::vector<std::vector<int32_t>> ids(texts.size());
  {
    const MaybeReleaseGil release(size);
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
      for (std::size_t i; (i = next.fetch_add(1)) < texts.size();) {
        ids[i] = tokenizer.Encode(texts[i].bytes());
      }
    };
    if (max_threads == 0) max_threads = std::max(1U, std::thread::hardware_concurrency());
    std::vector<std::future<void>> others;
    for (std::size_t threads = 1;
         threads < std::min({max_threads, texts.size(), size / kBytesPerThread}); ++threads) {
      others.push_back(std::async(std::launch::async, work));
    }
    work();
    for (std::future<void>& other : others) other.get();
  }

  py::list lists(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) lists[i] = ToList(ids[i].data(), ids[i].size());
  return lists;
}

// How many bytes `ids` stand for, from one in 64 of them: the exact sum takes a third as long as
// decoding.
std::size_t EstimateSize(const Tokenizer& tokenizer, const Ids& ids) {
  constexpr std::size_t kStep = 64;
  std::size_t size = 0;
  for (std::size_t i = 0; i < ids.size(); i += kStep) {
    size += tokenizer.IdToBytes(ids.data()[i]).size();
  }
  return size * kStep;
}

// A bytes object that grows while it is filled.
class GrowingBytes {
 public:
  explicit GrowingBytes(std::size_t capacity)
      : bytes_(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(capacity))) {
    Check();
  }
  ~GrowingBytes() { Py_XDECREF(bytes_); }
  GrowingBytes(const GrowingBytes&) = delete;
  GrowingBytes& operator=(const GrowingBytes&) = delete;

  char* data() const { return PyBytes_AS_STRING(bytes_); }
  std::size_t capacity() const { return static_cast<std::size_t>(PyBytes_GET_SIZE(bytes_)); }

  void Resize(std::size_t capacity) {
    _PyBytes_Resize(&bytes_, static_cast<Py_ssize_t>(capacity));
    Check();
  }

  // The first `size` bytes. A little memory behind them is kept rather than given back: with
  // blocks that shrink, the allocator would map and unmap memory for each large text.
  py::bytes Take(std::size_t size) {
    if (capacity() - size > size / 8) {
      Resize(size);
    } else {
      Py_SET_SIZE(reinterpret_cast<PyVarObject*>(bytes_), static_cast<Py_ssize_t>(size));
      data()[size] = '\0';
    }
    return py::reinterpret_steal<py::bytes>(std::exchange(bytes_, nullptr));
  }

 private:
  void Check() const {
    if (bytes_ == nullptr) throw py::error_already_set();
  }

  PyObject* bytes_;
};

py::bytes DecodeBytes(const Tokenizer& tokenizer, py::handle object) {
  const Ids ids(object);
  const std::size_t estimate = EstimateSize(tokenizer, ids);
  GrowingBytes bytes(estimate + estimate / 32 + 2 * rwkv_world::kMaxTokenBytes);
  std::size_t size = 0;
  for (std::size_t position = 0;;) {
    {
      const MaybeReleaseGil release(ids.size());
      size += tokenizer.DecodeSome(ids.data(), ids.size(), &position, bytes.data() + size,
                                   bytes.capacity() - size);
    }
    if (position == ids.size()) return bytes.Take(size);
    bytes.Resize(bytes.capacity() + bytes.capacity() / 4 + rwkv_world::kMaxTokenBytes);
  }
}

py::str Decode(const Tokenizer& tokenizer, py::handle object, const char* errors) {
  const py::bytes bytes = DecodeBytes(tokenizer, object);
  auto text = py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(PyBytes_AS_STRING(bytes.ptr()), PyBytes_GET_SIZE(bytes.ptr()), errors));
  if (!text) throw py::error_already_set();
  return text;
}

Tokenizer FromTokens(const py::dict& tokens) {
  std::vector<std::pair<int32_t, std::string_view>> pairs;
  pairs.reserve(tokens.size());
  for (const auto& [id, bytes] : tokens) {
    if (!PyBytes_Check(bytes.ptr())) {
      throw py::type_error("the token with id " + py::repr(id).cast<std::string>() + " is " +
                           Py_TYPE(bytes.ptr())->tp_name + ", and bytes are expected");
    }
    pairs.emplace_back(ToId(id), Text(bytes).bytes());
  }
  return Tokenizer::FromTokens(pairs);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  static const py::object error =
      py::module_::import("mlc_rwkv_world.errors").attr("VocabularyError");
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const VocabularyError& vocabulary_error) {
      // It may name a file, and names of files are bytes.
      const std::string_view message = vocabulary_error.what();
      py::set_error(
          error, py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
                     message.data(), static_cast<Py_ssize_t>(message.size()), "surrogateescape")));
    }
  });

  module.attr("VOCAB_SIZE") = rwkv_world::kVocabSize;
  module.attr("WORLD_TOKENS") = rwkv_world::kWorldTokens;

  py::class_<Tokenizer>(module, "Tokenizer")
      .def_static("from_file", &Tokenizer::FromFile, py::arg("path"), py::arg("min_tokens"),
                  py::call_guard<py::gil_scoped_release>())
      .def_static(
          "from_bytes",
          [](const py::bytes& blob, const std::string& name, std::size_t min_tokens) {
            const std::string_view view = blob;
            const py::gil_scoped_release release;
            return Tokenizer::FromBlob(view, name, min_tokens);
          },
          py::arg("blob"), py::arg("name"), py::arg("min_tokens"))
      .def_static("from_tokens", &FromTokens, py::arg("tokens"))
      .def("encode", &Encode, py::arg("text"))
      .def("encode_array", &EncodeArray, py::arg("text"))
      .def("encode_batch", &EncodeBatch, py::arg("texts"), py::arg("threads"))
      .def("decode", &Decode, py::arg("ids"), py::arg("errors"))
      .def("decode_bytes", &DecodeBytes, py::arg("ids"))
      .def(
          "id_to_bytes",
          [](const Tokenizer& tokenizer, py::handle id) {
            return py::bytes(tokenizer.IdToBytes(ToId(id)));
          },
          py::arg("id"))
      .def(
          "bytes_to_id",
          [](const Tokenizer& tokenizer, const py::bytes& bytes) {
            return tokenizer.BytesToId(bytes);
          },
          py::arg("bytes"))
      .def_property_readonly("token_count", &Tokenizer::token_count)
      .def("to_bytes", [](const Tokenizer& tokenizer) { return py::bytes(tokenizer.Serialize()); });

  py::class_<StreamDecoder>(module, "StreamDecoder")
      .def(py::init<Tokenizer>(), py::arg("tokenizer"))
      .def(
          "push", [](StreamDecoder& decoder, py::handle id) { return decoder.Push(ToId(id)); },
          py::arg("id"))
      .def("finish", &StreamDecoder::Finish);
}

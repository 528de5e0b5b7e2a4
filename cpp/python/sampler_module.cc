// The Python face of the sampler: arrays, and the interpreter's lock. Everything else is in the C++
// library.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "rwkv_world/sampler.h"

namespace py = pybind11;

namespace {

using rwkv_world::ChoiceRequest;
using rwkv_world::Sampler;
using rwkv_world::SamplingError;
using rwkv_world::SamplingOptions;
using rwkv_world::Scores;
using rwkv_world::Scratch;

using Logits = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Mask = std::optional<py::array>;

Scratch* ThreadsScratch() {
  thread_local Scratch scratch;
  return &scratch;
}

std::string Shape(const py::array& array) {
  return py::str(py::tuple(array.attr("shape"))).cast<std::string>();
}

[[noreturn]] void Refuse(const std::string& problem) { throw SamplingError(problem); }

// The words of a mask for `vocab_size` ids, which belong to the array.
const uint32_t* Words(const Mask& mask, std::size_t vocab_size) {
  if (!mask) return nullptr;
  const auto words = static_cast<py::ssize_t>((vocab_size + 31) / 32);
  const char kind = mask->dtype().kind();
  const bool fits = mask->ndim() == 1 && mask->shape(0) >= words && mask->itemsize() == 4 &&
                    (kind == 'i' || kind == 'u') && (mask->flags() & py::array::c_style) != 0;
  if (!fits) {
    Refuse("a mask is " + py::str(mask->dtype()).cast<std::string>() + " of shape " + Shape(*mask) +
           "; expected " + std::to_string(words) + " words of uint32");
  }
  return static_cast<const uint32_t*>(mask->data());
}

int32_t Choose(const Sampler& sampler, const Logits& logits, const Mask& mask) {
  if (logits.ndim() != 1 || static_cast<std::size_t>(logits.shape(0)) < sampler.vocab_size()) {
    Refuse("logits have the shape " + Shape(logits) + "; expected one for each of " +
           std::to_string(sampler.vocab_size()) + " tokens");
  }
  const float* const data = logits.data();
  const uint32_t* const words = Words(mask, sampler.vocab_size());
  const py::gil_scoped_release release;
  return sampler.Choose(data, words, ThreadsScratch());
}

// A thread pool, as TVM's runtime/c_backend_api.h declares TVMBackendParallelLaunch.
struct TaskGroup {
  void* sync_handle;
  int32_t num_task;
};
using Task = int (*)(int id, TaskGroup* group, void* job);
using Launch = int (*)(Task task, void* job, int num_task);

struct Job {
  const std::function<void(std::size_t begin, std::size_t end)>& run;
  std::size_t count;
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // of the first that failed
};

int RunTask(int id, TaskGroup* group, void* opaque) {
  Job& job = *static_cast<Job*>(opaque);
  const auto place = static_cast<std::size_t>(id),
             tasks = static_cast<std::size_t>(group->num_task);
  try {
    job.run(job.count * place / tasks, job.count * (place + 1) / tasks);
  } catch (...) {
    if (!job.failed.exchange(true)) job.error = std::current_exception();
  }
  return 0;
}

// Runs rows 0 to count in ranges on the threads that are launched, or in this one.
void ForRows(std::uintptr_t launch, std::size_t count,
             const std::function<void(std::size_t, std::size_t)>& run) {
  if (launch == 0 || count < 2) return run(0, count);
  Job job{run, count};
  reinterpret_cast<Launch>(launch)(&RunTask, &job, 0);
  if (job.error) std::rethrow_exception(job.error);
}

// Rows [B, V] for B others.
void RequireRows(const Logits& logits, std::size_t count, const char* what) {
  if (logits.ndim() != 2 || static_cast<std::size_t>(logits.shape(0)) != count) {
    Refuse("logits have the shape " + Shape(logits) + "; expected a row for each of " +
           std::to_string(count) + " " + what);
  }
}

std::vector<int32_t> ChooseAll(const std::vector<const Sampler*>& samplers, const Logits& logits,
                               const std::vector<Mask>& masks, std::uintptr_t launch) {
  RequireRows(logits, samplers.size(), "samplers");
  if (!masks.empty() && masks.size() != samplers.size()) {
    Refuse(std::to_string(masks.size()) + " masks were given for " +
           std::to_string(samplers.size()) + " samplers");
  }
  std::vector<ChoiceRequest> requests;
  for (std::size_t i = 0; i < samplers.size(); ++i) {
    const std::size_t vocab_size = samplers[i]->vocab_size();
    if (static_cast<std::size_t>(logits.shape(1)) < vocab_size) {
      Refuse("logits have the shape " + Shape(logits) + ", and a sampler " +
             std::to_string(vocab_size) + " tokens");
    }
    requests.push_back({samplers[i], logits.data(static_cast<py::ssize_t>(i), 0),
                        masks.empty() ? nullptr : Words(masks[i], vocab_size)});
  }
  std::vector<int32_t> ids(requests.size());
  const py::gil_scoped_release release;
  ForRows(launch, ids.size(), [&](std::size_t begin, std::size_t end) {
    rwkv_world::ChooseAll(&requests[begin], end - begin, ThreadsScratch(), &ids[begin]);
  });
  return ids;
}

using Tokens = std::vector<std::pair<int32_t, double>>;

std::vector<std::pair<double, Tokens>> Score(const std::vector<int32_t>& ids, const Logits& logits,
                                             const std::vector<std::size_t>& top,
                                             std::size_t usable) {
  RequireRows(logits, ids.size(), "ids");
  if (top.size() != ids.size()) Refuse("one number of likeliest tokens is needed for each id");
  const float* const data = logits.data();
  const auto vocab_size = static_cast<std::size_t>(logits.shape(1));
  std::vector<std::pair<double, Tokens>> all(ids.size());
  const py::gil_scoped_release release;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Scores scores =
        Scores::Of(ids[i], data + i * vocab_size, vocab_size, usable, top[i], ThreadsScratch());
    all[i].first = scores.log_probability;
    for (const Scores::Token& token : scores.top) {
      all[i].second.emplace_back(token.id, token.log_probability);
    }
  }
  return all;
}

template <typename Item>
py::array_t<Item> ToArray(const std::vector<Item>& items) {
  return py::array_t<Item>(static_cast<py::ssize_t>(items.size()), items.data());
}

}  // namespace

PYBIND11_MODULE(_sampler, module) {
  static const py::object error = py::module_::import("mlc_rwkv_world.errors").attr("UsageError");
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const SamplingError& sampling_error) {
      py::set_error(error, sampling_error.what());
    }
  });

  module.attr("NOT_A_NUMBER") = rwkv_world::kNotANumber;
  module.attr("NOTHING_ALLOWED") = rwkv_world::kNothingAllowed;

  py::class_<Sampler>(module, "Sampler")
      .def(py::init([](double temperature, double top_p, int32_t top_k, double min_p,
                       double presence_penalty, double frequency_penalty, double repetition_penalty,
                       double penalty_decay, std::vector<std::pair<int32_t, double>> logit_bias,
                       std::size_t vocab_size, uint64_t seed) {
             SamplingOptions options{temperature,
                                     top_p,
                                     top_k,
                                     min_p,
                                     presence_penalty,
                                     frequency_penalty,
                                     repetition_penalty,
                                     penalty_decay,
                                     std::move(logit_bias)};
             return std::make_unique<Sampler>(std::move(options), vocab_size, seed);
           }),
           py::kw_only(), py::arg("temperature"), py::arg("top_p"), py::arg("top_k"),
           py::arg("min_p"), py::arg("presence_penalty"), py::arg("frequency_penalty"),
           py::arg("repetition_penalty"), py::arg("penalty_decay"), py::arg("logit_bias"),
           py::arg("vocab_size"), py::arg("seed"))
      .def("choose", &Choose, py::arg("logits"), py::arg("mask"))
      .def("take", &Sampler::Take, py::arg("id"))
      .def("forget", &Sampler::Forget)
      .def("memory",
           [](const Sampler& sampler) {
             const Sampler::Memory memory = sampler.memory();
             return py::make_tuple(ToArray(memory.ids), ToArray(memory.weights), memory.seed,
                                   memory.taken);
           })
      .def(
          "restore",
          [](Sampler& sampler, std::vector<int32_t> ids, std::vector<double> weights, uint64_t seed,
             uint64_t taken) {
            sampler.Restore({std::move(ids), std::move(weights), seed, taken});
          },
          py::arg("ids"), py::arg("weights"), py::arg("seed"), py::arg("taken"));

  module.def("choose_all", &ChooseAll, py::arg("samplers"), py::arg("logits"), py::arg("masks"),
             py::arg("launch"));
  module.def("score", &Score, py::arg("ids"), py::arg("logits"), py::arg("top"), py::arg("usable"));
}

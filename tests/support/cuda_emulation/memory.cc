// Device and shared memory, and who has touched which bytes of it. The compiler, told that it
// checks threads (-fsanitize=thread), calls a function at each access; these are the functions.
//
// Two accesses to the same bytes, one of them a write, must be ordered: by being one thread's, by a
// barrier of their block or their warp between them, or by being two launches'. What copies bring
// may be touched by nobody from their start until they are waited for.
#include <sys/mman.h>

#include <algorithm>

#include "emulation.h"

namespace emulation {

namespace {

constexpr size_t kPage = 4096, kRegion = size_t(32) << 30, kAlignment = 256;
constexpr size_t kPoisoned = size_t(64) << 20;

struct Allocation {
  unsigned char* begin;
  size_t bytes;
  Record* records;
};

struct Memory {
  unsigned char* base = nullptr;
  size_t used = 0;
  uint32_t* owners = nullptr;  // of a page, by number, 0 for nobody's
  std::vector<Allocation> all{{nullptr, 0, nullptr}};
};
Memory memory;

void* reserve(size_t bytes, int protection) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, bytes, protection, flags, -1, 0);
  if (memory == MAP_FAILED) fail("no memory");
  return memory;
}

Allocation* owner(const void* address) {
  const size_t page = (static_cast<const unsigned char*>(address) - memory.base) / kPage;
  return &memory.all[memory.owners[page]];
}

// Whether what `before` did comes before all that `self` does from now on; blocks before `oldest`
// have ended.
bool ordered(const Access& before, const Fiber& self, uint32_t oldest) {
  if (before.run < oldest) return true;
  if (before.run != self.home->run) return false;
  const uint32_t who = before.thread & ~kFlying;
  if (who == kGrid) return false;
  if (who == self.number || before.block_epoch != self.home->number(13)) return true;
  if (who == kBlock) return false;
  const uint32_t warp = who >= kWarp ? who - kWarp : who / 32;
  return warp == self.number / 32 && before.warp_epoch != self.warp->number(14);
}

Access now(const Fiber& self) {
  return {self.home->run, self.number, self.home->number(13), self.warp->number(14)};
}

void add_reader(Access& read, const Access& mine, const Fiber& self, uint32_t oldest) {
  // What all read needs no further note.
  if (read.thread == kGrid && read.run >= oldest) return;
  const Access before = read;
  read = mine;
  if (ordered(before, self, oldest)) return;
  if (before.run != mine.run) {
    read.thread = kGrid;
  } else if (before.thread < kBlock &&
             (before.thread >= kWarp ? before.thread - kWarp : before.thread / 32) ==
                 mine.thread / 32) {
    read.thread = kWarp + mine.thread / 32;
  } else {
    read.thread = kBlock;
  }
}

[[noreturn]] void race(const Access& before, const char* did, bool write, const char* where) {
  const uint32_t who = before.thread & ~kFlying;
  std::string other = who < kWarp ? "thread " + std::to_string(who) : "several threads";
  if (before.run != running()->home->run) other += " of another block";
  fail(place() + (write ? " writes " : " reads ") + where + " memory that " + other + " " + did +
       ", with no barrier between");
}

void watch(Record* records, size_t begin, size_t bytes, bool write, bool shared) {
  // Neighbours of one byte each share a record.
  if (bytes < kGranule) return;
  const Fiber& self = *running();
  const uint32_t oldest = shared ? self.home->run : first_run;
  const Access mine = now(self);
  Record* const end = records + (begin + bytes - 1) / kGranule + 1;
  for (Record* record = records + begin / kGranule; record != end; ++record) {
    // Whoever came in between would have been noticed.
    if (!write && record->read == mine) continue;
    if (record->written.run >= oldest) {
      if (record->written.thread & kFlying && record->written.run == self.home->run)
        fail(place() + " touches shared memory that a copy is still bringing");
      if (!ordered(record->written, self, oldest))
        race(record->written, "wrote", write, shared ? "shared" : "device");
    }
    if (!write) {
      add_reader(record->read, mine, self, oldest);
      continue;
    }
    if (!ordered(record->read, self, oldest))
      race(record->read, "read", write, shared ? "shared" : "device");
    record->written = mine;
  }
}

bool in_shared(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  const unsigned char* begin = running()->home->shared;
  return begin && at >= begin && at < begin + kArena;
}

void touch_shared(const unsigned char* address, size_t bytes, bool write) {
  Block& block = *running()->home;
  const size_t begin = address - block.shared;
  for (const Array& array : block.arrays)
    if (begin >= array.offset && begin + bytes <= array.offset + array.bytes)
      return watch(block.records.data(), begin, bytes, write, true);
  fail(place() + " touches " + std::to_string(bytes) + " bytes outside of its shared arrays");
}

void touch_device(const unsigned char* address, size_t bytes, bool write) {
  Allocation& one = *owner(address);
  if (address < one.begin || address + bytes > one.begin + one.bytes)
    require_allocated(address, bytes, write ? "writes" : "reads");
  if (!one.records)
    one.records = static_cast<Record*>(
        reserve((one.bytes / kGranule + 1) * sizeof(Record), PROT_READ | PROT_WRITE));
  watch(one.records, address - one.begin, bytes, write, false);
}

}  // namespace

void* allocate(size_t bytes) {
  Memory& all = memory;
  if (!all.base) {
    all.base = static_cast<unsigned char*>(reserve(kRegion, PROT_NONE));
    all.owners = static_cast<uint32_t*>(reserve(kRegion / kPage * 4, PROT_READ | PROT_WRITE));
  }
  // Aligned as CUDA promises and no better, with a page that nobody may touch on either side.
  const size_t whole = (kAlignment + bytes + kPage - 1) / kPage * kPage;
  if (all.used + whole + 2 * kPage > kRegion) return nullptr;
  unsigned char* pages = all.base + all.used + kPage;
  if (mprotect(pages, whole, PROT_READ | PROT_WRITE)) return nullptr;
  for (size_t i = 0; i < whole / kPage; ++i)
    all.owners[(pages - all.base) / kPage + i] = static_cast<uint32_t>(all.all.size());
  all.used += whole + kPage;
  all.all.push_back({pages + kAlignment, bytes, nullptr});
  if (bytes <= kPoisoned) std::memset(pages, kPoison, whole);
  return pages + kAlignment;
}

void release(void* pointer) {
  if (!pointer) return;
  if (!is_device(pointer) || owner(pointer)->begin != pointer) fail("frees what is no allocation");
  Allocation& one = *owner(pointer);
  unsigned char* pages = one.begin - kAlignment;
  const size_t whole = (kAlignment + one.bytes + kPage - 1) / kPage * kPage;
  if (one.records) munmap(one.records, (one.bytes / kGranule + 1) * sizeof(Record));
  // Never given again, so that whoever still uses it is found.
  for (size_t i = 0; i < whole / kPage; ++i) memory.owners[(pages - memory.base) / kPage + i] = 0;
  madvise(pages, whole, MADV_DONTNEED);
  mprotect(pages, whole, PROT_NONE);
}

bool is_device(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  return memory.base && at >= memory.base && at < memory.base + kRegion;
}

void require_allocated(const void* address, size_t bytes, const char* what) {
  const auto* at = static_cast<const unsigned char*>(address);
  const Allocation& one = *owner(address);
  if (one.begin && at >= one.begin && at + bytes <= one.begin + one.bytes) return;
  std::string where = "no allocation's";
  if (one.begin)
    where = "from " + std::to_string(at - one.begin) + " of " + std::to_string(one.bytes);
  fail(place() + " " + what + " " + std::to_string(bytes) + " bytes of device memory, " + where);
}

void touch(const void* address, size_t bytes, bool write) {
  if (!current || !bytes) return;
  const auto* at = static_cast<const unsigned char*>(address);
  // What is neither is a thread's own.
  if (is_device(at)) {
    touch_device(at, bytes, write);
  } else if (in_shared(at)) {
    touch_shared(at, bytes, write);
  } else {
    return;
  }
  give_way();
}

unsigned char* shared_array(size_t offset, size_t bytes) {
  Block& block = *running()->home;
  const auto known = [&](const Array& array) { return array.offset == offset; };
  if (!std::any_of(block.arrays.begin(), block.arrays.end(), known))
    block.arrays.push_back({offset, bytes});
  return block.shared + offset;
}

unsigned shared_address(const void* pointer) {
  if (!in_shared(pointer)) fail(place() + " takes a pointer for one to shared memory");
  return static_cast<unsigned>(static_cast<const unsigned char*>(pointer) -
                               running()->home->shared);
}

unsigned char* shared_pointer(unsigned address) { return running()->home->shared + address; }

void require_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    fail(place() + " uses an address that is no multiple of " + std::to_string(bytes));
}

void copy_later(unsigned char* to, const void* from, int bytes) {
  Fiber& self = *running();
  touch(from, bytes, false);
  touch_shared(to, 16, true);
  // Its own thread may not read what it has read before.
  for (size_t i = 0; i < 16 / kGranule; ++i) {
    Record& record = self.home->records[(to - self.home->shared) / kGranule + i];
    record.written.thread |= kFlying;
    record.read = {};
  }
  self.copies.push_back({to, static_cast<const unsigned char*>(from), bytes});
}

void commit_copies() {
  Fiber& self = *running();
  self.groups.push_back(std::move(self.copies));
  self.copies.clear();
}

void finish_copies(int pending) {
  Fiber& self = *running();
  for (auto& groups = self.groups; groups.size() > static_cast<size_t>(pending); groups.pop_front())
    for (const Copy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, copy.bytes);
      for (size_t i = 0; i < 16 / kGranule; ++i)
        self.home->records[(copy.to - self.home->shared) / kGranule + i].written = now(self);
    }
}

}  // namespace emulation

extern "C" {

#define WATCH(n)                                                              \
  void __tsan_read##n(void* at) { emulation::touch(at, n, false); }           \
  void __tsan_write##n(void* at) { emulation::touch(at, n, true); }           \
  void __tsan_unaligned_read##n(void* at) { emulation::touch(at, n, false); } \
  void __tsan_unaligned_write##n(void* at) { emulation::touch(at, n, true); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
#undef WATCH
void __tsan_read_range(void* at, size_t bytes) { emulation::touch(at, bytes, false); }
void __tsan_write_range(void* at, size_t bytes) { emulation::touch(at, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

}  // extern "C"

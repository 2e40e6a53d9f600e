// What sm_90 does beside its threads, for the emulation: mbarriers, named barriers and the copy engine (TMA).
//
// Written from the PTX ISA (sections "mbarrier", "bar", "cp.async.bulk.tensor", "Tensors: Swizzling Modes") and the
// CUDA Driver API. A copy is as late as the ISA permits: its destination holds NaNs from its start on, and the data
// comes when no thread can go on without it, out of order (or, in a schedule by chance, at any time).
#pragma once

#include <map>
#include <set>

#include "cuda.h"

namespace simt {

// Shared memory begins at an address that is no multiple of 1024, and whose upper bits matter.
constexpr uint32_t kSharedBase = 1024 + 16;

inline uint32_t shared_offset(const void* pointer) {
  const char* address = static_cast<const char*>(pointer);
  if (address < shared_arena || address >= shared_arena + kMostSharedBytes) fault("an address is not in shared memory");
  return static_cast<uint32_t>(address - shared_arena);
}

// mbarrier object: PTX ISA, "mbarrier: Phase of the mbarrier object", "Tracking asynchronous operations by the mbarrier
// object" (tx-count).
struct MemoryBarrier {
  int expected, pending, bytes = 0;
  unsigned phase = 0;
  unsigned thread;              // that initialised it
  bool is_for_engines = false;  // after the fence
};

struct NamedBarrier {
  unsigned threads = 0, arrived = 0, generation = 0;
};

struct BoxCopy {
  TensorMap map;
  uint32_t to, barrier;
  int64_t first[4];
};

// Address of a 16-byte chunk (any byte of it) in a swizzled layout: PTX ISA, "Tensors: Swizzling Modes". The pattern of
// a span of 128 bytes permutes the eight chunks of a 128-byte line by the line's number mod 8; shorter spans permute
// the chunks within 64 (or 32) bytes, by the number of the 128-byte line mod 4 (or 2).
inline uint32_t swizzle_address(uint32_t address, uint32_t span) {
  if (span == 0) return address;
  const uint32_t chunks = span / 16, line = address / 128 % chunks;
  const uint32_t chunk = address / 16 % chunks;
  return address / span * span + (chunk ^ line) * 16 + address % 16;
}

class Hopper final : public Engine {
 public:
  std::map<uint32_t, MemoryBarrier> barriers;
  std::map<int, NamedBarrier> named_barriers;
  std::vector<BoxCopy> copies;
  std::map<uint32_t, unsigned> stores;  // chunks that a thread wrote and has not shown to the engines

  void start_block() override {
    barriers.clear();
    named_barriers.clear();
    copies.clear();
    stores.clear();
  }

  bool has_work() const override { return !copies.empty(); }

  // Copies land in order with schedule 0, the latest first with 1.
  void step(std::mt19937& random) override {
    const size_t index = schedule == 0 ? 0 : (schedule == 1 ? copies.size() - 1 : random() % copies.size());
    const BoxCopy copy = copies[index];
    copies.erase(copies.begin() + static_cast<std::ptrdiff_t>(index));
    land(copy);
  }

  const char* end_block() override {
    if (!copies.empty()) return "a copy is under way when the block ends";
    for (const auto& [offset, barrier] : barriers) {
      if (barrier.bytes != 0 || barrier.pending != barrier.expected) return "an mbarrier ends in the middle of a phase";
    }
    for (const auto& [id, barrier] : named_barriers) {
      if (barrier.arrived != 0) return "a named barrier ends with arrivals that nobody waits for";
    }
    return nullptr;
  }

  MemoryBarrier& barrier(uint32_t offset) {
    const auto found = barriers.find(offset);
    if (found == barriers.end()) fault("an mbarrier is used that was not initialised");
    return found->second;
  }

  void complete(MemoryBarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.phase += 1;
    barrier.pending = barrier.expected;
  }

  void arrive(uint32_t offset, int bytes) {
    MemoryBarrier& b = barrier(offset);
    b.bytes += bytes;
    if (std::abs(b.bytes) >= 1 << 20) fault("an mbarrier's bytes are out of range");
    if (b.pending == 0) fault("more arrivals at an mbarrier than it expects");
    b.pending -= 1;
    complete(b);
  }

  void start(const BoxCopy& copy) {
    if (copy.map.magic != kTensorMapMagic) fault("no tensor map");
    if ((copy.to + kSharedBase) % 128 != 0) fault("a box is not aligned to 128 bytes");
    if (!barrier(copy.barrier).is_for_engines) fault("the copy engine cannot see this mbarrier yet");
    const uint32_t bytes = box_bytes(copy.map);
    if (copy.to + bytes > kMostSharedBytes) fault("a box does not fit into shared memory");
    std::memset(shared_arena + copy.to, 0xff, bytes);
    copies.push_back(copy);
  }

  void require_shown(uint32_t offset) {
    if (stores.count(offset / 16)) fault("wgmma reads what a thread wrote, without a fence in between");
  }

 private:
  static uint32_t box_bytes(const TensorMap& map) { return map.box[0] * map.box[1] * map.box[2] * map.box[3] * 2; }

  // Box elements lie in shared memory as in the tensor, innermost axis first, before the swizzle.
  void land(const BoxCopy& copy) {
    const TensorMap& map = copy.map;
    uint32_t place = copy.to + kSharedBase;
    for (uint32_t i3 = 0; i3 < map.box[3]; ++i3) {
      for (uint32_t i2 = 0; i2 < map.box[2]; ++i2) {
        for (uint32_t i1 = 0; i1 < map.box[1]; ++i1) {
          for (uint32_t i0 = 0; i0 < map.box[0]; ++i0, place += 2) {
            const int64_t at[4] = {copy.first[0] + i0, copy.first[1] + i1, copy.first[2] + i2, copy.first[3] + i3};
            char* to = shared_arena + (swizzle_address(place, map.swizzle_span) - kSharedBase);
            std::memcpy(to, element(map, at), 2);
          }
        }
      }
    }
    MemoryBarrier& b = barrier(copy.barrier);
    b.bytes -= static_cast<int>(box_bytes(map));
    complete(b);
  }

  static const char* element(const TensorMap& map, const int64_t (&at)[4]) {
    static const char zeros[2] = {0, 0};
    const char* address = map.address;
    for (int i = 0; i < 4; ++i) {
      if (at[i] < 0 || at[i] >= static_cast<int64_t>(map.sizes[i])) return zeros;
      address += at[i] * static_cast<int64_t>(map.byte_strides[i]);
    }
    return address;
  }
};

inline Hopper hopper;

}  // namespace simt

// plugins/common/ptx_sm90.cuh for the CPU: each function does what the PTX ISA says of its instruction.
#pragma once

#include "common/ptx.cuh"
#include "wgmma.h"

namespace va_export {

inline uint32_t shared_address(const void* pointer) {
  return simt::shared_offset(pointer) + simt::kSharedBase;
}

inline void mbarrier_init(uint64_t* barrier, int count) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8 != 0) simt::fault("an mbarrier is misaligned");
  simt::hopper.barriers[simt::shared_offset(barrier)] = {count, count, 0, 0, simt::running, false};
  std::memset(barrier, 0, sizeof(*barrier));
}

inline void mbarrier_init_fence() {
  for (auto& [offset, barrier] : simt::hopper.barriers) barrier.is_for_engines |= barrier.thread == simt::running;
}

inline void mbarrier_arrive(uint64_t* barrier) {
  simt::hopper.arrive(simt::shared_offset(barrier), 0);
}

inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  simt::hopper.arrive(simt::shared_offset(barrier), bytes);
}

inline void mbarrier_wait(uint64_t* barrier, int parity) {
  const uint32_t offset = simt::shared_offset(barrier);
  simt::wait_until([=] { return static_cast<int>(simt::hopper.barrier(offset).phase % 2) != parity; });
}

// True where this arrival completed the barrier.
inline bool arrive_at_named_barrier(int id, int threads) {
  if (id < 1 || id > 15 || threads % 32 != 0) simt::fault("no such named barrier");
  simt::NamedBarrier& barrier = simt::hopper.named_barriers[id];
  if (barrier.arrived != 0 && barrier.threads != static_cast<unsigned>(threads)) {
    simt::fault("threads disagree on how many meet at a named barrier");
  }
  barrier.threads = static_cast<unsigned>(threads);
  if (++barrier.arrived < barrier.threads) return false;
  barrier.arrived = 0;
  ++barrier.generation;
  return true;
}

inline void named_barrier_sync(int id, int threads) {
  const unsigned generation = simt::hopper.named_barriers[id].generation;
  if (arrive_at_named_barrier(id, threads)) return;
  simt::wait_until([=] { return simt::hopper.named_barriers[id].generation != generation; });
}

inline void named_barrier_arrive(int id, int threads) {
  arrive_at_named_barrier(id, threads);
}

template <int kRegisters>
void shrink_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256, "PTX ISA, setmaxnreg");
}

template <int kRegisters>
void grow_registers() {
  shrink_registers<kRegisters>();
}

inline void prefetch_tensor_map(const CUtensorMap*) {}

inline void copy_box(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2, int c3) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) simt::fault("a tensor map is misaligned");
  simt::BoxCopy copy{{}, simt::shared_offset(shared), simt::shared_offset(barrier), {c0, c1, c2, c3}};
  std::memcpy(&copy.map, map, sizeof(copy.map));
  simt::hopper.start(copy);
}

inline void zero_shared_16(void* shared) {
  require_shared_row(shared);
  std::memset(shared, 0, 16);
  simt::hopper.stores[simt::shared_offset(shared) / 16] = simt::running;
}

inline void store_fence() {
  auto& stores = simt::hopper.stores;
  for (auto store = stores.begin(); store != stores.end();) {
    store = store->second == simt::running ? stores.erase(store) : std::next(store);
  }
}

inline void wgmma_fence() {
  simt::wgmma.fence();
}

inline void wgmma_commit() {
  simt::wgmma.commit();
}

template <int kGroups>
void wgmma_wait() {
  simt::Exchange<int>(simt::kWgmmaWait + kGroups, 0);
  simt::wgmma.wait_for(kGroups);
}

template <typename Registers>
void pin_registers(Registers&) {}

template <typename T>
float decode(uint16_t bits) {
  return float_of_bits(bits, T{});
}

template <typename T>
void wgmma_shared(float (&d)[16][4], uint64_t a, uint64_t b, bool adds, T) {
  simt::Product product{};
  product.columns = 128;
  product.from_shared = true;
  product.adds = adds;
  product.a = a;
  product.b = b;
  product.decode = decode<T>;
  simt::wgmma.start(product, d[0], nullptr);
}

template <int kCount, typename T>
void wgmma_registers(float (&d)[kCount][4], const uint32_t (&a)[4], uint64_t b, T) {
  simt::Product product{};
  product.columns = 8 * kCount;
  product.adds = true;
  product.b = b;
  product.decode = decode<T>;
  simt::wgmma.start(product, d[0], a);
}

}  // namespace va_export

// The PTX instructions of sm_90a that the Hopper kernel uses, one function each: PTX ISA 8.0, sections on mbarrier,
// bar, cp.async.bulk.tensor, fence.proxy.async, setmaxnreg and wgmma. The CPU tests replace this file by an emulation
// of the same functions.
#pragma once

#include <cuda.h>

#include "common/ptx.cuh"

namespace va_export {

// --- mbarrier: `count` arrivals and all announced bytes complete a phase; the next begins at once. ---

__device__ inline void mbarrier_init(uint64_t* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Makes this thread's mbarrier_init visible to the copy engine. Other threads need a barrier besides.
__device__ inline void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and announces bytes that copies will bring in this phase.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity is complete: 0 for the first, third ... Parity 1 of a new barrier counts as
// complete.
__device__ inline void mbarrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra complete;\n"
      "bra again;\n"
      "complete:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// --- Named barriers 1 to 15 of a block. `threads` counts those that wait and those that only arrive. ---

__device__ inline void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// --- Registers move from the warpgroups that need few to those that need many. ---

template <int kRegisters>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- The copy engine. ---

__device__ inline void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Starts the copy of one box to shared memory (aligned to 128), which will complete the box's bytes on `barrier`.
// Elements outside the tensor arrive as zeros, and count. Coordinates are the box's first, innermost axis first.
__device__ inline void copy_box(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1, int c2,
                                int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// Writes 16 zero bytes with an ordinary store; store_fence makes this thread's stores visible to wgmma.
__device__ inline void zero_shared_16(void* shared) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(shared_address(shared)), "r"(0) : "memory");
}

__device__ inline void store_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- wgmma: products of a warpgroup, which run while it goes on. ---
//
// Accumulators and weights in registers may not be touched between the product and the wait for its group; registers
// touched since the last product need wgmma_fence before the next.

__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kGroups of the latest groups are under way.
template <int kGroups>
__device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
}

// Keeps the compiler from moving uses of registers across the waits and products around this place.
template <int kCount>
__device__ inline void pin_registers(float (&registers)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount * 4; ++i) asm volatile("" : "+f"(registers[i / 4][i % 4])::"memory");
}

template <int kCount>
__device__ inline void pin_registers(uint32_t (&registers)[kCount][4]) {
#pragma unroll
  for (int i = 0; i < kCount * 4; ++i) asm volatile("" : "+r"(registers[i / 4][i % 4])::"memory");
}

// The register lists of the instructions below: a lane holds N / 2 numbers of a 64 x N accumulator, four for each eight
// columns, laid out as mma_m16n8k16 lays out c; warp w of the group has the rows from 16 w on.
#define VA_OUT_4(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define VA_OUT_8(d, n) VA_OUT_4(d, n), VA_OUT_4(d, n + 1)
#define VA_OUT_32(d) VA_OUT_8(d, 0), VA_OUT_8(d, 2), VA_OUT_8(d, 4), VA_OUT_8(d, 6)
#define VA_OUT_40(d) VA_OUT_32(d), VA_OUT_8(d, 8)
#define VA_OUT_48(d) VA_OUT_40(d), VA_OUT_8(d, 10)
#define VA_OUT_64(d) VA_OUT_48(d), VA_OUT_8(d, 12), VA_OUT_8(d, 14)
#define VA_REGISTERS_32                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define VA_REGISTERS_40 VA_REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define VA_REGISTERS_48 VA_REGISTERS_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define VA_REGISTERS_64 \
  VA_REGISTERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d (64 x 128) (+)= a (64 x 16) x b (16 x 128), both in shared memory with K innermost; `adds` says whether d is added
// to.
#define VA_WGMMA_SHARED(Type, type)                                                                 \
  __device__ inline void wgmma_shared(float (&d)[16][4], uint64_t a, uint64_t b, bool adds, Type) { \
    asm volatile(                                                                                   \
        "{\n.reg .pred adds;\nsetp.ne.b32 adds, %66, 0;\n"                                          \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" VA_REGISTERS_64           \
        "}, %64, %65, adds, 1, 1, 0, 0;\n}"                                                         \
        : VA_OUT_64(d)                                                                              \
        : "l"(a), "l"(b), "r"(static_cast<int>(adds)));                                             \
  }
VA_WGMMA_SHARED(__half, "f16")
VA_WGMMA_SHARED(__nv_bfloat16, "bf16")
#undef VA_WGMMA_SHARED

// d (64 x N) += a (64 x 16) x b (16 x N): a in registers, a warp's rows as mma_m16n8k16 takes them; b in shared memory
// with N innermost.
#define VA_WGMMA_REGISTERS(Type, type, n, count, a0, a1, a2, a3, b_)                                           \
  __device__ inline void wgmma_registers(float (&d)[count / 4][4], const uint32_t (&a)[4], uint64_t b, Type) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" VA_REGISTERS_##count      \
                 "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b_ ", 1, 1, 1, 1;"                                    \
                 : VA_OUT_##count(d)                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                        \
  }
VA_WGMMA_REGISTERS(__half, "f16", "64", 32, "%32", "%33", "%34", "%35", "%36")
VA_WGMMA_REGISTERS(__half, "f16", "80", 40, "%40", "%41", "%42", "%43", "%44")
VA_WGMMA_REGISTERS(__half, "f16", "96", 48, "%48", "%49", "%50", "%51", "%52")
VA_WGMMA_REGISTERS(__half, "f16", "128", 64, "%64", "%65", "%66", "%67", "%68")
VA_WGMMA_REGISTERS(__nv_bfloat16, "bf16", "64", 32, "%32", "%33", "%34", "%35", "%36")
VA_WGMMA_REGISTERS(__nv_bfloat16, "bf16", "80", 40, "%40", "%41", "%42", "%43", "%44")
VA_WGMMA_REGISTERS(__nv_bfloat16, "bf16", "96", 48, "%48", "%49", "%50", "%51", "%52")
VA_WGMMA_REGISTERS(__nv_bfloat16, "bf16", "128", 64, "%64", "%65", "%66", "%67", "%68")
#undef VA_WGMMA_REGISTERS
#undef VA_REGISTERS_64
#undef VA_REGISTERS_48
#undef VA_REGISTERS_40
#undef VA_REGISTERS_32
#undef VA_OUT_64
#undef VA_OUT_48
#undef VA_OUT_40
#undef VA_OUT_32
#undef VA_OUT_8
#undef VA_OUT_4

}  // namespace va_export

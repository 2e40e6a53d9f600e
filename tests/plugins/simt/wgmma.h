// wgmma for the emulation, written from the PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions".
//
// A product is recorded when it starts and worked out at its warp's wait for it (schedule 0), as soon as all lanes have
// started it (schedule 1), or either by chance. Until then its accumulators hold NaNs, and its operands are read only
// then: what a kernel reads or overwrites too early shows. Each warp of a warpgroup is on its own, so that nothing is
// taken for granted of the others.
#pragma once

#include "hopper.h"

namespace simt {

enum { kWgmmaWait = 100 };

// "Matrix Descriptor Format": the fields, in bytes.
struct MatrixPlace {
  uint32_t start, leading, stride, span;

  explicit MatrixPlace(uint64_t descriptor) {
    start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
    leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
    stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
    const unsigned mode = static_cast<unsigned>(descriptor >> 62);
    span = mode == 0 ? 0 : 256u >> mode;  // 1: 128-byte swizzle, 2: 64, 3: 32
    if (mode == 0) fault("wgmma without swizzle is not emulated");
    if (descriptor >> 49 & 7) fault("a matrix base offset is not emulated: patterns start where their period does");
  }

  // "Canonical Layouts" with T = 8 elements of 16 bits, in bytes; `major` counts rows of A or columns of B, `k` along
  // K. K-major: ((8, m), (T, 2k)) : ((span, stride), (1, T)), so the columns of one step lie side by side.
  uint32_t k_major(uint32_t major, uint32_t k) const {
    return swizzle_address(start + major / 8 * stride + major % 8 * span + k * 2, span);
  }

  // MN-major: ((T, span / 16, m), (8, k)) : ((1, T, leading), (span, stride)).
  uint32_t mn_major(uint32_t major, uint32_t k) const {
    const uint32_t in_span = span / 2;
    return swizzle_address(start + major / in_span * leading + major % in_span * 2 + k % 8 * span + k / 8 * stride,
                           span);
  }
};

struct Product {
  int columns;       // N
  bool from_shared;  // A too, and then B is K-major; else B is MN-major
  bool adds;
  uint64_t a, b;
  float (*decode)(uint16_t);
  float* accumulators[kWarpSize];
  const uint32_t* registers[kWarpSize];
  unsigned lanes = 0;
  int group;
};

// What a lane's accumulators really hold while its products run.
struct Accumulators {
  float* registers;
  std::vector<float> values;
};

struct WarpProducts {
  std::vector<Product> products;
  unsigned open = 0;  // all before this one are done
  unsigned started[kWarpSize] = {};
  int groups[kWarpSize] = {};      // committed
  bool is_fenced[kWarpSize] = {};  // since registers may have been touched
  std::vector<Accumulators> accumulators[kWarpSize];
};

class Wgmma final : public Engine {
 public:
  int64_t total = 0;  // products worked out, each warp's for itself

  void start_block() override { warps_.assign(fibers.size() / kWarpSize, {}); }
  bool has_work() const override { return false; }
  void step(std::mt19937&) override {}
  const char* end_block() override {
    for (const WarpProducts& warp : warps_) {
      if (warp.open != warp.products.size()) return "nobody waits for a product";
      for (const unsigned started : warp.started) {
        if (started != warp.products.size()) return "the lanes of a warp differ in their products";
      }
    }
    for (size_t w = 0; w < warps_.size(); ++w) {  // warpgroups are four neighbouring warps
      if (warps_[w].products.size() != warps_[w / 4 * 4].products.size()) return "warps differ in their products";
    }
    return nullptr;
  }

  void fence() { warp().is_fenced[lane()] = true; }
  void commit() { ++warp().groups[lane()]; }

  void start(const Product& given, float* accumulators, const uint32_t* registers) {
    WarpProducts& w = warp();
    if (!w.is_fenced[lane()]) fault("wgmma without wgmma.fence after its registers were touched");
    const unsigned index = w.started[lane()]++;
    if (index == w.products.size()) {
      w.products.push_back(given);
      w.products.back().group = w.groups[lane()];
    }
    Product& product = w.products[index];
    if (product.a != given.a || product.b != given.b || product.columns != given.columns ||
        product.adds != given.adds || product.group != w.groups[lane()]) {
      fault("the lanes of a warp start different products");
    }
    take_registers(w.accumulators[lane()], accumulators, given.columns / 2);
    product.accumulators[lane()] = accumulators;
    product.registers[lane()] = registers;
    product.lanes += 1;
    const bool is_early = schedule == 1 || (schedule > 1 && (index * 2654435761u >> 7) % 2 == 0);
    if (product.lanes == kWarpSize && is_early) finish(w, index + 1);
  }

  // By every lane, after all lanes came to the wait.
  void wait_for(int groups_left) {
    WarpProducts& w = warp();
    unsigned count = w.open;
    while (count < w.products.size() && w.products[count].group < w.groups[lane()] - groups_left) ++count;
    finish(w, count);
    w.is_fenced[lane()] = false;
  }

 private:
  std::vector<WarpProducts> warps_;

  WarpProducts& warp() { return warps_[running / kWarpSize]; }

  static void take_registers(std::vector<Accumulators>& taken, float* registers, int count) {
    for (const Accumulators& a : taken) {
      if (a.registers == registers) return;
    }
    taken.push_back({registers, std::vector<float>(registers, registers + count)});
    std::memset(static_cast<void*>(registers), 0xff, static_cast<size_t>(count) * sizeof(float));
  }

  // Works out the first `count` products, and gives back the accumulators that no later one uses.
  void finish(WarpProducts& w, unsigned count) {
    for (unsigned i = w.open; i < count; ++i) multiply(w, w.products[i]);
    w.open = std::max(w.open, count);
    for (unsigned l = 0; l < kWarpSize; ++l) {
      auto& taken = w.accumulators[l];
      for (size_t i = 0; i < taken.size();) {
        if (is_used(w, l, taken[i].registers)) {
          ++i;
          continue;
        }
        give_back(taken[i]);
        taken.erase(taken.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
  }

  static bool is_used(const WarpProducts& w, unsigned lane, const float* registers) {
    for (unsigned i = w.open; i < w.products.size(); ++i) {
      if (w.products[i].accumulators[lane] == registers) return true;
    }
    return false;
  }

  static void give_back(const Accumulators& taken) {
    const size_t bytes = taken.values.size() * sizeof(float);
    const char* now = reinterpret_cast<const char*>(taken.registers);
    for (size_t i = 0; i < bytes; ++i) {
      if (now[i] != static_cast<char>(0xff)) fault("accumulators were written to while a product ran");
    }
    std::memcpy(taken.registers, taken.values.data(), bytes);
  }

  static float read(uint32_t address, float (*decode)(uint16_t)) {
    if (address < kSharedBase || address + 2 > kSharedBase + kMostSharedBytes)
      fault("wgmma reads beyond shared memory");
    hopper.require_shown(address - kSharedBase);
    uint16_t bits;
    std::memcpy(&bits, shared_arena + (address - kSharedBase), 2);
    return decode(bits);
  }

  // "Register Fragments": row and column of element `i` that lane `l` holds of A (16 of a warp's rows x 16), and of D.
  static unsigned a_row(unsigned l, unsigned i) { return l / 4 + i / 2 % 2 * 8; }
  static unsigned a_column(unsigned l, unsigned i) { return l % 4 * 2 + i % 2 + i / 4 * 8; }
  static unsigned d_row(unsigned l, unsigned i) { return l / 4 + i / 2 % 2 * 8; }
  static unsigned d_column(unsigned l, unsigned i) { return i / 4 * 8 + l % 4 * 2 + i % 2; }

  void multiply(WarpProducts& w, Product& product) {
    ++total;
    float a[16][16];
    const unsigned first_row = static_cast<unsigned>(&w - warps_.data()) % 4 * 16;  // of the warp in its group
    if (product.from_shared) {
      const MatrixPlace place(product.a);
      for (unsigned r = 0; r < 16; ++r) {
        for (unsigned k = 0; k < 16; ++k) a[r][k] = read(place.k_major(first_row + r, k), product.decode);
      }
    } else {
      for (unsigned l = 0; l < kWarpSize; ++l) {
        for (unsigned i = 0; i < 8; ++i) {
          const uint32_t word = product.registers[l][i / 2];
          a[a_row(l, i)][a_column(l, i)] = product.decode(static_cast<uint16_t>(word >> 16 * (i % 2)));
        }
      }
    }
    const MatrixPlace place(product.b);
    std::vector<float> b(16 * product.columns), d(16 * product.columns, 0.0f);
    for (unsigned k = 0; k < 16; ++k) {
      for (int n = 0; n < product.columns; ++n) {
        const uint32_t address = product.from_shared ? place.k_major(n, k) : place.mn_major(n, k);
        b[k * product.columns + n] = read(address, product.decode);
      }
    }
    for (unsigned r = 0; r < 16; ++r) {
      for (unsigned k = 0; k < 16; ++k) {
        for (int n = 0; n < product.columns; ++n) d[r * product.columns + n] += a[r][k] * b[k * product.columns + n];
      }
    }
    for (unsigned l = 0; l < kWarpSize; ++l) {
      for (Accumulators& taken : w.accumulators[l]) {
        if (taken.registers != product.accumulators[l]) continue;
        for (unsigned i = 0; i < taken.values.size(); ++i) {
          const float sum = d[d_row(l, i) * product.columns + d_column(l, i)];
          taken.values[i] = product.adds ? taken.values[i] + sum : sum;
        }
      }
    }
  }
};

inline Wgmma wgmma;

inline const bool engines_are_set = [] {
  engines = {&hopper, &wgmma};
  return true;
}();

}  // namespace simt

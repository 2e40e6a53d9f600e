// The index arithmetic of the tensor-core kernels, for Python to compare with brute force.
#include "simt.h"

#include "anchored_attention/hopper/layout.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using va_export::TilePlan;

EXPORT int clip_kv_length(int64_t kv_length, int64_t kv_len) {
  return va_export::clip_kv_length(kv_length, kv_len);
}

EXPORT int visible_keys(int row, int group, int64_t q_len, int valid_keys, int is_causal) {
  return va_export::visible_keys(row, group, q_len, valid_keys, is_causal != 0);
}

// Chunk positions of 64 rows, row by row.
template <int kChunks>
void swizzle(int* out) {
  for (int row = 0; row < 64; ++row) {
    for (int chunk = 0; chunk < kChunks; ++chunk) *out++ = va_export::swizzled_chunk<kChunks>(row, chunk);
  }
}

EXPORT void swizzled_chunks(int chunks, int* out) {
  if (chunks == 8) swizzle<8>(out);
  if (chunks == 10) swizzle<10>(out);
  if (chunks == 12) swizzle<12>(out);
  if (chunks == 16) swizzle<16>(out);
}

// (batch, kv_head, tile, split, slot) of every block in order; the number of blocks.
EXPORT int64_t works(int batch, int kv_heads, int row_tiles, int section_heads, int splits, int64_t* out) {
  const TilePlan plan{1, 0, row_tiles, kv_heads, batch * kv_heads, section_heads, splits};
  const int64_t blocks = va_export::work_count(plan);
  for (int64_t block = 0; block < blocks; ++block) {
    const va_export::WorkTile work = va_export::work_tile(plan, block);
    for (const int64_t x :
         {int64_t{work.batch}, int64_t{work.kv_head}, int64_t{work.row_tile}, int64_t{work.split}, work.slot}) {
      *out++ = x;
    }
  }
  return blocks;
}

EXPORT int heads_in_cache(int64_t heads, int64_t bytes_of_head, int64_t cache_bytes) {
  return va_export::heads_in_cache(heads, bytes_of_head, cache_bytes);
}

EXPORT void keys_of_split(int visible, int tile_keys, int splits, int split, int* out) {
  const va_export::KeyRange range = va_export::keys_of_split(visible, tile_keys, splits, split);
  out[0] = range.begin;
  out[1] = range.end;
}

EXPORT int splits_in_use(int visible, int tile_keys, int splits) {
  return va_export::splits_in_use(visible, tile_keys, splits);
}

EXPORT int choose_splits(int64_t tiles, int64_t kv_len, int tile_keys, int sm_count, int64_t slots) {
  return va_export::choose_splits(tiles, kv_len, tile_keys, sm_count, slots);
}

EXPORT int64_t most_slots(int64_t tiles, int64_t kv_len, int tile_keys) {
  return va_export::most_slots(tiles, kv_len, tile_keys);
}

EXPORT int64_t work_of_round(int64_t block, int64_t blocks, int64_t round) {
  return va_export::work_of_round(block, blocks, round);
}

EXPORT int swizzle_bytes(int head_dim) {
  return va_export::swizzle_bytes(head_dim);
}

EXPORT int column_step_byte(int step, int rows, int swizzle) {
  return va_export::column_step_byte(step, rows, swizzle);
}

EXPORT int row_step_byte(int step, int swizzle) {
  return va_export::row_step_byte(step, swizzle);
}

// As the kernel makes it for a tile whose panels have `swizzle` bytes a row.
EXPORT uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes, int swizzle) {
  using namespace va_export;
  const uint64_t mode = swizzle == 128 ? kSwizzle128 : (swizzle == 64 ? kSwizzle64 : kSwizzle32);
  return va_export::matrix_descriptor(address, leading_bytes, static_cast<uint32_t>(8 * swizzle), mode);
}

EXPORT int has_stale_values(int end_tile, int tile_keys, int valid_keys, int64_t kv_len) {
  return va_export::has_stale_values(end_tile, tile_keys, valid_keys, kv_len);
}

"""What the attention kernels must reach, evaluated on the rows of one run."""

from __future__ import annotations

from va_export.evidence.attention_timings import BASE, BEST, DECODE, OFF, PREFILL, PREFILL_LENGTHS, kv_bytes
from va_export.evidence.document import Row, target_row

HOPPER = "9.0"  # the absolute figures are those of an H200
LARGE_KV_BYTES = 256_000_000


def attention_targets(timings: list[Row], copy_tb_per_s: float | None, compute_capability: str) -> list[Row]:
    """Rows of `targets`; what was not timed is not met. 32/8 heads, head_dim 128, float16, batch 1 unless said."""

    def prefill(length: int, variant: str = BEST) -> Row | None:
        return _find(timings, PREFILL, variant, q_len=length, kv_len=length)

    rows = [
        target_row("prefill 16k: speed over the fastest plain", _peer_ratio(prefill(16384), "_plain"), ">=", 0.90, "x"),
        target_row("prefill 2k: speed over the fastest plain", _peer_ratio(prefill(2048), "_plain"), ">=", 0.80, "x"),
    ]
    for length in sorted(PREFILL_LENGTHS):
        ratio = _peer_ratio(prefill(length), "_bias")
        rows.append(target_row(f"prefill {length}: speed over the best biased peer", ratio, ">=", 1.5, "x"))
    on, off = prefill(16384), prefill(16384, f"{BEST}, {OFF}")
    rows.append(target_row("prefill 16k: time with anchors over without", _ratio(on, off), "<=", 1.03, "x"))
    little = _find(timings, DECODE, BEST, q_len=1, kv_len=65536, kv_length=[2048])
    full = _find(timings, DECODE, BEST, q_len=1, kv_len=2048)
    # The split is chosen from the capacity, which the host knows: up to a quarter for blocks without keys.
    rows.append(
        target_row("decode: 2k keys in a cache of 64k over a cache of 2k", _ratio(little, full), "<=", 1.25, "x")
    )
    rows.append(
        target_row(
            "decode: least part of copy bandwidth from 256 MB on", _bandwidth(timings, copy_tb_per_s), ">=", 0.75, "x"
        )
    )
    if compute_capability == HOPPER:
        decode = _find(timings, DECODE, BEST, q_len=1, kv_len=16384)
        rows += [
            target_row("prefill 16k", _value(prefill(16384), "ours_tflops"), ">=", 600.0, "TFLOP/s"),
            target_row("prefill 16k, mma.sync", _value(prefill(16384, BASE), "ours_tflops"), ">=", 300.0, "TFLOP/s"),
            target_row("decode 16k", _value(decode, "ours_us"), "<=", 20.0, "us"),
        ]
    return rows


def _find(timings: list[Row], op: str, variant: str, **sizes: object) -> Row | None:
    """The row of 32/8 heads, head_dim 128, float16, batch 1 and these sizes."""
    wanted = {"batch": 1, "query_heads": 32, "kv_heads": 8, "head_dim": 128, "kv_length": None, **sizes}
    for row in timings:
        fits = all(row["shape"].get(name) == size for name, size in wanted.items())
        if fits and row["dtype"] == "float16" and (row["op"], row.get("variant")) == (op, variant):
            return row
    return None


def _peer_ratio(row: Row | None, kind: str) -> float | None:
    """The fastest such peer's time over ours."""
    if row is None or not row["ours_us"]:
        return None
    times = [median for name, median in row["peers_us"].items() if name.endswith(kind) and median is not None]
    return min(times) / row["ours_us"] if times else None


def _ratio(above: Row | None, below: Row | None) -> float | None:
    if above is None or below is None or above["ours_us"] is None or not below["ours_us"]:
        return None
    return float(above["ours_us"] / below["ours_us"])


def _value(row: Row | None, key: str) -> float | None:
    return None if row is None else row.get(key)


def _bandwidth(timings: list[Row], copy_tb_per_s: float | None) -> float | None:
    rates = [
        row["ours_tb_per_s"]
        for row in timings
        if row["op"] == DECODE
        and row.get("variant") == BEST
        and row["shape"]["q_len"] == 1
        and row.get("ours_tb_per_s") is not None
        and kv_bytes(row["shape"], row["dtype"]) >= LARGE_KV_BYTES
    ]
    return min(rates) / copy_tb_per_s if rates and copy_tb_per_s else None

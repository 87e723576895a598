// The lanes' sums through workgroup memory: see lanes.wgsl. Threads are lane · 4 + quad, so that
// 16 of them read one 256-byte plane of a tile.

// Lane sums on their way to their total: slot · column · thread.
var<workgroup> lane_totals: array<vec4<f32>, LANE_TOTALS>;

fn quad_of(thread: u32) -> u32 {
    return thread % 4u;
}

fn lane_of(thread: u32) -> u32 {
    return thread / 4u;
}

fn put_sums(slot: u32, thread: u32, sums: Sums) {
    let at = slot * 64u * COLUMNS_MAX + thread;
    lane_totals[at] = sums.c0;
    if (COLUMNS > 1u) {
        lane_totals[at + 64u] = sums.c1;
    }
    if (COLUMNS > 2u) {
        lane_totals[at + 128u] = sums.c2;
        lane_totals[at + 192u] = sums.c3;
    }
}

// Waits for all lanes' sums.
fn wait_for_sums() {
    if (THREADS == 64u) {
        workgroupBarrier();
    }
}

// The first column that an invocation finishes, and how far the next one is.
fn first_column(thread: u32) -> u32 {
    if (THREADS == 64u) {
        return thread / 4u;
    }
    return 0u;
}

fn next_column() -> u32 {
    if (THREADS == 64u) {
        return 16u;
    }
    return 1u;
}

// The totals of a slot are where `total` finds them.
fn take_totals(slot: u32, thread: u32) {
}

// The product of the invocation's 4 rows with one column. Threads are lane · 4 + quad.
fn total(slot: u32, thread: u32, column: u32) -> vec4<f32> {
    let at = (slot * COLUMNS_MAX + column) * 64u;
    if (THREADS != 64u) {
        return lane_totals[at + thread];
    }
    var sum = vec4<f32>(0.0);
    for (var lane = 0u; lane < LANES; lane += 1u) {
        sum += lane_totals[at + lane * 4u + thread % 4u];
    }
    return sum;
}

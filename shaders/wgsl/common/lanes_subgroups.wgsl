// The lanes' sums through subgroup operations: see lanes.wgsl, whose order of additions this
// keeps, so that its bits are those of lanes_workgroup.wgsl.
//
// Threads are quad · 16 + lane, by their place in their subgroup: the 16 lanes of a quad lie in
// one subgroup if it has 16 invocations or more, which IN_SUBGROUP promises. Four lanes that
// follow each other exchange their sums by butterflies (a transposition of 4 lanes by 4 rows),
// after which each has four lanes' sums of one row. Those are added lane by lane; from one four
// of lanes to the next the sum so far goes by a shuffle, or, where a subgroup may be smaller
// (4 or 8), all sums go through workgroup memory. Subgroups have at least 4 invocations.
//
// All invocations of a workgroup take part: to be called in uniform control flow.
override IN_SUBGROUP: u32 = 0u;

// Transposed lane sums on their way to their total: slot · column · thread.
var<workgroup> lane_totals: array<vec4<f32>, LANE_TOTALS>;

// This invocation's number in its subgroup.
var<private> invocation: u32;
// Lane sums of four lanes, of one row each: of the slots' columns.
var<private> parts: array<Sums, 2>;
// The product of the quad's rows with the lane's column, of each slot.
var<private> totals: array<vec4<f32>, 2>;

fn quad_of(thread: u32) -> u32 {
    return thread / LANES;
}

fn lane_of(thread: u32) -> u32 {
    return thread % LANES;
}

// Row `lane % 4` of four lanes' vectors, in their order.
fn transposed(v: vec4<f32>) -> vec4<f32> {
    let odd = (invocation & 1u) == 1u;
    let near = subgroupShuffleXor(select(v.yw, v.xz, odd), 1u);
    // Rows 0 and 2 of two lanes, or 1 and 3.
    let a = select(vec2<f32>(v.x, near.x), vec2<f32>(near.x, v.y), odd);
    let b = select(vec2<f32>(v.z, near.y), vec2<f32>(near.y, v.w), odd);
    let upper = (invocation & 2u) == 2u;
    let far = subgroupShuffleXor(select(b, a, upper), 2u);
    return select(vec4<f32>(a, far), vec4<f32>(far, b), upper);
}

fn put_sums(slot: u32, thread: u32, sums: Sums) {
    var p = Sums();
    p.c0 = transposed(sums.c0);
    if (COLUMNS > 1u) {
        p.c1 = transposed(sums.c1);
    }
    if (COLUMNS > 2u) {
        p.c2 = transposed(sums.c2);
        p.c3 = transposed(sums.c3);
    }
    parts[slot] = p;
    if (IN_SUBGROUP == 1u) {
        return;
    }
    let at = slot * 64u * COLUMNS_MAX + thread;
    lane_totals[at] = p.c0;
    if (COLUMNS > 1u) {
        lane_totals[at + 64u] = p.c1;
    }
    if (COLUMNS > 2u) {
        lane_totals[at + 128u] = p.c2;
        lane_totals[at + 192u] = p.c3;
    }
}

// Waits for all lanes' sums.
fn wait_for_sums() {
    if (IN_SUBGROUP == 0u) {
        workgroupBarrier();
    }
}

fn add_four(sum: f32, part: vec4<f32>) -> f32 {
    return (((sum + part.x) + part.y) + part.z) + part.w;
}

// The sum over the quad's lanes, lane 0 to lane 15, of row `lane % 4`: each four of lanes adds
// its own to what the one before it has.
fn chained(part: vec4<f32>) -> f32 {
    let first = (invocation & ~15u) | (invocation & 3u);
    var sum = 0.0;
    sum = subgroupShuffle(add_four(sum, part), first);
    sum = subgroupShuffle(add_four(sum, part), first + 4u);
    sum = subgroupShuffle(add_four(sum, part), first + 8u);
    return subgroupShuffle(add_four(sum, part), first + 12u);
}

// The column that a lane finishes.
fn column_of(thread: u32) -> u32 {
    return lane_of(thread) / 4u;
}

// Has `total` know the totals of a slot.
fn take_totals(slot: u32, thread: u32) {
    let column = column_of(thread);
    var sum = 0.0;
    if (IN_SUBGROUP == 1u) {
        sum = chained(parts[slot].c0);
        if (COLUMNS > 1u) {
            sum = select(sum, chained(parts[slot].c1), column == 1u);
        }
        if (COLUMNS > 2u) {
            sum = select(sum, chained(parts[slot].c2), column == 2u);
            sum = select(sum, chained(parts[slot].c3), column == 3u);
        }
    } else {
        let own = min(column, COLUMNS - 1u);
        let at = (slot * COLUMNS_MAX + own) * 64u + quad_of(thread) * LANES + thread % 4u;
        sum = add_four(sum, lane_totals[at]);
        sum = add_four(sum, lane_totals[at + 4u]);
        sum = add_four(sum, lane_totals[at + 8u]);
        sum = add_four(sum, lane_totals[at + 12u]);
    }
    let first = invocation & ~3u;
    let x = subgroupShuffle(sum, first);
    let y = subgroupShuffle(sum, first + 1u);
    let z = subgroupShuffle(sum, first + 2u);
    let w = subgroupShuffle(sum, first + 3u);
    totals[slot] = vec4<f32>(x, y, z, w);
}

// The first of four lanes finishes a column, the others none.
fn first_column(thread: u32) -> u32 {
    if (thread % 4u == 0u) {
        return column_of(thread);
    }
    return COLUMNS;
}

fn next_column() -> u32 {
    return COLUMNS_MAX;
}

// The product of the invocation's 4 rows with its column.
fn total(slot: u32, thread: u32, column: u32) -> vec4<f32> {
    return totals[slot];
}

// What changes from step to step, in one buffer of words:
//   [0] rows T   [1] rows that want logits T'   [2] where `turns` start, in words   [3] 0
//   then per row, from STEP_HEAD on, STEP_ROW words: position, where the page table of its
//   session starts (in words of this buffer), token id, the T'-th row's row (kept rows)
//   then the page tables, then turns: [T, hd/2] pairs (cos, sin), f32.
const STEP_HEAD: u32 = 4u;
const STEP_ROW: u32 = 4u;

fn row_position(row: u32) -> u32 {
    return step[STEP_HEAD + STEP_ROW * row];
}

fn row_pages(row: u32) -> u32 {
    return step[STEP_HEAD + STEP_ROW * row + 1u];
}

fn row_token(row: u32) -> u32 {
    return step[STEP_HEAD + STEP_ROW * row + 2u];
}

// The row of the step that is kept as row `kept`.
fn kept_row(kept: u32) -> u32 {
    return step[STEP_HEAD + STEP_ROW * kept + 3u];
}

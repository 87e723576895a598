//! The table of cases.

use crate::{attention, crew, faults, products, rows, sessions, shards};

/// Name and test, as in `tests/kernels`.
pub const CASES: &[(&str, fn())] = &[
    ("attention::pages_rows_and_heads", attention::pages_rows_and_heads),
    (
        "attention::an_infinite_score_names_its_first_row",
        attention::an_infinite_score_names_its_first_row,
    ),
    ("crew::helpers_do_not_show", crew::helpers_do_not_show),
    (
        "crew::a_helper_that_falls_silent_is_made_up_for",
        crew::a_helper_that_falls_silent_is_made_up_for,
    ),
    (
        "crew::shares_add_up_and_refuse_what_is_not_theirs",
        crew::shares_add_up_and_refuse_what_is_not_theirs,
    ),
    ("faults::steps_that_do_not_fit_are_refused", faults::steps_that_do_not_fit_are_refused),
    (
        "faults::a_hidden_state_that_is_not_finite_faults_its_row",
        faults::a_hidden_state_that_is_not_finite_faults_its_row,
    ),
    (
        "faults::an_overflow_in_the_head_faults_its_own_session",
        faults::an_overflow_in_the_head_faults_its_own_session,
    ),
    (
        "faults::a_full_cache_is_noticed_before_any_work",
        faults::a_full_cache_is_noticed_before_any_work,
    ),
    (
        "faults::an_overflow_ends_its_session_and_no_other",
        faults::an_overflow_ends_its_session_and_no_other,
    ),
    (
        "faults::keys_beyond_f16_are_a_fault_in_canonical_1_only",
        faults::keys_beyond_f16_are_a_fault_in_canonical_1_only,
    ),
    ("products::every_layout_at_every_column_count", products::every_layout_at_every_column_count),
    ("products::long_rows_and_wide_batches", products::long_rows_and_wide_batches),
    (
        "products::the_largest_integer_sums_do_not_saturate",
        products::the_largest_integer_sums_do_not_saturate,
    ),
    ("products::lookups_are_dequantised_rows", products::lookups_are_dequantised_rows),
    ("rows::rms_norm", rows::rms_norm),
    ("rows::swiglu", rows::swiglu),
    ("rows::exp_over_its_whole_range", rows::exp_over_its_whole_range),
    ("rows::add", rows::add),
    ("rows::check", rows::check),
    ("rows::quantise", rows::quantise),
    ("rows::rope", rows::rope),
    ("rows::f16_and_back", rows::f16_and_back),
    ("sessions::batches_and_chunks_do_not_show", sessions::batches_and_chunks_do_not_show),
    (
        "sessions::a_step_longer_than_a_pass_is_the_same",
        sessions::a_step_longer_than_a_pass_is_the_same,
    ),
    (
        "sessions::forks_and_rewinds_continue_as_if_new",
        sessions::forks_and_rewinds_continue_as_if_new,
    ),
    ("shards::whole_models_equal_the_reference", shards::whole_models_equal_the_reference),
    (
        "shards::every_split_gives_the_reference_s_boundaries",
        shards::every_split_gives_the_reference_s_boundaries,
    ),
    (
        "shards::ends_alone_keep_no_cache_and_take_any_position",
        shards::ends_alone_keep_no_cache_and_take_any_position,
    ),
    ("shards::the_plan_of_a_model_is_as_written", shards::the_plan_of_a_model_is_as_written),
    ("shards::what_cannot_be_loaded_is_named", shards::what_cannot_be_loaded_is_named),
    ("shards::page_bytes_count_the_span_s_layers", shards::page_bytes_count_the_span_s_layers),
];

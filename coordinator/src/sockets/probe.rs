//! `GET /v1/worker/probe?bytes=N`: bytes to measure a link with, before a worker joins.

use std::sync::LazyLock;

use axum::extract::Query;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;

/// Most bytes that one probe gives.
pub const PROBE_BYTES_MAX: usize = 2 << 20;

/// The same bytes for everyone, which no proxy on the way makes smaller.
static PROBE: LazyLock<Bytes> = LazyLock::new(|| {
    let mut bytes = vec![0; PROBE_BYTES_MAX];
    blake3::Hasher::new_derive_key("weft probe").finalize_xof().fill(&mut bytes);
    bytes.into()
});

#[derive(Deserialize)]
pub(super) struct Wanted {
    bytes: usize,
}

pub(super) async fn probe(Query(wanted): Query<Wanted>) -> Response {
    if wanted.bytes > PROBE_BYTES_MAX {
        let problem = format!("bytes: {}, at most {PROBE_BYTES_MAX} are given\n", wanted.bytes);
        return (StatusCode::BAD_REQUEST, problem).into_response();
    }
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, PROBE.slice(..wanted.bytes)).into_response()
}

//! The pages: the donate page and its worker, embedded when this program was built.
//!
//! They run in an origin of their own that asks nobody else, with the isolation that shared
//! memory between Web Workers needs. A program that was built without them has one small page
//! that says so.

use axum::Router;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// A file of the pages.
pub(crate) struct Asset {
    /// Its path, without the first slash; `index.html` is `/`.
    path: &'static str,
    plain: &'static [u8],
    /// The same compressed, where that is smaller.
    gzip: Option<&'static [u8]>,
}

/// What `build.rs` found.
static EMBEDDED: &[Asset] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// The page where there are none: inline style and script, nothing from elsewhere.
const BARE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
                           script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; \
                           form-action 'none'; frame-ancestors 'none'";

/// What no page of ours needs, and a wake lock, which its owner may ask for.
const PERMISSIONS: &str = "accelerometer=(), autoplay=(), camera=(), display-capture=(), \
                           geolocation=(), gyroscope=(), magnetometer=(), microphone=(), \
                           midi=(), payment=(), usb=(), screen-wake-lock=(self)";

/// Whether the pages are in this program.
pub fn are_embedded() -> bool {
    !EMBEDDED.is_empty()
}

/// `GET /` and all that it loads.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    of(EMBEDDED)
}

fn of<S: Clone + Send + Sync + 'static>(assets: &'static [Asset]) -> Router<S> {
    if assets.is_empty() {
        return Router::new().route("/", get(bare));
    }
    assets.iter().fold(Router::new(), |router, asset| {
        let tag = blake3::hash(asset.plain).to_hex();
        let path = if asset.path == "index.html" { "" } else { asset.path };
        let answer = async move |headers: HeaderMap| asset.answer(&tag[..32], &headers);
        router.route(&format!("/{path}"), get(answer))
    })
}

async fn bare() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, BARE_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, include_str!("page.html")).into_response()
}

impl Asset {
    /// The file, or word that the asker has it already.
    fn answer(&self, tag: &str, asked: &HeaderMap) -> Response {
        let gzip = self.gzip.filter(|_| takes_gzip(asked));
        let tag = if gzip.is_some() { format!("\"{tag}-gzip\"") } else { format!("\"{tag}\"") };
        let has_it = asked.get(header::IF_NONE_MATCH).is_some_and(|tags| names(tags, &tag));
        let mut response = match has_it {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => gzip.unwrap_or(self.plain).into_response(),
        };
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_TYPE);
        let mut set = |name: HeaderName, value: &str| {
            headers.insert(name, HeaderValue::from_str(value).expect("printable ASCII"));
        };
        set(header::ETAG, &tag);
        // The names stay and the contents change: asking again costs a round trip.
        set(header::CACHE_CONTROL, "no-cache");
        set(header::VARY, "accept-encoding");
        set(header::CONTENT_SECURITY_POLICY, &policy(asked));
        set(header::REFERRER_POLICY, "no-referrer");
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(HeaderName::from_static("permissions-policy"), PERMISSIONS);
        set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
        set(HeaderName::from_static("cross-origin-embedder-policy"), "require-corp");
        set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
        if !has_it {
            set(header::CONTENT_TYPE, content_type(self.path));
            if gzip.is_some() {
                set(header::CONTENT_ENCODING, "gzip");
            }
        }
        response
    }
}

/// Code and styles of this origin only, which speaks to this origin only. Some browsers do
/// not count a WebSocket to the same host as `'self'`.
fn policy(asked: &HeaderMap) -> String {
    let host = asked.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.and_then(|host| host.parse::<Authority>().ok());
    // Nothing else may stand in a policy's source.
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    let host = host.filter(|host| host.as_str().chars().all(plain));
    let sockets = host.map_or(String::new(), |host| format!(" ws://{host} wss://{host}"));
    format!(
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; \
         connect-src 'self'{sockets}; worker-src 'self'; img-src 'self' data:; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'"
    )
}

/// Whether gzip is among the encodings asked for, and not ruled out.
fn takes_gzip(asked: &HeaderMap) -> bool {
    let values = asked.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let weight = weight.trim().strip_prefix("q=").unwrap_or("1");
        name.trim().eq_ignore_ascii_case("gzip") && weight.parse() != Ok(0.0)
    })
}

/// Whether a list of entity tags has this one.
fn names(tags: &HeaderValue, tag: &str) -> bool {
    let tags = tags.to_str().unwrap_or_default();
    tags.split(',').any(|known| known.trim().trim_start_matches("W/") == tag || known == "*")
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map_or("", |(_, end)| end) {
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "wasm" => "application/wasm",
        "css" => "text/css; charset=utf-8",
        "json" | "webmanifest" => "application/json",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    static PAGES: &[Asset] = &[
        Asset { path: "index.html", plain: b"<!doctype html>", gzip: None },
        Asset { path: "worker/worker_bg.wasm", plain: b"\0asm long", gzip: Some(b"short") },
    ];

    async fn ask(path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
        let request =
            headers.iter().fold(Request::get(path), |r, (name, value)| r.header(*name, *value));
        let response = of::<()>(PAGES).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, to_bytes(body, 1000).await.unwrap().to_vec())
    }

    #[tokio::test]
    async fn pages_are_isolated_and_speak_to_their_own_host_only() {
        let (status, headers, body) = ask("/", &[("host", "weft.example:8443")]).await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"<!doctype html>"[..]));
        assert_eq!(headers["content-type"], "text/html; charset=utf-8");
        assert_eq!(headers["cross-origin-opener-policy"], "same-origin");
        assert_eq!(headers["cross-origin-embedder-policy"], "require-corp");
        assert_eq!(headers["cross-origin-resource-policy"], "same-origin");
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self' 'wasm-unsafe-eval';"));
        let connect = "connect-src 'self' ws://weft.example:8443 wss://weft.example:8443;";
        assert!(policy.contains(connect), "{policy}");
        assert!(!policy.contains("unsafe-inline") && !policy.contains("'unsafe-eval'"), "{policy}");
    }

    #[tokio::test]
    async fn without_pages_one_says_so_and_asks_nobody_else() {
        let request = Request::get("/").body(Body::empty()).unwrap();
        let response = of::<()>(&[]).oneshot(request).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
        let policy = response.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && policy.contains("connect-src 'self'"));
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let page = std::str::from_utf8(&body).unwrap();
        assert!(page.contains("built without") && page.contains("cargo xtask serve"));
        assert!(!page.contains("://"), "no address of elsewhere");
        assert!(!page.contains("innerHTML"), "workers' names are text, never markup");
    }

    #[tokio::test]
    async fn a_host_cannot_write_into_the_policy() {
        for host in ["x; script-src *", "x script-src", "a'b", ""] {
            let (_, headers, _) = ask("/", &[("host", host)]).await;
            let policy = headers["content-security-policy"].to_str().unwrap();
            assert!(policy.contains("connect-src 'self'; worker-src"), "{host}: {policy}");
        }
    }

    #[tokio::test]
    async fn what_helps_goes_compressed_to_who_takes_it() {
        let path = "/worker/worker_bg.wasm";
        for (takes, expected) in [
            ("gzip, br", Some("gzip")),
            ("br;q=1.0, GZIP;q=0.5", Some("gzip")),
            ("gzip;q=0", None),
            ("br", None),
        ] {
            let (_, headers, body) = ask(path, &[("accept-encoding", takes)]).await;
            let encoding = headers.get("content-encoding").map(|v| v.to_str().unwrap());
            assert_eq!(encoding, expected, "{takes}");
            assert_eq!(body, if expected.is_some() { &b"short"[..] } else { b"\0asm long" });
            assert_eq!(headers["content-type"], "application/wasm");
            assert_eq!(headers["vary"], "accept-encoding");
        }
        let (_, headers, _) = ask("/", &[("accept-encoding", "gzip")]).await;
        assert!(!headers.contains_key("content-encoding"), "it would be longer");
    }

    #[tokio::test]
    async fn what_is_known_is_not_sent_again() {
        let path = "/worker/worker_bg.wasm";
        let (_, plain, _) = ask(path, &[]).await;
        let (_, gzip, _) = ask(path, &[("accept-encoding", "gzip")]).await;
        assert_ne!(plain["etag"], gzip["etag"], "other bytes");
        let tag = plain["etag"].to_str().unwrap();
        let (status, headers, body) =
            ask(path, &[("if-none-match", &format!("\"x\", W/{tag}"))]).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(headers["etag"], plain["etag"]);
        let (status, ..) = ask(path, &[("if-none-match", tag), ("accept-encoding", "gzip")]).await;
        assert_eq!(status, StatusCode::OK, "the plain bytes are not the compressed ones");
    }
}

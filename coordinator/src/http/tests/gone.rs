//! A client that goes away frees its generation at once.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use scheduler::RequestId;

/// Sends a request whose answer never ends, and reads until the driver has it.
async fn connect(server: &mut Server, body: &str) -> (TcpStream, RequestId) {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body.as_bytes()).await.unwrap();
    let Told::Submitted { request, .. } = server.told().await else { panic!("a submission") };
    (socket, request)
}

/// Reads until the driver is told of the request's cancellation.
async fn cancelled(server: &mut Server, wanted: RequestId) {
    while !matches!(server.told().await, Told::Cancelled { request } if request == wanted) {}
}

#[tokio::test]
async fn before_the_first_token() {
    let mut server = Server::start(vec![says(&[]), says(&[])]).await;
    for body in [r#"{"prompt":"a"}"#, r#"{"prompt":"a","stream":true}"#] {
        let (socket, request) = connect(&mut server, body).await;
        drop(socket);
        cancelled(&mut server, request).await;
    }
}

#[tokio::test]
async fn amid_an_answer_that_is_not_streamed() {
    let mut server = Server::start(vec![says(&pieces(&["Hel"]))]).await;
    let (socket, request) = connect(&mut server, r#"{"prompt":"a"}"#).await;
    assert!(matches!(server.told().await, Told::Sampled { .. }));
    drop(socket);
    cancelled(&mut server, request).await;
}

#[tokio::test]
async fn amid_a_stream() {
    let mut server = Server::start(vec![says(&pieces(&["Hel"]))]).await;
    let (mut socket, request) = connect(&mut server, r#"{"prompt":"a","stream":true}"#).await;
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains("Hel") {
        assert!(socket.read_buf(&mut got).await.unwrap() > 0, "the stream goes on");
    }
    drop(socket);
    cancelled(&mut server, request).await;
}

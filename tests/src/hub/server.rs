//! The network around the Hub: a thread that listens on two ports until it is told to stop.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use http_body_util::{BodyExt, channel};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::State;
use super::answer::{Answer, Delivery, Host, Request};

type Body = channel::Channel<Bytes, std::io::Error>;

/// The thread; it ends with this.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on two free ports, the Hub's and the other one.
    pub fn start(state: Arc<Mutex<State>>) -> (Self, SocketAddr, SocketAddr) {
        let (stop, stopped) = oneshot::channel();
        let (ready, addresses) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let hub = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                let cdn = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                let address = |listener: &TcpListener| listener.local_addr().expect("an address");
                ready.send((address(&hub), address(&cdn))).expect("somebody who waits");
                tokio::spawn(listen(hub, Host::Hub, state.clone()));
                tokio::spawn(listen(cdn, Host::Cdn, state));
                let _ = stopped.await;
            });
        });
        let (hub, cdn) = addresses.recv().expect("a server that starts");
        (Self { stop: Some(stop), thread: Some(thread) }, hub, cdn)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error here means that the thread is gone, which is what is wanted.
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(listener: TcpListener, host: Host, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let serve = service_fn(move |request| respond(request, host, state.clone()));
        // A client that goes away, or whose connection is cut on purpose, is no failure here.
        tokio::spawn(async move { drop(http1::Builder::new().serve_connection(TokioIo::new(stream), serve).await) });
    }
}

async fn respond(
    request: hyper::Request<Incoming>,
    host: Host,
    state: Arc<Mutex<State>>,
) -> Result<hyper::Response<Body>, Infallible> {
    let head = request.method() == hyper::Method::HEAD;
    let request = read(request, host).await;
    let answer = state.lock().unwrap_or_else(PoisonError::into_inner).answer(&request);
    Ok(write(answer, head))
}

async fn read(request: hyper::Request<Incoming>, host: Host) -> Request {
    let (parts, body) = request.into_parts();
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let query = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (decode(k), decode(v)));
    let mut headers = BTreeMap::new();
    for (name, value) in &parts.headers {
        headers.insert(name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    Request {
        host,
        method: parts.method.to_string(),
        path: decode(parts.uri.path()),
        query: query.collect(),
        headers,
        body: body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default(),
    }
}

fn write(answer: Answer, head: bool) -> hyper::Response<Body> {
    let length = answer.body.len().to_string();
    let mut response = hyper::Response::builder().status(answer.status);
    if !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        response = response.header("Content-Length", length);
    }
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    let (sender, body) = channel::Channel::new(1);
    tokio::spawn(deliver(sender, if head { Vec::new() } else { answer.body }, answer.delivery));
    response.body(body).expect("headers that tests chose")
}

/// Sends a body; a client that has gone away ends it.
async fn deliver(mut sender: channel::Sender<Bytes, std::io::Error>, body: Vec<u8>, delivery: Delivery) {
    let body = Bytes::from(body);
    let first = |count: usize| body.slice(..count.min(body.len()));
    match delivery {
        Delivery::Whole => drop(sender.send_data(body).await),
        Delivery::Cut(count) => {
            let _ = sender.send_data(first(count)).await;
            // So that what was sent is on its way before the connection breaks.
            tokio::time::sleep(Duration::from_millis(20)).await;
            sender.abort(std::io::ErrorKind::ConnectionReset.into());
        }
        Delivery::Stall(count) => {
            let _ = sender.send_data(first(count)).await;
            std::future::pending::<()>().await;
        }
        Delivery::Trickle(count, pause) => {
            for start in (0..body.len()).step_by(count.max(1)) {
                let part = body.slice(start..(start + count.max(1)).min(body.len()));
                if sender.send_data(part).await.is_err() {
                    return;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}

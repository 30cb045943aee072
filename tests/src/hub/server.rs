//! The network around the Hub: a thread that listens on each port, and one for every connection, which is for one request.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::State;
use super::answer::{Answer, Delivery, Host, Request};

/// Far above any head of a request here.
const MAX_HEAD: usize = 1 << 16;
const MAX_HEADERS: usize = 64;

/// Stops listening with this.
pub struct Server {
    stopped: Arc<AtomicBool>,
    addresses: [SocketAddr; 2],
}

impl Server {
    /// Listens on two free ports, the Hub's and the other one.
    pub fn start(state: Arc<Mutex<State>>) -> (Self, SocketAddr, SocketAddr) {
        let stopped = Arc::new(AtomicBool::new(false));
        let start = |host| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let address = listener.local_addr().expect("an address");
            let (state, stopped) = (state.clone(), stopped.clone());
            std::thread::spawn(move || listen(&listener, host, &state, &stopped));
            address
        };
        let addresses = [start(Host::Hub), start(Host::Cdn)];
        (Self { stopped, addresses }, addresses[0], addresses[1])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the threads that wait for a connection; where that fails, there is no thread.
        self.addresses.iter().for_each(|address| drop(TcpStream::connect(address)));
    }
}

fn listen(listener: &TcpListener, host: Host, state: &Arc<Mutex<State>>, stopped: &Arc<AtomicBool>) {
    for stream in listener.incoming() {
        if stopped.load(Ordering::SeqCst) {
            return;
        }
        let (state, stopped) = (state.clone(), stopped.clone());
        // A client that goes away is no failure here.
        std::thread::spawn(move || stream.and_then(|stream| serve(stream, host, &state, &stopped)));
    }
}

fn serve(stream: TcpStream, host: Host, state: &Mutex<State>, stopped: &AtomicBool) -> std::io::Result<()> {
    let request = read(&stream, host)?;
    let answer = state.lock().unwrap_or_else(PoisonError::into_inner).answer(&request);
    write(stream, answer, request.method == "HEAD", stopped)
}

fn read(stream: &TcpStream, host: Host) -> std::io::Result<Request> {
    let bad = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head)? == 0 || head.len() > MAX_HEAD {
            return Err(bad("no head of a request"));
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(&head).map_err(|error| bad(&error.to_string()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers: BTreeMap<String, String> =
        parsed.headers.iter().map(|header| (header.name.to_ascii_lowercase(), text(header.value))).collect();
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let (path, query) =
        parsed.path.unwrap_or_default().split_once('?').unwrap_or((parsed.path.unwrap_or_default(), ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    Ok(Request {
        host,
        method: parsed.method.unwrap_or_default().to_owned(),
        path: decode(path),
        query: pairs.map(|(key, value)| (decode(key), decode(value))).collect(),
        headers,
        body,
    })
}

fn write(mut stream: TcpStream, answer: Answer, head: bool, stopped: &AtomicBool) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {} as it is\r\nConnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        text += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    answer.headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    stream.write_all(format!("{text}\r\n").as_bytes())?;
    let body = if head { &[] } else { &answer.body[..] };
    let first = |count: usize| &body[..count.min(body.len())];
    match answer.delivery {
        Delivery::Whole => stream.write_all(body),
        // The connection ends with the stream.
        Delivery::Cut(count) => stream.write_all(first(count)),
        Delivery::Stall(count) => {
            stream.write_all(first(count))?;
            while !head && !stopped.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        }
        Delivery::Trickle(count, pause) => body.chunks(count.max(1)).try_for_each(|part| {
            stream.write_all(part)?;
            std::thread::sleep(pause);
            Ok(())
        }),
    }
}

//! Requests and answers without the network around them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

/// Which of the two ports was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The Hub itself.
    Hub,
    /// Where it sends clients for large files.
    Cdn,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who was asked.
    pub host: Host,
    /// `GET`, `HEAD`, ...
    pub method: String,
    /// The path, decoded.
    pub path: String,
    /// The query, decoded.
    pub query: BTreeMap<String, String>,
    /// The headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is sent back.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers; `Content-Length` follows from the body unless it is here.
    pub headers: Vec<(String, String)>,
    /// The body; not sent to `HEAD`.
    pub body: Vec<u8>,
    /// How the body goes over the line.
    pub delivery: Delivery,
}

/// How a body goes over the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// At once.
    Whole,
    /// The connection breaks after so many bytes.
    Cut(usize),
    /// Nothing comes after so many bytes, and the connection stays open.
    Stall(usize),
    /// So many bytes at a time, with a pause after each.
    Trickle(usize, Duration),
}

impl Answer {
    /// A body of bytes.
    pub fn bytes(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into(), delivery: Delivery::Whole }
    }

    /// A body of JSON.
    pub fn json(body: &Value) -> Self {
        Self::bytes(body.to_string()).with("Content-Type", "application/json")
    }

    /// An error as the Hub words it: a code for programs, a sentence for people.
    pub fn error(status: u16, code: Option<&str>, message: &str) -> Self {
        let answer = Self::json(&serde_json::json!({ "error": message })).with("X-Error-Message", message);
        let answer = code.map_or(answer.clone(), |code| answer.with("X-Error-Code", code));
        Self { status, ..answer }
    }

    /// Sends a client elsewhere.
    pub fn redirect(to: &str) -> Self {
        Self { status: 302, ..Self::bytes("elsewhere") }.with("Location", to)
    }

    /// Sets a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

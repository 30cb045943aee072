//! A Hugging Face Hub on this machine: repositories in memory, the endpoints that clients use, a second port in the role of
//! the servers that large files are redirected to, a record of every request, and faults on demand.
//!
//! ```
//! use lmr_tests::hub::{Kind, LoopbackHub};
//! let hub = LoopbackHub::start();
//! let commit = hub.commit(Kind::Model, "some/model", [("config.json", "{}")]);
//! let head = hub.repositories().get(Kind::Model, "some/model").and_then(|found| found.resolve("main").cloned());
//! assert_eq!(head, Some(commit));
//! ```

mod answer;
mod download;
mod fault;
mod repository;
mod server;
mod upload;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use answer::{Answer, Delivery, Host, Request};
pub use fault::{Effect, Fault};
pub use repository::{Kind, Repositories, Repository, git_blob_id, is_large};

/// How many entries a page of a listing has, unless a test wants fewer.
const PAGE: usize = 1000;

/// A running Hub; it stops when it is dropped.
pub struct LoopbackHub {
    hub: SocketAddr,
    cdn: SocketAddr,
    state: Arc<Mutex<State>>,
    _server: server::Server,
}

/// Everything the Hub knows.
pub(crate) struct State {
    pub repositories: Repositories,
    pub faults: Vec<Fault>,
    pub requests: Vec<Request>,
    /// Entries on a page of a listing.
    pub page: usize,
    /// Where it answers, `http://127.0.0.1:PORT`.
    pub url: String,
    /// Where large files come from.
    pub cdn: String,
}

impl LoopbackHub {
    /// Starts one on two free ports, without repositories.
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State {
            repositories: Repositories::default(),
            faults: Vec::new(),
            requests: Vec::new(),
            page: PAGE,
            url: String::new(),
            cdn: String::new(),
        }));
        let (server, hub, cdn) = server::Server::start(state.clone());
        let running = Self { hub, cdn, state, _server: server };
        let mut state = running.lock();
        state.url = running.url();
        state.cdn = format!("http://{cdn}");
        drop(state);
        running
    }

    /// What `HF_ENDPOINT` is to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// The port that large files come from.
    pub fn cdn_port(&self) -> u16 {
        self.cdn.port()
    }

    /// Commits files to `main` of a repository, which is made if there is none; gives the commit. Earlier files stay.
    pub fn commit<N: Into<String>, B: Into<Vec<u8>>>(
        &self,
        kind: Kind,
        id: &str,
        files: impl IntoIterator<Item = (N, B)>,
    ) -> String {
        let files = files.into_iter().map(|(path, bytes)| (path.into(), Some(bytes.into()))).collect();
        self.lock().repositories.create(kind, id).commit("main", files)
    }

    /// The repositories, to look into or to change.
    pub fn repositories(&self) -> impl std::ops::DerefMut<Target = Repositories> {
        Guard(self.lock())
    }

    /// Makes the Hub misbehave.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Makes it behave again.
    pub fn recover(&self) {
        self.lock().faults.clear();
    }

    /// Entries on a page of a listing.
    pub fn set_page(&self, entries: usize) {
        self.lock().page = entries;
    }

    /// Every request so far, faulty answers included.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.lock().requests.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows the repositories alone.
struct Guard<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for Guard<'_> {
    type Target = Repositories;

    fn deref(&self) -> &Repositories {
        &self.0.repositories
    }
}

impl std::ops::DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Repositories {
        &mut self.0.repositories
    }
}

impl State {
    /// What the Hub answers; the one place that knows every endpoint.
    pub fn answer(&mut self, request: &Request) -> Answer {
        self.requests.push(request.clone());
        let honest = |state: &mut Self| match request.host {
            Host::Cdn => download::blob(state, request),
            Host::Hub => upload::answer(state, request)
                .or_else(|| download::answer(state, request))
                .unwrap_or_else(|| Answer::error(404, None, "no such page")),
        };
        match fault::take(&mut self.faults, request) {
            Some(Effect::Answer(answer)) => answer,
            Some(effect) => effect.apply(honest(self)),
            None => honest(self),
        }
    }
}
